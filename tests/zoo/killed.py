"""A process that publishes and is killed at a chosen place; started as `python -m tests.zoo.killed`.

Reads one JSON object a line: what to publish, where, and when to die. Forks for each, so that nothing is imported
twice, and answers with one line: how the child ended. Threads and connections are only made in the children.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from tests.zoo.samples import new_catalog
from zoo.manifest import Manifest
from zoo.store import open_store
from zoo.store.faulty import CrashAt, FaultPlan, FaultyStore
from zoo.store.s3 import store as s3_store

LINKED = "log-entries"  # a file beside the cache
FILE_EVENTS = frozenset({"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir"})


class Killable:
    """The other end of such a process.

    `log_entries`: how many entries of a log the last publish with `file_access` had put in place when it died.
    """

    log_entries = 0

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def publish(
        self,
        url: str,
        folder: Path,
        name: str,
        manifest: Manifest,
        files: dict[str, Path],
        *,
        call: int = 0,
        when: Literal["before", "after"] = "before",
        file_access: int = 0,
    ) -> bool:
        """Publishes in a process of its own; True when it was killed, False when it came to its end before.

        folder: has the cache, and with it what was found out about the store before.
        call: the store's call at which it dies. file_access: the access to a file of a local store before which it
        dies. Both counted from 1; 0: it doesn't.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {
            "url": url,
            "name": name,
            "manifest": manifest.model_dump(mode="json"),
            "files": {digest: str(path) for digest, path in files.items()},
            "folder": str(folder),
            "call": call,
            "when": when,
            "file_access": file_access,
            "environment": {name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        if file_access:
            self.log_entries = int((folder / LINKED).read_text())
        assert status in (0, -signal.SIGKILL), f"the publish ended with {status}"
        return status != 0

    def end(self) -> None:
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


def main() -> None:
    assert s3_store is not None  # imported above, once for all children
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            publish(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def publish(asked: dict[str, Any]) -> None:
    os.environ.update(asked["environment"])
    store = open_store(asked["url"])
    if asked["call"]:
        crash = CrashAt(call=asked["call"], when=asked["when"], how="kill")
        store = FaultyStore(store, FaultPlan(crash=crash), local_paths=True)
    if asked["file_access"]:
        root = str(store.local_path("x")).removesuffix("x")
        die_before_access(asked["file_access"], root, Path(asked["folder"]) / LINKED)
    files = {digest: Path(path) for digest, path in asked["files"].items()}
    catalog = new_catalog(store, Path(asked["folder"]))
    catalog.publish(asked["name"], Manifest.model_validate(asked["manifest"]), files)


def die_before_access(number: int, root: str, told: Path) -> None:
    """Keeps in `told` how many log entries had been linked by then: the event comes before the link, so that a later
    one proves it. The number of an access doesn't: threads that send blobs race for the folders that they share."""
    seen, entries, linking = 0, 0, False
    told.write_text("0")
    file = os.open(told, os.O_WRONLY)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen, entries, linking
        if event in FILE_EVENTS and str(arguments[0]).startswith(root):
            if linking:
                entries, linking = entries + 1, False
                os.pwrite(file, str(entries).encode(), 0)
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            linking = event == "os.link" and "/log/" in str(arguments[1])

    sys.addaudithook(count)


if __name__ == "__main__":
    main()
