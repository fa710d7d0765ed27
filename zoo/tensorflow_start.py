"""Importing TensorFlow in a command, without the chatter that its libraries write before any log level holds.

absl prints what is logged before `InitializeLog` straight to file descriptor 2, whatever TF_CPP_MIN_LOG_LEVEL says
(TensorFlow 2.21). So descriptor 2 is caught during the import, and everything but the known chatter is passed on.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile

_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|I0000 .*(oneDNN custom operations are on|Could not find cuda drivers)"
    rb"|I0000 .*This TensorFlow binary is optimized"
    rb"|To enable the following instructions"
)


def start_tensorflow() -> None:
    """Imports TensorFlow, with Keras on it. Call it before starting threads, first thing in a process that needs it."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # 2 would report a missing GPU as an error
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            caught.seek(0)
            for line in caught:
                if not _CHATTER.search(line):
                    os.write(2, line)
