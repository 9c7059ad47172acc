"""The task that says back what it is told."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from asyncsched import NoCurrentRun, Task, current_run
from asyncsched.tasks._given import task_of

__all__ = ["echo"]


def echo(message: str | None = None, *, name: str = "echo") -> Task[..., Coroutine[Any, Any, str]]:
    """A task that logs *message* and returns it: to see that a scheduler, a trigger or a store is at work.

    A job gives the message where it is not fixed here.
    """

    async def call(given: dict[str, Any]) -> str:
        text: str = given["message"]
        try:
            current_run().logger.info("%s", text)
        except NoCurrentRun:
            # Called by hand, it has only its answer.
            return text
        return text

    fixed = {} if message is None else {"message": message}
    return task_of(call, name, {"message": str}, fixed, None, timeout=None, retry=None)
