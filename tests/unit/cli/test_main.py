"""Getting in: the console script, ``python -m``, versions, help and refusals."""

from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import pytest

import asyncsched
from asyncsched.cli import main
from tests.unit.cli.asking import ROOT, Cli, ask_python, refusal


def test_the_version_is_printed(cli: Cli) -> None:
    answer = cli("--version")
    assert (answer.returncode, answer.stdout) == (0, f"asyncsched {asyncsched.__version__}\n")


def test_help_names_every_command(cli: Cli) -> None:
    answer = cli("--help")
    assert answer.returncode == 0
    assert all(f" {name} " in answer.stdout for name in ("run", "jobs", "next", "demo"))


@pytest.mark.parametrize(
    "args", [["nothing"], ["jobs"], ["next", "@daily", "-n", "0"], ["jobs", "--state", "odd"]]
)
def test_a_wrong_command_line_is_exit_code_2(cli: Cli, args: list[str]) -> None:
    answer = cli(*args)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "Usage: asyncsched" in answer.stderr


def test_main_leaves_with_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["next", "@hourly", "-n", "1"])
    assert left.value.code == 0
    assert " in " in capsys.readouterr().out


def test_the_console_script_is_main() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'asyncsched = "asyncsched.cli:main"' in text
    try:
        version("asyncsched")
    except PackageNotFoundError:
        return
    [script] = entry_points(group="console_scripts", name="asyncsched")
    assert script.load() is main


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_a_missing_extra_is_named_with_the_pip_command(absent: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.modules[{absent!r}] = None; from asyncsched.cli import main; main(['--version'])"
    )
    answer = ask_python(tmp_path, "-c", script)
    assert 'pip install "asyncsched[cli]"' in refusal(answer)


def test_a_missing_store_client_is_named_with_the_pip_command(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").touch()
    script = (
        "import sys; sys.modules['aiosqlite'] = None; from asyncsched.cli import main; "
        "main(['jobs', '--store', 'sqlite:///jobs.db'])"
    )
    answer = ask_python(tmp_path, "-c", script)
    assert 'pip install "asyncsched[sqlite]"' in refusal(answer)
