"""Blocking calls (disk, database) out of the event loop.

Takes a function. Gives its result, awaited. Next: the servicers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


async def in_thread(
    threads: Executor, call: Callable[_Arguments, _Result], *arguments: _Arguments.args, **keywords: _Arguments.kwargs
) -> _Result:
    """`call(*arguments, **keywords)` in the pool. A cancelled caller's call is dropped if it hasn't begun."""
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: call(*arguments, **keywords))
