"""One command in a process group of its own: started, read, and ended with all that it started."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from asyncsched import CommandFailed
from asyncsched.clock import Clock, Timer

__all__ = ["Command", "Finished"]

#: How long outputs may stay open once the group is gone: whoever holds them has left it.
_LAST_OUTPUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended; of its outputs the end."""

    #: -n: signal n ended it.
    exit_code: int
    stdout: bytes
    stderr: bytes
    is_truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run, and how."""

    argv: Sequence[str]
    cwd: str | None
    env: Mapping[str, str]
    stdin: bytes
    max_output: int
    grace_s: float
    clock: Clock

    async def run(self) -> Finished:
        """Run it to its end; if this is cancelled, end its whole group first. Raises CommandFailed if it cannot be started."""
        process = self._start()
        # It ends by what the process does, and not by a cancellation: that only sends signals.
        following = asyncio.ensure_future(self._follow(process))
        cancelled: asyncio.CancelledError | None = None
        timer: Timer | None = None
        while not following.done():
            try:
                await asyncio.wait([following])
            except asyncio.CancelledError as error:
                if cancelled is None:
                    timer = self._terminate(process)
                else:
                    _signal(process, signal.SIGKILL)
                cancelled = error
        if timer is not None:
            timer.cancel()
        if cancelled is not None:
            raise cancelled
        return following.result()

    def _terminate(self, process: subprocess.Popen[bytes]) -> Timer:
        """Ask the group to end; after its grace it is killed."""
        _signal(process, signal.SIGTERM)
        at = self.clock.monotonic() + self.grace_s
        return self.clock.call_at(at, lambda: _signal(process, signal.SIGKILL))

    async def _follow(self, process: subprocess.Popen[bytes]) -> Finished:
        """Read what it writes until it has ended, and kill what it leaves behind."""
        loop = asyncio.get_running_loop()
        stdout, stderr = _Output(self.max_output), _Output(self.max_output)
        transports: list[asyncio.ReadTransport] = []
        try:
            try:
                for output, pipe in ((stdout, process.stdout), (stderr, process.stderr)):
                    transport, _ = await loop.connect_read_pipe(functools.partial(_same, output), pipe)
                    transports.append(transport)
                await _exited(process)
            finally:
                # While the leader has not been reaped nobody else can have the number of its group.
                _signal(process, signal.SIGKILL)
                process.wait()
            await self._read_on(stdout, stderr)
        finally:
            for transport in transports:
                transport.close()
        return Finished(
            exit_code=process.returncode,
            stdout=bytes(stdout.kept),
            stderr=bytes(stderr.kept),
            is_truncated=stdout.is_truncated or stderr.is_truncated,
        )

    def _start(self) -> subprocess.Popen[bytes]:
        # A file is read as fast or as slowly as the command likes, with nobody to feed it.
        with tempfile.TemporaryFile() as stdin:
            stdin.write(self.stdin)
            stdin.seek(0)
            try:
                return subprocess.Popen(
                    self.argv,
                    cwd=self.cwd,
                    env=self.env,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,
                )
            except OSError as error:
                where = f" in {self.cwd}" if self.cwd else ""
                raise CommandFailed(f"{self.argv[0]!r} cannot be started{where}: {error.strerror}") from error

    async def _read_on(self, *outputs: _Output) -> None:
        """Read what is left in the pipes, which somebody outside of the group may hold open for ever."""
        over = asyncio.get_running_loop().create_future()
        at = self.clock.monotonic() + _LAST_OUTPUT_S
        timer = self.clock.call_at(at, lambda: None if over.done() else over.set_result(None))
        try:
            while not over.done() and (
                open_ := [output.closed for output in outputs if not output.closed.done()]
            ):
                await asyncio.wait([*open_, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()


class _Output(asyncio.Protocol):
    """The end of what comes through a pipe."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.is_truncated = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._limit = limit

    def data_received(self, data: bytes) -> None:
        self.kept += data
        surplus = len(self.kept) - self._limit
        if surplus > 0:
            self.is_truncated = True
            del self.kept[:surplus]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the whole group, unless its leader has been reaped."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


async def _exited(process: subprocess.Popen[bytes]) -> None:
    """Return when the process has ended. It is not reaped by this."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        threading.Thread(target=_wait_in_thread, args=(process, loop, end), daemon=True).start()
        await over
        return
    loop.add_reader(descriptor, end)
    try:
        await over
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _wait_in_thread(
    process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, end: Callable[[], None]
) -> None:
    """Where there are no pidfds: a thread waits."""
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:
        process.wait()
    with contextlib.suppress(RuntimeError):
        # The event loop may have been closed meanwhile.
        loop.call_soon_threadsafe(end)


def _same(output: _Output) -> _Output:
    return output
