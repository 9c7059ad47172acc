"""Every Python example of README.md and docs/ is run as it stands.

A fenced ``python`` block is preceded by ``<!-- example: FILE, HOW -->``, or by ``<!-- example: inside -->``. The blocks of a page
are written to one folder under their file names, and then, in the order of the page:

- no HOW: ``python FILE`` ends by itself, with exit code 0;
- ``interrupt``: ``python FILE`` runs on, and ends with exit code 0 on SIGINT;
- ``run``: ``asyncsched run MODULE:scheduler`` runs on, also while the later examples of the page run, and ends likewise;
- ``pytest``: ``pytest FILE`` passes;
- ``postgres``: ``python FILE`` ends by itself, with ``DATABASE_URL`` set to a PostgreSQL of the tests;
- ``module``: another example imports it;
- ``fastapi``, ``starlette``, ``litestar``, ``aiohttp``, ``lifespan``: a server is started on it, asked, and stopped;
- ``inside``: run with the page's other blocks of this kind, where ``scheduler`` is a started scheduler.
"""

import ast
import asyncio
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asyncsched import Scheduler
from tests.servers.running import Servers

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Seconds that an example may take before it has failed.
BOUND_S = 30.0
BLOCK = re.compile(
    r"(?:<!-- example: (?P<file>[\w.]+)(?:, (?P<how>\w+))? -->\n)?```python\n(?P<source>.*?)^```$",
    re.S | re.M,
)
WEB = frozenset({"fastapi", "starlette", "litestar", "aiohttp", "lifespan"})
HOWS = frozenset({"", "interrupt", "run", "pytest", "module", "inside", "postgres"}) | WEB


@dataclass(frozen=True)
class Example:
    page: Path
    line: int
    file: str
    how: str
    source: str


def examples_of(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("source")) + 1
        file, how = match["file"] or "", match["how"] or ""
        if file == "inside":
            file, how = "", "inside"
        found.append(Example(page, line, file, how, match["source"]))
    return found


EXAMPLES = [example for page in PAGES for example in examples_of(page)]
PAGES_WITH_FILES = sorted({e.page for e in EXAMPLES if e.file})
PAGES_WITH_FRAGMENTS = sorted({e.page for e in EXAMPLES if e.how == "inside"})


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_python_block_says_how_it_is_run() -> None:
    blocks = sum(page.read_text(encoding="utf-8").count("```python") for page in PAGES)
    assert blocks == len(EXAMPLES) > 15
    lost = [
        f"{name_of(e.page)}:{e.line}"
        for e in EXAMPLES
        if e.how not in HOWS or not (e.file or e.how == "inside")
    ]
    assert not lost, f"an example lacks its comment, or has one that is not understood: {lost}"


# -- examples that are files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES_WITH_FILES, ids=name_of)
def test_the_files_of_a_page_run_as_they_stand(
    page: Path,
    tmp_path: Path,
    stores: Sequence[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [example for example in examples_of(page) if example.file]
    if any(example.how == "postgres" for example in files):
        if "postgres" not in stores:
            pytest.skip("postgres was left out by --stores")
        servers: Servers = request.getfixturevalue("servers")
        monkeypatch.setenv("DATABASE_URL", servers.url("postgres"))
    for example in files:
        (tmp_path / example.file).write_text(example.source, encoding="utf-8")
    services = [e for e in files if e.how == "run"]
    with running(services, tmp_path):
        for example in files:
            if example.how != "run":
                WAYS[example.how](example, tmp_path)


def test_the_tutorial_shows_what_it_says(tmp_path: Path) -> None:
    page = ROOT / "docs" / "tutorial" / "index.md"
    files = [example for example in examples_of(page) if example.file]
    for example in files:
        (tmp_path / example.file).write_text(example.source, encoding="utf-8")
    assert run_to_the_end([sys.executable, "hello.py"], tmp_path) == "hello\n" * 3
    with running([example for example in files if example.how == "run"], tmp_path):
        assert "asked for" in run_to_the_end([sys.executable, "send.py"], tmp_path)
        look = [sys.executable, "look.py"]
        assert eventually(lambda: "app:send_email attempt 2 succeeded" in run_to_the_end(look, tmp_path))
        seen = run_to_the_end(look, tmp_path)
        assert "app:send_email attempt 1 failed ConnectionError: the mail server is busy" in seen
        assert "app:tick attempt 1 succeeded" in seen
        listed = run_to_the_end(
            [sys.executable, "-m", "asyncsched", "jobs", "--store", "sqlite:///jobs.db"], tmp_path
        )
        assert [line.split()[0] for line in listed.splitlines()] == ["id", "tick", "reminder-42"]


def run_script(example: Example, folder: Path) -> None:
    run_to_the_end([sys.executable, example.file], folder)


def run_pytest(example: Example, folder: Path) -> None:
    run_to_the_end([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", example.file], folder)


def run_until_interrupted(example: Example, folder: Path) -> None:
    with service([sys.executable, example.file], folder):
        # The example runs for ever in a process of its own: this is how long it is watched.
        time.sleep(1.5)


def serve_fastapi(example: Example, folder: Path) -> None:
    module = example.file.removesuffix(".py")
    port = free_port()
    with service([sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port)], folder):
        asked = ask(port, "/reports/ada", "POST")
        assert asked == {"job": "report/ada"}
        assert eventually(lambda: ask(port, "/reports/ada")["state"] == "done")
        assert ask(port, "/reports/ada")["report"] == "the report for ada"


def serve_asgi(example: Example, folder: Path) -> None:
    module = example.file.removesuffix(".py")
    port = free_port()
    with service([sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port)], folder):
        use_images(port)


def use_images(port: int) -> None:
    assert "job" in ask(port, "/resize/cat.png", "POST")
    assert eventually(lambda: [job["id"] for job in ask(port, "/jobs")] == ["clean-up"])


def serve_aiohttp(example: Example, folder: Path) -> None:
    module = example.file.removesuffix(".py")
    port = free_port()
    start = (
        f"from aiohttp import web; from {module} import app; web.run_app(app, host='127.0.0.1', port={port})"
    )
    with service([sys.executable, "-c", start], folder):
        use_images(port)


def pass_through_the_lifespan(example: Example, folder: Path) -> None:
    module = example.file.removesuffix(".py")
    script = (
        f"import asyncio; from {module} import app, scheduler\n"
        "async def main():\n"
        "    async with app.router.lifespan_context(app): assert scheduler.is_running\n"
        "    assert not scheduler.is_running\n"
        "asyncio.run(main())"
    )
    run_to_the_end([sys.executable, "-c", script], folder)


WAYS: dict[str, Callable[[Example, Path], None]] = {
    "": run_script,
    "interrupt": run_until_interrupted,
    "pytest": run_pytest,
    "postgres": run_script,
    "module": lambda example, folder: None,
    "fastapi": serve_fastapi,
    "starlette": serve_asgi,
    "litestar": serve_asgi,
    "aiohttp": serve_aiohttp,
    "lifespan": pass_through_the_lifespan,
}


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def run_to_the_end(command: list[str], folder: Path) -> str:
    answer = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert answer.returncode == 0, f"{command} left with {answer.returncode}:\n{answer.stdout}{answer.stderr}"
    return answer.stdout


@contextmanager
def running(services: list[Example], folder: Path) -> Iterator[None]:
    """Each in a process of its own, by the command line, until the block ends."""
    if not services:
        yield
        return
    module = services[0].file.removesuffix(".py")
    with service([sys.executable, "-m", "asyncsched", "run", f"{module}:scheduler"], folder):
        # Another process, on the real clock: time to start, and below time to run what is due.
        time.sleep(1.0)
        with running(services[1:], folder):
            yield
        time.sleep(1.0)


@contextmanager
def service(command: list[str], folder: Path) -> Iterator[None]:
    """Run *command* meanwhile; it must not end before, and leaves with exit code 0 on SIGINT."""
    log = folder / "service.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=output, stderr=output)
        try:
            yield
            assert process.poll() is None, f"{command} ended before it was told to:\n{log.read_text()}"
            process.send_signal(signal.SIGINT)
            assert process.wait(BOUND_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def ask(port: int, path: str, method: str = "GET") -> Any:
    """The JSON that the server answers; it may still be starting."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    over = time.monotonic() + BOUND_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > over:
                raise
            time.sleep(0.1)  # Another process: no event tells when it listens. Bounded by the line above.


def eventually(holds: Callable[[], bool]) -> bool:
    over = time.monotonic() + 10
    while not holds() and time.monotonic() < over:
        time.sleep(0.05)  # Another process: no event tells what it has done.
    return holds()


# -- examples inside of a started scheduler ----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("page", PAGES_WITH_FRAGMENTS, ids=name_of)
async def test_the_fragments_of_a_page_run_inside_of_a_started_scheduler(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    async with asyncio.timeout(BOUND_S), Scheduler() as module.scheduler:  # type: ignore[attr-defined]  # a module made here
        for example in examples_of(page):
            if example.how == "inside":
                await run_fragment(example, vars(module))


async def run_fragment(example: Example, names: dict[str, Any]) -> None:
    """Compiled with the lines of its page, so that a traceback says where it stands."""
    source = "\n" * (example.line - 1) + example.source
    code = compile(source, str(example.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    answer = eval(code, names)
    if inspect.isawaitable(answer):
        await answer
