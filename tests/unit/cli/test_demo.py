"""``asyncsched demo``: about fifteen seconds of everything, once."""

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.unit.cli.asking import ask, environment


def children_of(folder: Path) -> list[str]:
    """The command lines of processes that name *folder*."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def test_the_demonstration_recovers_the_job_of_a_killed_worker_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    began_at = time.monotonic()
    answer = ask(tmp_path, "demo", seconds=60)
    took_s = time.monotonic() - began_at
    out = answer.stdout
    assert answer.returncode == 0, out + answer.stderr
    assert answer.stderr == ""
    assert 14 < took_s < 55
    assert "\x1b" not in out, "no terminal, so no escape codes"
    for kind in (
        "beat (every 2 s)",
        "chime (cron, seconds)",
        "greet (once)",
        "mail (fails twice)",
        "backup (manual)",
    ):
        assert f"ran       {kind}" in out, kind
    assert "ran       resize" in out
    assert re.search(r"mail \(fails twice\): attempt 2 follows in 0\.[5-8] s", out)
    assert "due next  " in out
    assert (
        out.index("killed    worker-1")
        < out.index("worker-2  says      report-42: started")
        < out.index("recovered")
    )
    history = out.partition("The history")[2]
    reports = [line.split()[1:4] for line in history.splitlines() if " report-42 " in line]
    assert reports[:2] == [["report-42", "lost", "1"], ["report-42", "succeeded", "1"]]
    assert "overlap" in history
    assert "2 attempts were retried; report-42 was lost with its worker and recovered by another." in history
    assert list(tmp_path.iterdir()) == [], "the temporary folder is removed"
    assert children_of(tmp_path) == []


def test_a_worker_of_the_demonstration_ends_with_whoever_started_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncsched.cli.demo_worker", str(tmp_path / "jobs.db"), "orphan"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()
