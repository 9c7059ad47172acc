"""The task shell: what it runs, what it gives, and that nothing of it is left behind."""

import asyncio
import fcntl
import logging
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncsched import CommandFailed, DefinitionError, Run, Scheduler
from asyncsched.tasks import shell
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


def python(source: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", source, *map(str, arguments)]


#: Holds a lock on the file argv[1] for as long as it lives; argv[2] says what it does about SIGTERM.
HOLD = """
import fcntl, signal, sys, time
if sys.argv[2] == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("held")
file.flush()
time.sleep(600)
"""
#: Starts what its arguments say, and does what argv[1] says: waits for it, or leaves.
START = """
import subprocess, sys
child = subprocess.Popen(sys.argv[2:])
if sys.argv[1] == "wait":
    child.wait()
"""


def is_held(path: Path) -> bool:
    """Whether a process that lives holds the lock."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return path.read_text() == "held"
    return False


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def real(path: Path) -> Path:
    return path.resolve()


async def run_of(task: Any, timeout: float | None = None, **kwargs: Any) -> Run:
    """The one run of a job of *task* in a scheduler."""
    scheduler = Scheduler()
    async with running(scheduler):
        await scheduler.add_job(scheduler.register(task), id="x", kwargs=kwargs, timeout=timeout)
        await scheduler.wait_job("x", timeout=30)
        [run] = await scheduler.history.runs("x")
        return run


# -- what it gives -------------------------------------------------------------------------------------------------------


async def test_the_result_has_the_exit_code_and_both_outputs() -> None:
    run = await run_of(shell(python("import sys; print('out'); print('err', file=sys.stderr)")))
    assert run.result == {"exit_code": 0, "stdout": "out\n", "stderr": "err\n", "truncated": False}


async def test_another_exit_code_than_expected_is_a_failure_with_what_was_written() -> None:
    with pytest.raises(CommandFailed) as raised:
        await shell(python("import sys; print('so far'); sys.exit('went wrong')"), name="backup")()
    error = raised.value
    assert (error.exit_code, error.stdout, error.stderr, error.task) == (
        1,
        "so far\n",
        "went wrong\n",
        "backup",
    )
    assert str(error) == f"{sys.executable!r} ended with exit code 1: went wrong"
    run = await run_of(shell(python("raise SystemExit(3)")))
    assert (run.outcome, run.error) == ("failed", f"CommandFailed: {sys.executable!r} ended with exit code 3")


async def test_which_exit_codes_are_expected_is_declared() -> None:
    task = shell(python("raise SystemExit(3)"), expected=[0, 3])
    assert (await task())["exit_code"] == 3
    with pytest.raises(CommandFailed):
        await shell(["true"], expected=[3])()
    assert (await shell(python("raise SystemExit(3)"), expected=3)())["exit_code"] == 3


async def test_a_command_that_a_signal_ends_has_its_number_as_a_negative_code() -> None:
    with pytest.raises(CommandFailed, match="signal 9") as raised:
        await shell(python("import os; os.kill(os.getpid(), 9)"))()
    assert raised.value.exit_code == -9


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"command": ["/no/such/program"]}, "'/no/such/program' cannot be started: No such file"),
        ({"command": ["true"], "cwd": "/no/such/place"}, "cannot be started in /no/such/place"),
    ],
    ids=["program", "cwd"],
)
async def test_what_cannot_be_started_says_why(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(CommandFailed, match=reason) as raised:
        await shell(**options)()
    assert raised.value.exit_code is None


async def test_of_a_long_output_the_end_is_kept() -> None:
    source = (
        "import sys; print('x' * 10_000_000 + 'the end', end=''); print('short', end='', file=sys.stderr)"
    )
    result = await shell(python(source), max_output=20)()
    assert result == {"exit_code": 0, "stdout": "x" * 13 + "the end", "stderr": "short", "truncated": True}


async def test_output_that_is_no_text_is_shown_all_the_same() -> None:
    result = await shell(python("import sys; sys.stdout.buffer.write(b'a\\xff\\x00b')"))()
    assert result["stdout"] == "a\N{REPLACEMENT CHARACTER}\0b"


@pytest.mark.parametrize("stdin", ["gr\u00fc\u00dfe", b"x" * 1_000_000], ids=["text", "bytes"])
async def test_a_command_reads_its_stdin(stdin: str | bytes) -> None:
    source = "import sys; data = sys.stdin.buffer.read(); print(len(data), data[:4])"
    data = stdin.encode() if isinstance(stdin, str) else stdin
    assert (await shell(python(source), stdin=stdin)())["stdout"] == f"{len(data)} {data[:4]!r}\n"


async def test_without_a_stdin_a_command_reads_nothing() -> None:
    assert (await shell(python("import sys; print(repr(sys.stdin.read()))"))())["stdout"] == "''\n"


# -- where it runs -------------------------------------------------------------------------------------------------------


async def test_a_command_runs_in_its_directory(tmp_path: Path) -> None:
    assert (await shell(["pwd", "-P"], cwd=tmp_path)())["stdout"] == f"{real(tmp_path)}\n"


async def test_variables_are_added_to_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_PROCESS", "a")
    source = "import os; print(os.environ.get('OF_THE_PROCESS'), os.environ.get('OF_THE_TASK'))"
    own = {"OF_THE_TASK": "b"}
    assert (await shell(python(source), env=own)())["stdout"] == "a b\n"
    assert (await shell(python(source), env=own, inherit_env=False)())["stdout"] == "None b\n"


async def test_no_shell_reads_a_list(tmp_path: Path) -> None:
    result = await shell(["echo", "$HOME; touch gone", "a b"], cwd=tmp_path)()
    assert result["stdout"] == "$HOME; touch gone a b\n"
    assert not files_in(tmp_path)


async def test_a_string_is_for_the_shell_and_only_if_that_is_asked_for() -> None:
    result = await shell("echo one two | wc -w", use_shell=True)()
    assert result["stdout"].split() == ["2"]
    with pytest.raises(DefinitionError, match="use_shell=True"):
        shell("echo one")
    with pytest.raises(DefinitionError, match="use_shell=True"):
        shell(["echo", "one"], use_shell=True)


# -- what jobs may give --------------------------------------------------------------------------------------------------


async def test_a_job_gives_the_command_where_it_is_not_fixed() -> None:
    task = shell(env={"WORD": "task", "OTHER": "kept"})
    source = "import os; print(os.environ['WORD'], os.environ['OTHER'])"
    run = await run_of(task, command=python(source), env={"WORD": "job"})
    assert run.result["stdout"] == "job kept\n"


async def test_a_job_cannot_give_a_string_where_no_shell_was_asked_for(tmp_path: Path) -> None:
    run = await run_of(shell(cwd=tmp_path), command="touch gone")
    assert (run.outcome, files_in(tmp_path)) == ("failed", [])
    assert "use_shell=True" in (run.error or "")


@pytest.mark.parametrize("given", [{"command": ["ls"]}, {"env": {"PATH": "/evil"}}, {"cwd": "/"}], ids=str)
def test_a_job_gives_nothing_to_a_fixed_command(given: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="do not fit"):
        shell(["ls"]).bind(**given)


async def test_a_job_gives_what_per_job_names_and_nothing_else() -> None:
    task = shell(["cat"], stdin="fixed", per_job=["stdin"])
    assert (await task())["stdout"] == "fixed"
    assert (await run_of(task, stdin="given")).result["stdout"] == "given"
    with pytest.raises(DefinitionError, match="do not fit"):
        task.bind(cwd="/")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: shell(per_job=["stdin"]), "command is not fixed"),
        (lambda: shell(["ls"], per_job=["umask"]), "per_job"),
        (lambda: shell(["ls"], per_job="stdin"), "per_job"),
        (lambda: shell([]), "list of strings"),
        (lambda: shell(["ls", 5]), "list of strings"),  # type: ignore[list-item]  # refused at run time too
        (lambda: shell(["ls", "a\0b"]), "without NUL"),
        (lambda: shell(["ls"], max_output=-1), "max_output"),
        (lambda: shell(["ls"], terminate_grace=-1), "terminate_grace"),
        (lambda: shell(["ls"], expected="0"), "expected"),  # type: ignore[arg-type]  # refused at run time too
        (lambda: shell(["ls"], expected=[]), "expected"),
        (lambda: shell(["ls"], env={"A": 1}), "'A' is given a value of int"),  # type: ignore[dict-item]  # the same
        (lambda: shell(["ls"], env={"A=B": "1"}), "names without '='"),
        (lambda: shell(["ls"], env={"A": "sesame\0"}), "have a NUL in it"),
        (
            lambda: shell(["ls"], stdin=5),
            r"stdin of the task 'shell' must be str \| bytes, not a value of int",
        ),  # type: ignore[arg-type]  # the same
    ],
)
def test_options_that_can_never_work_are_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(DefinitionError, match=reason):
        make()


async def test_what_a_command_is_given_is_neither_in_errors_nor_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = shell([*python("raise SystemExit(1)"), "--password=sesame"], env={"TOKEN": "sesame"})
    with caplog.at_level(logging.DEBUG):
        run = await run_of(task)
    assert run.outcome == "failed"
    assert "sesame" not in f"{run.error}{run.traceback}{caplog.text}"


# -- the end -------------------------------------------------------------------------------------------------------------


async def test_a_timeout_ends_the_command_and_its_grandchildren(tmp_path: Path) -> None:
    held = tmp_path / "held"
    source = python(START, "wait", *python(START, "wait", *python(HOLD, held, "heed")))
    scheduler = Scheduler()
    async with running(scheduler):
        await scheduler.add_job(scheduler.register(shell(source)), id="x", timeout=3)
        await eventually(lambda: is_held(held), what="the grandchild")
        await scheduler.wait_job("x", timeout=30)
        assert not is_held(held)
        [run] = await scheduler.history.runs("x")
        assert run.outcome == "timed_out"


@pytest.mark.parametrize("grace", [0.2, timedelta(seconds=60)], ids=["after its grace", "by a second cancel"])
async def test_what_ignores_sigterm_is_killed(tmp_path: Path, grace: Any) -> None:
    held = tmp_path / "held"
    source = python(START, "wait", *python(HOLD, held, "ignore"))
    # The leader ignores it too.
    source[2] = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{source[2]}"
    run = asyncio.ensure_future(start(shell(source, terminate_grace=grace)))
    await eventually(lambda: is_held(held), what="the grandchild")
    run.cancel()
    if grace != 0.2:
        await asyncio.sleep(0)
        run.cancel()
    await asyncio.wait([run], timeout=20)
    assert run.cancelled()
    assert not is_held(held)


async def start(task: Any) -> Any:
    return await task()


async def test_a_leader_that_ends_by_sigterm_takes_along_a_grandchild_that_ignores_it(tmp_path: Path) -> None:
    held = tmp_path / "held"
    task = shell(python(START, "wait", *python(HOLD, held, "ignore")), terminate_grace=60)
    run = asyncio.ensure_future(start(task))
    await eventually(lambda: is_held(held), what="the grandchild")
    run.cancel()
    await asyncio.wait([run], timeout=20)
    assert run.cancelled()
    assert not is_held(held)


async def test_what_a_command_leaves_behind_is_killed_when_it_ends(tmp_path: Path) -> None:
    held = tmp_path / "held"
    source = f"""
import os, subprocess, sys, time
subprocess.Popen(sys.argv[1:])
while not os.path.exists({str(held)!r}) or open({str(held)!r}).read() != "held":
    time.sleep(0.01)
print("done")
"""
    result = await shell(python(source, *python(HOLD, held, "ignore")))()
    assert result["stdout"] == "done\n"
    assert not is_held(held)


async def test_output_that_another_session_holds_open_does_not_hold_the_run(tmp_path: Path) -> None:
    held = tmp_path / "held"
    source = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], start_new_session=True)
print(child.pid, flush=True)
"""
    result = await shell(python(source, *python(HOLD, held, "heed")))()
    await eventually(lambda: is_held(held), what="what went into its own session")
    await shell(["kill", result["stdout"].strip()])()
    await eventually(lambda: not is_held(held))


async def test_a_command_ends_at_once_when_its_pipes_are_closed_early() -> None:
    source = "import os; os.close(1); os.close(2); raise SystemExit(4)"
    with pytest.raises(CommandFailed) as raised:
        await shell(python(source))()
    assert raised.value.exit_code == 4


async def test_many_commands_at_once_each_have_their_own_end() -> None:
    task = shell(expected=range(20))

    async def one(n: int) -> int:
        result: Any = await task(command=["sh", "-c", f"echo {n}; exit {n}"])
        assert result["stdout"] == f"{n}\n"
        return int(result["exit_code"])

    calls: list[Awaitable[int]] = [one(n) for n in range(20)]
    assert await asyncio.gather(*calls) == list(range(20))
