"""What an operator may set: `zoo serve --config FILE` (YAML).

Takes a YAML file. Gives a ServerConfig. Next: `server.serve`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune.wire import MAX_MESSAGE_BYTES
from zoo.errors import InvalidArgument


class InvalidConfig(InvalidArgument):
    """A server configuration that cannot be used; the message lists every fault."""


class ServerConfig(BaseModel):
    """Every key with its default; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # name → folder, or s3://BUCKET/PREFIX; requests name data below them, and nothing else on the disk or in buckets
    data_roots: dict[str, str] = {}
    queue: str | None = None  # database URL of the jobs; None: MODELZOO_QUEUE, else the store's own
    token_file: Path | None = None  # None: in the data home, by port
    max_running_jobs: Annotated[int, Field(ge=0, le=64)] = 1  # 0: this server takes jobs and runs none
    max_loaded_models: Annotated[int, Field(ge=1, le=64)] = 4
    unload_idle_seconds: Annotated[float, Field(gt=0)] = 900.0
    max_message_bytes: Annotated[int, Field(ge=2**16, le=2**30)] = MAX_MESSAGE_BYTES
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000  # of one image, from its header

    @classmethod
    def read(cls, path: Path | None) -> ServerConfig:
        """Raises InvalidConfig."""
        if path is None:
            return cls()
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidConfig(f"the server's configuration {path} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"the server's configuration {path} is not YAML: {error}") from None
        try:
            config = cls.model_validate(value if value is not None else {})
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            known = ", ".join(sorted(cls.model_fields))
            raise InvalidConfig(f"the server's configuration {path}: {faults}; known keys: {known}") from None
        for name, root in config.data_roots.items():
            if not root.startswith("s3://") and not Path(root).is_dir():
                raise InvalidConfig(f"the server's configuration {path}: data root {name!r} is no folder: {root}")
        return config
