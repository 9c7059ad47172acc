"""Web servers of a test, each started as its users start it: asked, told to end, and always ended with the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import httpx

from tests.servers.server import free_port
from tests.support.processes import ROOT, Line
from tests.support.waiting import eventually

__all__ = ["FRAMEWORKS", "WebServer"]

#: How the application of each framework is served: by uvicorn, or by itself.
FRAMEWORKS: Mapping[str, Sequence[str]] = {
    "fastapi": ["uvicorn", "tests.integration.web.fastapi_app:app", "--port"],
    "starlette": ["uvicorn", "tests.integration.web.starlette_app:app", "--port"],
    "litestar": ["uvicorn", "tests.integration.web.litestar_app:app", "--port"],
    "aiohttp": ["tests.integration.web.aiohttp_app"],
}


class WebServer:
    """One application of ``tests.integration.web`` in a process of its own, or in several; ``async with`` serves it."""

    def __init__(
        self,
        framework: str,
        folder: Path,
        store: str,
        *arguments: str,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._port = free_port()
        self._command = [sys.executable, "-m", *FRAMEWORKS[framework], str(self._port), *arguments]
        self._log = folder / "jobs.log"
        self._output = folder / "server.txt"
        self._environment = {"JOBS_STORE": store, "JOBS_LOG": str(self._log), **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=20)

    async def __aenter__(self) -> WebServer:
        self._start()
        try:
            await eventually(self._serves, timeout=60, what=f"a server of {self._command}: {self.output}")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def _start(self) -> None:
        with self._output.open("ab") as output:
            # A group of its own: the workers that a server has started end with it, however the test ends.
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env={**os.environ, **self._environment}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    async def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.output
        try:
            await self._client.get("/jobs/none")
        except httpx.TransportError:
            return False
        return True

    async def ask(self, method: str, path: str, **parameters: str) -> Any:
        """The JSON of its answer."""
        answer = await self._client.request(method, path, params=parameters)
        assert answer.is_success, (answer, answer.text, self.output)
        return answer.json()

    async def state(self, id: str) -> str:
        """What it says of a job."""
        answer: dict[str, str] = await self.ask("GET", f"/jobs/{id}")
        return answer["state"]

    def tell_to_end(self) -> None:
        """As an operator does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> None:
        """Wait until it has, of itself and without a complaint."""
        process = self._process
        assert process is not None
        await eventually(lambda: process.poll() is not None, timeout=60, what="the end of the server")
        # uvicorn lets the signal end it when all is done; others leave by themselves.
        assert process.returncode in (0, -signal.SIGTERM), (process.returncode, self.output)
        assert "Traceback" not in self.output, self.output

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def lines(self) -> list[Line]:
        """What its processes have written down, in that order."""
        found = []
        for line in self._log.read_text().splitlines() if self._log.exists() else []:
            event, job_id, fence, by, at, fire = line.split()
            found.append(Line(event, job_id, int(fence), by, float(at), float(fire)))
        return found

    def count(self, event: str) -> int:
        """How many lines tell of *event*."""
        return Counter(line.event for line in self.lines)[event]
