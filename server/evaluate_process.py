"""One evaluation in a process of its own: `python -m server.evaluate_process --store URL --parent PID`.

Takes the request as JSON on stdin: the arguments of `finetune.training.evaluate.evaluate_version`. Gives one JSON line
on stdout: `{"result": …}` or `{"error": …}`. Next: `finetune.training.evaluate`. It ends with its parent.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any

from finetune.jobs.worker import die_with_parent
from finetune.tensorflow_start import start_tensorflow
from zoo.catalog import open_catalog
from zoo.errors import Internal, ZooError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="server.evaluate_process")
    parser.add_argument("--store", required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the front, which then ends this process
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    try:
        said: dict[str, Any] = {"result": _evaluated(options.store, request)}
    except ZooError as error:
        said = {"error": error.to_dict()}
    except Exception as error:  # whoever waits for the line must get one
        print(json.dumps({"error": Internal(f"the evaluation failed: {error!r}").to_dict()}), file=answers, flush=True)
        raise
    print(json.dumps(said), file=answers, flush=True)
    return 0


def _evaluated(store_url: str, request: dict[str, Any]) -> dict[str, Any]:
    catalog = open_catalog(store_url)
    catalog.get(request["reference"])  # before TensorFlow, which takes seconds to come up
    start_tensorflow()
    from finetune.training.evaluate import evaluate_version

    return evaluate_version(catalog, request.pop("reference"), **request)


if __name__ == "__main__":
    sys.exit(main())
