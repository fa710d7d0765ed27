"""`start_tensorflow`: zoo's, where readers of TensorFlow's formats need it too."""

from zoo.tensorflow_start import start_tensorflow as start_tensorflow
