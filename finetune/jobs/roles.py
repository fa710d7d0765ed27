"""Roles: what has become of each process of a job, told from the job's events. No TensorFlow.

Takes JobEvents. Gives RoleStates. Next: `finetune get`, `server.convert`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from finetune.jobs.job import OWNED, JobEvent
from zoo.describe import rfc3339

_BY_CODE = {0: "done", 1: "failed", 75: "interrupted", 76: "lost another"}


@dataclass(frozen=True, kw_only=True)
class RoleState:
    """`state`: running, done, failed, interrupted (saved, to be resumed), lost another (process of its cluster), killed
    (by a signal), or stopped (by the supervisor, with the job). `since`: when it came to that. `starts`: how often a
    process was started for the role. `exit_code`: negative the signal; None while it runs and where nobody saw it."""

    role: str
    state: str
    since: datetime
    starts: int
    pid: int | None
    exit_code: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "state": self.state,
            "since": rfc3339(self.since),
            "starts": self.starts,
            "pid": self.pid,
            "exit_code": self.exit_code,
        }


def role_states(events: Iterable[JobEvent]) -> list[RoleState]:
    """In the order in which the roles first came."""
    states: dict[str, RoleState] = {}
    for event in events:
        role = event.body.get("role")
        if event.kind == "role" and isinstance(role, str):
            if event.body.keys() & {"pid", "code"}:  # else it is only something that the role had to say
                states[role] = _changed(states.get(role), event, role)
        elif event.kind == "state" and event.state not in OWNED:
            states |= {
                name: replace(state, state="stopped", since=event.time, pid=None)
                for name, state in states.items()
                if state.state == "running"
            }
    return list(states.values())


def _changed(before: RoleState | None, event: JobEvent, role: str) -> RoleState:
    starts = before.starts if before is not None else 0
    told = event.body.get("starts")  # by a role itself, where it was placed by hand
    pid, code = event.body.get("pid"), event.body.get("code")
    if code is not None:
        state = "killed" if code < 0 else _BY_CODE.get(code, "failed")
        return RoleState(role=role, state=state, since=event.time, starts=told or starts, pid=None, exit_code=code)
    return RoleState(role=role, state="running", since=event.time, starts=told or starts + 1, pid=pid, exit_code=None)
