"""Opens an export in a process of its own, with its format's own runtime and none of the zoo's code.

Run as a script, `python -P reopen.py FOLDER WORK`. Takes WORK/request.json and WORK/inputs.npz (made by
`finetune.export.comparison`). Gives WORK/outputs.npz (run number, "/", output name) and WORK/answer.json: the runtime
with its versions, the seconds it took to open, and whether any of the zoo's modules were loaded.

It imports nothing of the zoo, so that an export which needs the zoo can't pass.
"""

import importlib.metadata
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

Inputs = dict[str, Any]
Outputs = dict[str, np.ndarray]


def open_saved_model(folder: Path) -> Any:
    import tensorflow as tf

    (numbered,) = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]  # as Serving finds it
    loaded = tf.saved_model.load(str(numbered))

    def call(signature: str, inputs: Inputs) -> Outputs:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in loaded.signatures[signature](**tensors).items()}

    return call, ["tensorflow"]


def open_hub(folder: Path) -> Any:
    try:
        import tensorflow_hub
    except ImportError:  # then what `hub.load` does with a path
        import tensorflow as tf

        loaded, tools = tf.saved_model.load(str(folder)), ["tensorflow"]
    else:
        loaded, tools = tensorflow_hub.load(str(folder)), ["tensorflow-hub", "tensorflow"]
    if not loaded.variables or not loaded.trainable_variables or list(loaded.regularization_losses):
        raise SystemExit("the module has no variables to train, or losses that the source hasn't")

    def call(signature: str, inputs: Inputs) -> Outputs:
        return {"": loaded(inputs["inputs"]).numpy()}

    return call, tools


def open_keras(folder: Path) -> Any:
    import keras

    model = keras.saving.load_model(folder / "model.keras")  # safe mode: no code comes out of it

    def call(signature: str, inputs: Inputs) -> Outputs:
        return dict(model.predict(inputs["image"], verbose=0))

    return call, ["keras", "tensorflow"]


def open_onnx(folder: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(signature: str, inputs: Inputs) -> Outputs:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return call, ["onnxruntime"]


def open_litert(folder: Path) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite.python.interpreter import Interpreter

        tools = ["tensorflow"]
    else:
        tools = ["ai-edge-litert"]
    interpreter = Interpreter(model_path=str(folder / "model.tflite"))

    def call(signature: str, inputs: Inputs) -> Outputs:
        return dict(interpreter.get_signature_runner(signature)(**inputs))

    return call, tools


OPENERS = {
    "saved_model": open_saved_model,
    "hub": open_hub,
    "keras": open_keras,
    "onnx": open_onnx,
    "litert": open_litert,
}


def main(folder: Path, work: Path) -> None:
    request = json.loads((work / "request.json").read_text(encoding="utf-8"))
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the runtimes' own: deprecations of what they import
        call, tools = OPENERS[request["kind"]](folder)
        seconds = time.perf_counter() - started
        outputs: dict[str, np.ndarray] = {}
        with np.load(work / "inputs.npz", allow_pickle=False) as stored:
            for number, run in enumerate(request["runs"]):
                inputs = {name: stored[f"{number}/{name}"] for name in run["arrays"]}
                for name, count in run["encoded"].items():
                    inputs[name] = np.array(
                        [stored[f"{number}/{name}/{place}"].tobytes() for place in range(count)], dtype=object
                    )
                for name, value in call(run["signature"], inputs).items():
                    outputs[f"{number}/{name}"] = decoded(value) if value.dtype == object else value
    np.savez(work / "outputs.npz", **outputs)  # type: ignore[arg-type]  # its stub takes the names for options
    ours = sorted(name for name in sys.modules if name.split(".")[0] in ("zoo", "finetune", "server", "protos"))
    versions = {tool: importlib.metadata.version(tool) for tool in tools}
    answer = {"tools": versions, "seconds_to_open": round(seconds, 3), "own_modules": ours}
    (work / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def decoded(strings: np.ndarray) -> np.ndarray:
    return np.array([text.decode("utf-8") for text in strings.ravel()], dtype=np.str_).reshape(strings.shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
