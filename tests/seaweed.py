"""A real S3 server for tests, benchmarks and the demo: SeaweedFS in one process, on free ports, with its own keys.

Takes an empty directory. Gives a Seaweed whose bucket `zoo` is there; it ends with the thread that started it.
Next: `environment()` is what boto3, and so `open_store("s3://zoo/…")`, reads.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

BUCKET = "zoo"
READY_WITHIN = 30.0  # seconds; 1 to 2 are usual
STOP_WITHIN = 3.0  # seconds; it waits for clients that keep a connection, and loses nothing by being killed
TRIES = 5

_PORTS = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
# Below the ephemeral range, so that no client's socket takes one of them between our look and the server's bind. The
# administration's gRPC port is always 10,000 above its other one: the server's own worker looks for it there.
_BLOCKS = range(11_000, 21_000, 2 * len(_PORTS))
_ADMIN_OFFSET = 10_000

# Dies with the thread that starts it: the kernel sends SIGKILL. A Go program can't ask for that itself, so Python does
# and becomes it.
_DIES_WITH_US = """
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL)) != 0:
    raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that wanted this server is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class SeaweedMissing(Exception):
    """There is no `weed` program for this platform; scripts/install brings it where there is one."""


class SeaweedFailed(Exception):
    """The server didn't come up."""


@dataclass(kw_only=True)
class Seaweed:
    """A running server. `kill` and `restart` keep its directory, ports and keys."""

    directory: Path
    ports: dict[str, int]
    access_key: str
    secret_key: str
    reader_key: str
    reader_secret: str
    process: subprocess.Popen[bytes] = field(repr=False)
    _lock: IO[str] = field(repr=False)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def environment(self) -> dict[str, str]:
        """What boto3 reads to reach this server, and nothing else of the user's AWS settings."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def reader_environment(self) -> dict[str, str]:
        """The same with keys that may list and read, and nothing else."""
        return self.environment() | {"AWS_ACCESS_KEY_ID": self.reader_key, "AWS_SECRET_ACCESS_KEY": self.reader_secret}

    def kill(self) -> None:
        """SIGKILL, as a power cut."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL; its ports are free afterwards."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                self.kill()
        _remove_sockets(self.ports)
        self._lock.close()

    def restart(self) -> None:
        """Starts it again on what its directory holds. Raises SeaweedFailed."""
        if self.process.poll() is None:
            self.kill()
        self.process = _launch(self.directory, self.ports, self.access_key, self.secret_key)
        _await(self.process, self.ports, self.directory, (self.access_key, self.secret_key))


def find_weed() -> Path:
    """The program beside this interpreter. Raises SeaweedMissing where there is none for this platform."""
    weed = Path(sys.executable).parent / "weed"
    if sys.platform != "linux" or not weed.exists():
        raise SeaweedMissing(f"no SeaweedFS for this platform: {weed} is not there (scripts/install brings it)")
    return weed


def start_seaweed(directory: Path) -> Seaweed:
    """Starts a server that keeps everything in `directory`. Raises SeaweedMissing, SeaweedFailed.

    Call it from a thread that lives as long as the server should.
    """
    find_weed()
    directory.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = _new_keys()
    reader_key, reader_secret = _new_keys()
    (directory / "identities.json").write_text(
        json.dumps(
            {
                "identities": [
                    _identity("writer", access_key, secret_key, ["Admin", "Read", "List", "Tagging", "Write"]),
                    _identity("reader", reader_key, reader_secret, [f"Read:{BUCKET}", f"List:{BUCKET}"]),
                ]
            }
        )
    )
    for attempt in range(TRIES):
        ports, lock = _free_ports()
        process = _launch(directory, ports, access_key, secret_key)
        try:
            _await(process, ports, directory, (access_key, secret_key))
        except BaseException as error:
            process.kill()
            process.wait()
            _remove_sockets(ports)
            lock.close()
            if not isinstance(error, SeaweedFailed) or attempt + 1 == TRIES:
                raise
            continue
        return Seaweed(
            directory=directory,
            ports=ports,
            access_key=access_key,
            secret_key=secret_key,
            reader_key=reader_key,
            reader_secret=reader_secret,
            process=process,
            _lock=lock,
        )
    raise AssertionError("unreachable: the last try returns or raises")


@contextmanager
def running_seaweed(directory: Path) -> Iterator[Seaweed]:
    """A server for the length of a block. Raises SeaweedMissing, SeaweedFailed."""
    server = start_seaweed(directory)
    try:
        yield server
    finally:
        server.stop()


def _new_keys() -> tuple[str, str]:
    return "AK" + secrets.token_hex(9).upper(), secrets.token_hex(20)


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


def _free_ports() -> tuple[dict[str, int], IO[str]]:
    """A block of ports that nobody listens on, and the lock that keeps our other test processes away from it."""
    blocks = list(_BLOCKS)
    secrets.SystemRandom().shuffle(blocks)
    for first in blocks:
        lock = (Path(tempfile.gettempdir()) / f"modelzoo-ports-{os.getuid()}-{first}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        ports = {}
        for number, name in enumerate(_PORTS):
            ports[name] = first + 2 * number
            ports[f"{name}.grpc"] = first + 2 * number + (_ADMIN_OFFSET if name == "admin.port" else 1)
        if all(_is_free(port) for port in ports.values()):
            return ports, lock
        lock.close()
    raise SeaweedFailed(f"no block of {len(_PORTS) * 2} free ports between {_BLOCKS.start} and {_BLOCKS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _launch(directory: Path, ports: dict[str, int], access_key: str, secret_key: str) -> subprocess.Popen[bytes]:
    weed = [
        str(find_weed()),
        "mini",
        f"-dir={directory}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-bucket={BUCKET}",
        *(f"-{name}={port}" for name, port in ports.items()),
        "-master.telemetry=false",  # talks to nobody
        "-disableHttp=true",  # else another port serves objects without keys
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={directory / 'identities.json'}",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
    environment |= {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "GOMEMLIMIT": "512MiB"}
    with (directory / "weed.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DIES_WITH_US, str(os.getpid()), *weed],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C at the tests is not for it; the fixture stops it
        )


def _await(process: subprocess.Popen[bytes], ports: dict[str, int], directory: Path, keys: tuple[str, str]) -> None:
    """Returns when the bucket answers to our keys, which no other server has."""
    import boto3  # here, since every test run imports this module for its fixtures
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{ports['s3.port']}",
        region_name="us-east-1",
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        config=Config(
            connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
        ),
    )
    until, last = time.monotonic() + READY_WITHIN, ""
    while process.poll() is None and time.monotonic() < until:
        try:
            client.list_objects_v2(Bucket=BUCKET, MaxKeys=1)
            return
        except (BotoCoreError, ClientError) as error:  # it listens before the bucket is made
            last = str(error)
        time.sleep(0.05)
    log = (directory / "weed.log").read_bytes()[-2000:].decode(errors="replace")
    raise SeaweedFailed(f"SeaweedFS {ports} ended with {process.poll()} or was not ready: {last}\n{log}")


def _remove_sockets(ports: dict[str, int]) -> None:
    """The server leaves its Unix sockets behind, always in /tmp, named by port."""
    for port in ports.values():
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
