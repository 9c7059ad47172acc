"""``asyncsched run``: a scheduler, stand-alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.cli.asking import Cli, environment, refusal

APP = """
import asyncio
from asyncsched import Scheduler, every

class shop:
    scheduler = Scheduler("sqlite:///jobs.db", id="shop")

other = Scheduler()
number = 42

@shop.scheduler.job(every(seconds=0.2), id="work", run_immediately=True)
async def work():
    print("begun", flush=True)
    await asyncio.sleep(1)
    print("done", flush=True)
"""


class Service:
    """``asyncsched run``, under way."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asyncsched", "run", *args],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_line(self, expected: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == expected

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_end_and_leaves_with_0(app: Path, number: signal.Signals) -> None:
    service = Service(app, "app:shop.scheduler")
    service.wait_line("begun")
    service.process.send_signal(number)
    code, out, err = service.end()
    assert (code, out) == (0, "done\n")
    assert "app:shop.scheduler runs as shop" in err
    assert "app:shop.scheduler has stopped" in err


def test_a_drain_of_nothing_cancels_at_once(app: Path) -> None:
    service = Service(app, "app:shop.scheduler", "--drain", "0")
    service.wait_line("begun")
    service.process.send_signal(signal.SIGTERM)
    code, out, _ = service.end()
    assert (code, out) == (0, "")


def test_a_second_signal_ends_the_drain(app: Path) -> None:
    (app / "app.py").write_text(APP.replace("sleep(1)", "sleep(60)"))
    service = Service(app, "app:shop.scheduler")
    service.wait_line("begun")
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # Another process: it is shown that one signal does not end it.
    assert service.process.poll() is None
    service.process.send_signal(signal.SIGTERM)
    code, out, _ = service.end()
    assert (code, out) == (0, "")


def test_the_log_level_is_obeyed(app: Path) -> None:
    service = Service(app, "app:shop.scheduler", "--log-level", "error")
    service.wait_line("begun")
    service.process.send_signal(signal.SIGINT)
    assert service.end() == (0, "done\n", "")


def test_a_module_that_sets_up_logging_keeps_it(app: Path) -> None:
    setup = "import logging\nlogging.basicConfig(level=logging.INFO, format='mine: %(message)s')\n"
    (app / "app.py").write_text(setup + APP)
    service = Service(app, "app:shop.scheduler")
    service.wait_line("begun")
    service.process.send_signal(signal.SIGINT)
    _, _, err = service.end()
    assert "mine: app:shop.scheduler runs as shop" in err


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("app", "'app' is no reference to a scheduler: write module:attribute"),
        ("app.py:scheduler", "no module 'app.py'"),
        ("./app:scheduler", "'./app:scheduler' is no reference to a scheduler"),
        ("app:", "'app:' is no reference to a scheduler"),
        (".app:scheduler", "'.app:scheduler' is no reference to a scheduler"),
        ("ap:scheduler", "no module 'ap' is found from "),
        ("app:schedular", "module 'app' has no 'schedular'; write app:other"),
        ("app:shop.worker", "module 'app' has no 'shop.worker'; write app:other"),
        ("app:number", "app:number is a int, not a Scheduler; write app:other"),
        ("json:loads", "it holds no scheduler at all"),
    ],
)
@pytest.mark.usefixtures("app")
def test_a_wrong_reference_is_told_with_its_remedy(cli: Cli, reference: str, said: str) -> None:
    assert said in refusal(cli("run", reference))


def test_a_module_that_fails_shows_its_own_traceback_and_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def read():\n    return {}['port']\n\nread()\n")
    answer = cli("run", "broken:scheduler")
    assert answer.returncode == 1
    *trace, last = answer.stderr.splitlines()
    assert f"module 'broken' cannot be imported: KeyError: 'port' ({tmp_path}/broken.py, line 2)" in last
    assert trace[0].startswith("Traceback")
    assert "importlib" not in answer.stderr


def test_a_module_that_lacks_another_is_not_taken_for_missing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    answer = cli("run", "broken:scheduler")
    assert answer.returncode == 1
    assert (
        "module 'broken' cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"
        in answer.stderr
    )


def test_a_refusal_of_asyncsched_in_the_module_is_one_line_with_its_place(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from asyncsched import *\n\nscheduler = Scheduler('gopher://jobs')\n"
    )
    said = refusal(cli("run", "broken:scheduler"))
    assert "UnknownStoreError: no store serves gopher://" in said
    assert said.endswith(f"({tmp_path}/broken.py, line 3)")


def test_a_store_that_cannot_be_opened_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from asyncsched import *\nscheduler = Scheduler('sqlite:///no/such/folder/jobs.db')\n"
    )
    assert "no/such/folder/jobs.db" in refusal(cli("run", "app:scheduler"))
