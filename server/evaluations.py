"""Evaluations in processes of their own, since the front never imports TensorFlow.

Takes the arguments of an evaluation. Gives its result. Next: `server.evaluate_process`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from finetune.jobs.launcher import source_environment
from zoo.errors import Unavailable, from_dict


class EvaluationDied(Unavailable):
    """The process of an evaluation ended without an answer."""


class Evaluations:
    """One at a time: each uses every core that it gets. Used by one event loop."""

    def __init__(self, store_url: str) -> None:
        self._store_url = store_url
        self._turn = asyncio.Lock()

    async def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`evaluate_version(**request)`. Cancelling it ends the process. Raises EvaluationDied and what it raises."""
        async with self._turn:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "server.evaluate_process", "--store", self._store_url, "--parent", str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=source_environment(),
            )
            try:
                said, _ = await process.communicate(json.dumps(dict(request)).encode())
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        lines = said.splitlines()
        if not lines:
            raise EvaluationDied(
                f"the evaluation of {request['reference']} ended with {process.returncode} and no answer",
                hint="see the server's log",
            )
        answer = json.loads(lines[-1])
        if "error" in answer:
            raise from_dict(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result
