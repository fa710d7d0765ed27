"""Messages of the wire to our values and back. Nothing is decided here but what a message means.

Takes requests and values. Gives values and responses. Next: `server.servicers`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from finetune.jobs.job import Job, JobEvent
from finetune.jobs.roles import RoleState
from finetune.models.heads.captioner import FILE_ARGUMENTS
from finetune.recipes import overlaid, resolve
from finetune.spec import HeadConfig, InvalidSpec, JobSpec
from finetune.wire import from_struct, to_struct, to_timestamp
from protos.modelzoo.v1 import catalog_pb2, finetune_pb2
from server.data_roots import Roots, known_location, known_split, server_file, server_location, server_split
from zoo.catalog import ModelVersion
from zoo.describe import describe
from zoo.errors import InvalidArgument
from zoo.search.index import Page

_MAX_PAGE = 1000
_PAGE = 100


class InvalidPage(InvalidArgument):
    """A page size or page token that no answer of this server gave."""


def job_spec(message: finetune_pb2.FineTuneSpec, roots: Roots) -> JobSpec:
    """The resolved spec of a request. Weakest first: recipe, `spec`, the typed fields, `settings`.

    Raises InvalidSpec, InvalidName, DataNotOnServer, UnknownData.
    """
    typed: dict[str, Any] = {}
    for key in ("name", "backbone", "start_from"):
        if getattr(message, key):
            typed[key] = getattr(message, key)
    if message.head:
        typed["head"] = {"kind": message.head}
    if message.data:
        typed["data"] = {"location": message.data}
    if strategy := {key: value for key in ("kind", "workers", "ps") if (value := getattr(message.strategy, key))}:
        typed["strategy"] = strategy
    settings = [f"{key}={value}" for key, value in sorted(message.settings.items())]
    values = overlaid(from_struct(message.spec), typed)
    asked = resolve(recipe=message.recipe or None, values=values, settings=settings)
    location = server_location(asked.data.location, roots)
    data = asked.data.model_copy(update={"location": location, "split": server_split(asked.data.split, roots)})
    return asked.model_copy(update={"data": data, "head": _server_head(asked.head, roots)})


def _server_head(head: HeadConfig, roots: Roots) -> HeadConfig:
    """The head's arguments, with the files that some of them may name put under their roots."""
    named = {key: head.arguments[key] for key in FILE_ARGUMENTS if isinstance(head.arguments.get(key), str)}
    if not named:
        return head
    paths = {key: server_file(str(name), str(name), roots) for key, name in named.items()}
    return head.model_copy(update={"arguments": {**head.arguments, **paths}})


def evaluation(message: finetune_pb2.EvaluateVersionRequest, version: ModelVersion, roots: Roots) -> dict[str, Any]:
    """The arguments of `finetune.training.evaluate.evaluate_version`; every path in them lies under a data root.

    Raises DataNotOnServer, UnknownData, InvalidSpec.
    """
    settings = dict(message.settings)
    if "data.location" in settings:
        raise InvalidSpec("setting data.location: name the data in `data`")
    trained_on = (version.manifest.spec or {}).get("data") or {}
    known = trained_on if isinstance(trained_on, dict) else {}
    split = settings.get("data.split", known.get("split"))
    if isinstance(split, str):
        settings["data.split"] = server_split(split, roots) if "data.split" in settings else known_split(split, roots)
    location = str(known.get("location") or "")
    return {
        "reference": version.reference,
        "location": server_location(message.data, roots) if message.data else known_location(location, roots),
        "split": message.split or "test",
        "settings": [f"{key}={value}" for key, value in sorted(settings.items())],
        "seed": message.seed if message.HasField("seed") else None,
    }


def evaluated(result: Mapping[str, Any]) -> finetune_pb2.EvaluateVersionResponse:
    return finetune_pb2.EvaluateVersionResponse(
        reference=result["reference"],
        split=result["split"],
        num_examples=result["num_examples"],
        metrics=to_struct(result["metrics"]),
        bad_records=[finetune_pb2.BadRecord(id=one["id"], reason=one["reason"]) for one in result["bad_records"]],
    )


def model_version(version: ModelVersion) -> catalog_pb2.ModelVersion:
    manifest = version.manifest
    return catalog_pb2.ModelVersion(
        name=version.name,
        version=version.number,
        digest=version.digest,
        aliases=version.aliases,
        create_time=to_timestamp(version.created),
        description=to_struct(describe(version)),
        architecture=manifest.architecture.name,
        components=[
            catalog_pb2.Component(name=c.name, digest=c.digest, size_bytes=c.bytes, num_tensors=c.num_tensors)
            for c in manifest.components
        ],
        head_kind=manifest.head.kind if manifest.head else "",
        parent=manifest.lineage.parent or "",
    )


def catalog_page(page: Page) -> catalog_pb2.ListModelsResponse:
    return catalog_pb2.ListModelsResponse(
        models=[model_version(version) for version in page.versions],
        next_page_token=page.next_page_token,
        problems=[
            catalog_pb2.CatalogProblem(name=one.name, version=one.version or 0, message=one.message)
            for one in page.problems
        ],
    )


def job(value: Job, roles: Sequence[RoleState] = ()) -> finetune_pb2.FineTuneJob:
    return finetune_pb2.FineTuneJob(
        id=value.id,
        name=value.name,
        state=_state(value.state),
        spec=to_struct(value.spec.to_json()),
        fence=value.fence,
        owner="" if value.owner is None else str(value.owner),
        lease_expire_time=to_timestamp(value.lease_until),
        attempts=value.attempts,
        create_time=to_timestamp(value.created),
        update_time=to_timestamp(value.updated),
        error=None if value.error is None else _error(value.error),
        result=None if value.result is None else to_struct(value.result),
        progress=None if value.progress is None else _progress(value.progress),
        published=str((value.result or {}).get("reference", "")),
        roles=[
            finetune_pb2.JobRole(
                role=one.role,
                state=one.state,
                since_time=to_timestamp(one.since),
                starts=one.starts,
                pid=one.pid,
                exit_code=one.exit_code,
            )
            for one in roles
        ],
    )


def event(value: JobEvent, ended: Job | None, roles: Sequence[RoleState] = ()) -> finetune_pb2.JobEvent:
    return finetune_pb2.JobEvent(
        cursor=value.cursor,
        job_id=value.job,
        time=to_timestamp(value.time),
        kind=value.kind,
        state=_state(value.state),
        message=value.message,
        progress=_progress(value.body) if value.kind == "progress" else None,
        job=None if ended is None else job(ended, roles),
        role=str(value.body.get("role", "")) if value.kind == "role" else "",
    )


def _state(state: str) -> str:
    """The enum value's name, which protobuf takes for its number."""
    return f"JOB_STATE_{state}"


def _error(value: Mapping[str, Any]) -> finetune_pb2.JobError:
    return finetune_pb2.JobError(
        code=value.get("code") or "",
        reason=value.get("reason") or "",
        message=value.get("message") or "",
        hint=value.get("hint") or "",
        details={key: str(detail) for key, detail in (value.get("details") or {}).items()},
    )


def _progress(value: Mapping[str, Any]) -> finetune_pb2.JobProgress:
    told = _known(finetune_pb2.JobProgress.DESCRIPTOR.fields_by_name, {**value, "input": None})
    if value.get("input"):
        told["input"] = finetune_pb2.JobInput(**_known(finetune_pb2.JobInput.DESCRIPTOR.fields_by_name, value["input"]))
    return finetune_pb2.JobProgress(**told)


def _known(names: Iterable[str], value: Mapping[str, Any]) -> dict[str, Any]:
    """What the message has a field for, and is known."""
    return {key: value[key] for key in names if value.get(key) is not None}


def page_size(asked: int) -> int:
    """Raises InvalidPage."""
    if asked < 0:
        raise InvalidPage(f"page_size is {asked}, expected 0 (meaning {_PAGE}) to {_MAX_PAGE}")
    return min(asked or _PAGE, _MAX_PAGE)


def page_token(*place: str) -> str:
    """Where the next page begins, for the client to hand back."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def page_place(token: str, length: int) -> list[str] | None:
    """What `page_token` was given; None for the first page. Raises InvalidPage."""
    if not token:
        return None
    try:
        place = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (binascii.Error, UnicodeError, ValueError):
        place = None
    if not (isinstance(place, list) and len(place) == length and all(isinstance(part, str) for part in place)):
        raise InvalidPage(f"page_token {token[:80]!r} is none that this method gave")
    return place


def jobs_after(token: str) -> tuple[datetime, str] | None:
    """Raises InvalidPage."""
    place = page_place(token, 2)
    if place is None:
        return None
    try:
        return datetime.fromtimestamp(float(place[0]), tz=UTC), place[1]
    except (ValueError, OverflowError, OSError):
        raise InvalidPage(f"page_token {token[:80]!r} is none that this method gave") from None


def jobs_token(last: Job) -> str:
    return page_token(repr(last.created.timestamp()), last.id)
