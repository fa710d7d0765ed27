"""What `run` and `submit` have in common: from flags and a spec file to a JobSpec.

Its imports are inside: the command line is read, and `--help` printed, without pydantic and YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.spec import JobSpec

LOCAL_KINDS = ("coco", "csv", "flickr", "folder", "jsonl", "tfrecord")  # kinds of DATA whose location is a path


@dataclass(frozen=True, kw_only=True)
class Request:
    """Flags as typed; None where a flag was not given."""

    spec_file: Path | None
    backbone: str | None
    head: str | None
    data: str | None
    name: str | None
    recipe: str | None
    start_from: str | None
    strategy: str | None
    workers: int | None
    ps: int | None
    settings: Sequence[str]
    debug: Mapping[str, Any] = field(default_factory=dict)  # keys of the spec's `debug`

    def values(self) -> dict[str, Any]:
        """The spec file with the flags laid over it. Raises InvalidSpec."""
        from finetune.recipes import overlaid

        flags: dict[str, Any] = {}
        for key, value in (("name", self.name), ("backbone", self.backbone), ("start_from", self.start_from)):
            if value is not None:
                flags[key] = value
        if self.head is not None:
            flags["head"] = {"kind": self.head}
        if self.data is not None:
            flags["data"] = {"location": self.data}
        if strategy := self._strategy():
            flags["strategy"] = strategy
        if self.debug:
            flags["debug"] = dict(self.debug)
        return overlaid(_read(self.spec_file) if self.spec_file else {}, flags)

    def _strategy(self) -> dict[str, Any]:
        """The keys of the spec's `strategy` that flags were given for."""
        flags = {"kind": self.strategy, "workers": self.workers, "ps": self.ps}
        return {key: value for key, value in flags.items() if value is not None}

    def wire(self) -> dict[str, Any]:
        """The request as `ZooClient.create_job` takes it; the server resolves it with its own recipes and data roots.

        Raises InvalidSpec for what no server could run.
        """
        from finetune.recipes import overlaid

        return {
            "name": self.name or "",
            "backbone": self.backbone or "",
            "head": self.head or "",
            "data": self.data or "",
            "recipe": self.recipe,
            "start_from": self.start_from,
            "settings": settings_map(self.settings),
            "spec": overlaid(
                _read(self.spec_file) if self.spec_file else {},
                {
                    **({"strategy": strategy} if (strategy := self._strategy()) else {}),
                    **({"debug": dict(self.debug)} if self.debug else {}),
                },
            ),
        }

    def job_spec(self) -> JobSpec:
        """The resolved spec for a run on this machine: paths in DATA become absolute, so any folder can resume it."""
        from finetune.recipes import resolve

        return resolve(recipe=self.recipe, values=_absolute(self.values()), settings=list(self.settings))


def settings_map(settings: Sequence[str]) -> dict[str, str]:
    """`key=value` texts as the wire has them. Raises InvalidSpec: a fault is said before anything is sent."""
    from finetune.spec import with_settings

    for setting in settings:
        with_settings({}, [setting])
    return {key: text for key, _, text in (setting.partition("=") for setting in settings)}


def _read(path: Path) -> dict[str, Any]:
    import yaml

    from finetune.spec import InvalidSpec

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSpec(f"spec file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"spec file {path} is not YAML: {error}") from None
    if not isinstance(value, dict):
        raise InvalidSpec(f"spec file {path} holds {type(value).__name__}, expected keys such as backbone and data")
    return value


def _absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    from finetune.recipes import overlaid

    data = values.get("data")
    location = data.get("location") if isinstance(data, Mapping) else None
    if not isinstance(location, str):
        return dict(values)
    return overlaid(values, {"data": {"location": absolute_data(location)}})


def absolute_data(location: str) -> str:
    """DATA with a local path made absolute; other DATA as it is."""
    kind, colon, path = location.partition(":")
    if kind not in LOCAL_KINDS or not path or "://" in path:
        return location
    return f"{kind}{colon}{Path(path).expanduser().resolve()}"
