"""The task that runs a command, and leaves nothing of it behind."""

from __future__ import annotations

import os
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, TypedDict

from asyncsched import CommandFailed, DefinitionError, NoCurrentRun, Retry, Task, current_run
from asyncsched.clock import Clock, SystemClock
from asyncsched.tasks._command import Command, Finished
from asyncsched.tasks._given import task_of
from asyncsched.units import Duration, to_seconds

__all__ = ["ShellResult", "shell"]

#: Of the errors of a command, so much stands in the message.
_SHOWN = 500


class ShellResult(TypedDict):
    """How a command ended. Of long outputs the end is kept."""

    exit_code: int
    stdout: str
    stderr: str
    #: Whether something of the output is missing.
    truncated: bool


_HINTS: Mapping[str, Any] = {
    "command": list[str] | str,
    "cwd": str,
    "env": dict[str, str],
    "stdin": str | bytes,
}


def shell(
    command: Sequence[str] | str | None = None,
    *,
    name: str = "shell",
    use_shell: bool = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    inherit_env: bool = True,
    stdin: str | bytes | None = None,
    expected: int | Collection[int] = (0,),
    max_output: int = 65_536,
    terminate_grace: Duration = 2,
    per_job: Collection[str] | None = None,
    timeout: Duration | None = None,
    retry: Retry | None = None,
) -> Task[..., Coroutine[Any, Any, ShellResult]]:
    """A task that runs *command*, a list of the program and its arguments, and returns a ShellResult. POSIX only.

    With ``use_shell=True`` the command is a string, which /bin/sh interprets: never make one of what others wrote.

    The command runs in a process group of its own. When the run is cancelled or times out the whole group gets SIGTERM, and
    SIGKILL after *terminate_grace*; and what a command leaves behind in its group when it ends is killed. Only what puts itself
    into another session escapes that.

    A job gives the command where it is not fixed here, and then may give cwd, env and stdin too. Where it is fixed, a job may
    give what *per_job* names out of command, cwd, env and stdin, and otherwise nothing. Whoever can write to the store gives
    the arguments of jobs, so fix what must not be theirs to choose.

    :param cwd: where it runs; the directory of this process unless given.
    :param env: variables, added to those of this process unless ``inherit_env=False``; those of a job are added to these.
    :param stdin: what it reads; nothing unless given.
    :param expected: the exit code, or codes, that are a success; any other one raises CommandFailed, with exit_code, stdout and
        stderr.
    :param max_output: bytes of stdout and of stderr that are kept, from the end.
    :param timeout: of a run, unless its job has one; there is none unless given.
    """
    if os.name != "posix":
        raise DefinitionError("shell() needs process groups, which this system does not have")
    if type(max_output) is not int or max_output < 0:
        raise DefinitionError(f"shell(max_output=) must be a number of bytes, 0 or more, not {max_output!r}")
    grace_s = to_seconds(terminate_grace, "shell(terminate_grace=)")
    codes = _codes(expected)
    fixed: dict[str, Any] = {}
    if command is not None:
        fixed["command"] = _checked(command, use_shell)
    for parameter, value in (("cwd", None if cwd is None else os.fspath(cwd)), ("stdin", stdin)):
        if value is not None:
            fixed[parameter] = value
    basis = {**(os.environ if inherit_env else {}), **_variables(env or {})}
    hints = dict(_HINTS)

    async def call(given: dict[str, Any]) -> ShellResult:
        argv = _checked(given["command"], use_shell)
        stdin = given.get("stdin", b"")
        finished = await Command(
            argv=["/bin/sh", "-c", argv] if isinstance(argv, str) else argv,
            cwd=given.get("cwd"),
            env={**basis, **given.get("env", {})},
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
            max_output=max_output,
            grace_s=grace_s,
            clock=_clock(),
        ).run()
        return _result(finished, "a shell command" if use_shell else repr(argv[0]), codes, name)

    return task_of(call, name, hints, fixed, per_job, timeout=timeout, retry=retry)


def _variables(env: Mapping[str, str]) -> Mapping[str, str]:
    """Messages do not show values: they may be secret."""
    for variable, value in env.items():
        if not isinstance(variable, str) or not isinstance(value, str):
            raise DefinitionError(
                f"shell(env=) takes strings, and {variable!r} is given a value of {type(value).__name__}"
            )
        if not variable or "=" in variable or "\0" in variable + value:
            raise DefinitionError(
                f"no variable can be {variable!r} or have a NUL in it: shell(env=) takes names without '='"
            )
    return env


def _codes(expected: int | Collection[int]) -> frozenset[int]:
    codes = [expected] if isinstance(expected, int) else list(expected)
    if not codes or not all(type(code) is int for code in codes):
        raise DefinitionError(f"shell(expected=) must be an exit code or a list of them, not {expected!r}")
    return frozenset(codes)


def _checked(command: Sequence[str] | str, use_shell: bool) -> list[str] | str:
    """Messages do not show what a command was given: it may be secret."""
    if isinstance(command, str):
        if use_shell:
            return command
        raise DefinitionError(
            "a command is a list of the program and its arguments; for a string that a shell interprets say use_shell=True"
        )
    if use_shell:
        raise DefinitionError("with use_shell=True a command is a string; leave that out for a list")
    argv = list(command)
    if not argv or not all(isinstance(part, str) and "\0" not in part for part in argv) or not argv[0]:
        raise DefinitionError("a command is a list of strings without NUL, the first one being the program")
    return argv


def _clock() -> Clock:
    try:
        return current_run().clock
    except NoCurrentRun:
        return SystemClock()


def _result(finished: Finished, what: str, expected: frozenset[int], task: str) -> ShellResult:
    stdout, stderr = (text.decode(errors="replace") for text in (finished.stdout, finished.stderr))
    code = finished.exit_code
    if code not in expected:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = stderr.strip()[-_SHOWN:]
        raise CommandFailed(
            f"{what} {how}" + (f": {said}" if said else ""),
            exit_code=code,
            stdout=stdout,
            stderr=stderr,
            task=task,
        )
    return ShellResult(exit_code=code, stdout=stdout, stderr=stderr, truncated=finished.is_truncated)
