"""Jobs and their events as the wire has them, in the JSON that the local path gives.

Takes messages of the FineTune service. Gives `Job.to_json`, `RoleState.to_json`, `JobEvent.to_json`. Next:
`finetune.client`.
"""

from __future__ import annotations

from typing import Any

from finetune.wire import from_struct, from_timestamp
from protos.modelzoo.v1 import finetune_pb2
from zoo.describe import rfc3339

_STATE_PREFIX = "JOB_STATE_"


def _state(number: int) -> str:
    return finetune_pb2.JobState.Name(number).removeprefix(_STATE_PREFIX)


def _time(message: Any, field: str) -> str | None:
    return rfc3339(from_timestamp(getattr(message, field))) if message.HasField(field) else None


def job_json(message: finetune_pb2.FineTuneJob) -> dict[str, Any]:
    """The same JSON as `finetune.jobs.job.Job.to_json`."""
    return {
        "id": message.id,
        "name": message.name,
        "state": _state(message.state),
        "spec": from_struct(message.spec),
        "fence": message.fence,
        "owner": message.owner or None,
        "lease_until": _time(message, "lease_expire_time"),
        "attempts": message.attempts,
        "created": _time(message, "create_time"),
        "updated": _time(message, "update_time"),
        "error": _error(message.error) if message.HasField("error") else None,
        "result": from_struct(message.result) if message.HasField("result") else None,
        "progress": _progress(message.progress) if message.HasField("progress") else None,
    }


def roles_json(message: finetune_pb2.FineTuneJob) -> list[dict[str, Any]]:
    """The same JSON as `finetune.jobs.roles.RoleState.to_json`."""
    return [
        {
            "role": role.role,
            "state": role.state,
            "since": _time(role, "since_time"),
            "starts": role.starts,
            "pid": role.pid if role.HasField("pid") else None,
            "exit_code": role.exit_code if role.HasField("exit_code") else None,
        }
        for role in message.roles
    ]


def event_json(message: finetune_pb2.JobEvent) -> dict[str, Any]:
    """The same JSON as `finetune.jobs.job.JobEvent.to_json`, and `job_ended` in the last one."""
    event = {
        "cursor": message.cursor,
        "job": message.job_id,
        "time": _time(message, "time"),
        "kind": message.kind,
        "state": _state(message.state),
        "message": message.message,
        "role": message.role or None,
        "progress": _progress(message.progress) if message.HasField("progress") else None,
    }
    return (
        event | {"job_ended": job_json(message.job) | {"roles": roles_json(message.job)}}
        if message.HasField("job")
        else event
    )


def _error(message: finetune_pb2.JobError) -> dict[str, Any]:
    return {
        "code": message.code,
        "reason": message.reason,
        "message": message.message,
        "hint": message.hint or None,
        "details": dict(message.details),
    }


def _progress(message: finetune_pb2.JobProgress) -> dict[str, Any]:
    return _plain(message) | {
        "warnings": list(message.warnings),
        "input": _plain(message.input) if message.HasField("input") else None,
    }


def _plain(message: finetune_pb2.JobProgress | finetune_pb2.JobInput) -> dict[str, Any]:
    """Every field but messages; None for one that is absent."""
    return {
        field.name: getattr(message, field.name) if not field.has_presence or message.HasField(field.name) else None
        for field in message.DESCRIPTOR.fields
        if field.message_type is None
    }
