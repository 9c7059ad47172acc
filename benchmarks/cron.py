"""Cron: what it costs to read an expression and to find the next fire time, here and in croniter and cronsim.

Each figure is the best of several rounds of CPU time, each over many calls, the contestants taking turns. *Parse* is from the
string to the first fire time excluded, and nothing of it is remembered from call to call. A *step* finds the fire time after the
last one; the first round, in which offsets of the zone are looked up, does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import count
from zoneinfo import ZoneInfo

import croniter

from asyncsched import cron
from benchmarks.table import Line, table, verdict

__all__ = ["figures"]

START = datetime(2026, 1, 1, tzinfo=UTC)
PARSE_US, COMMON_US, RARE_US = 200.0, 5.0, 20.0
ROUNDS = 5
PARSES, STEPS, RARE_STEPS = 200, 2000, 200
#: In so little time that each round can have all of a slow contestant.
PATIENCE_S = 0.25

COMMON = (
    ("* * * * *", "UTC"),
    ("*/5 * * * *", "Europe/Berlin"),
    ("*/15 9-17 * * mon-fri", "America/New_York"),
    ("0 9 * * mon-fri", "Europe/Berlin"),
    ("30 2 * * *", "Europe/Berlin"),
    ("0 0 1 * *", "UTC"),
)
RARE = (
    ("0 0 29 2 *", "Europe/Berlin"),
    ("0 0 13 * fri", "Asia/Kolkata"),
    ("30 3 31 12 *", "America/New_York"),
    ("0 12 * * 5#5", "Europe/Berlin"),
    ("0 0 L 2 *", "Australia/Lord_Howe"),
)
#: What the others do not read, or join by another rule.
OWN = (
    ("15,45 30 8 LW * ?", "Europe/Berlin"),
    ("0 0 0 29 2 ? 2028-2099", "Europe/Berlin"),
    ("DAY=and 0 0 29 2 mon", "UTC"),
    ("1-58/3 22-4 15W,L-2 nov-feb fri-mon", "America/Sao_Paulo"),
)

#: Makes the walk of an expression in a zone: what gives one fire time at each call.
Make = Callable[[str, str], Callable[[], object]]


def figures(rounds: int = ROUNDS) -> str:
    """The table, in microseconds."""
    contestants = _contestants()
    lines = []
    for expressions, target, steps in (
        (COMMON, COMMON_US, STEPS),
        (RARE, RARE_US, RARE_STEPS),
        (OWN, RARE_US, RARE_STEPS),
    ):
        names = ["asyncsched"] if expressions is OWN else list(contestants)
        for expression, zone in expressions:
            makes = {name: partial(contestants[name], expression, zone) for name in names}
            parse = {name: _best(rounds, partial(_timed, make, PARSES)) for name, make in makes.items()}
            step = {name: _best(rounds, partial(_step, make, steps)) for name, make in makes.items()}
            title = f"{expression}  {zone}"
            lines += [_line(f"parse  {title}", parse, PARSE_US), _line(f"step   {title}", step, target)]
    return table(lines)


def _line(title: str, measured: dict[str, float], target: float) -> Line:
    own = measured["asyncsched"]
    others = [value for name, value in measured.items() if name != "asyncsched"]
    ratio = f"{min(others) / own:.1f}x" if others else ""
    cells = {name: f"{value:.1f}" for name, value in measured.items()}
    return Line(title, cells, ratio, f"<= {target:g} us", verdict("<=", own, target))


def _contestants() -> dict[str, Make]:
    makers: dict[str, Make] = {"asyncsched": _own, "croniter": _croniter}
    try:
        import cronsim
    except ImportError:
        return makers

    def make(expression: str, zone: str) -> Callable[[], object]:
        return cronsim.CronSim(expression, START.astimezone(ZoneInfo(zone))).__next__

    return makers | {"cronsim": make}


_keys: Iterator[int] = count()


def _own(expression: str, zone: str) -> Callable[[], object]:
    # Another key each time, so that the expression is read anew.
    text = f"CRON_TZ={zone} {expression}"
    trigger = cron(text, hash_key=str(next(_keys)))
    begin = START.timestamp()
    at = begin

    def step() -> float:
        nonlocal at
        # The calendar ends; then it begins again.
        at = trigger.next(at) or begin
        return at

    return step


def _croniter(expression: str, zone: str) -> Callable[[], object]:
    return croniter.croniter(
        expression, START.astimezone(ZoneInfo(zone)), max_years_between_matches=60
    ).get_next


def _step(make: Callable[[], Callable[[], object]], steps: int) -> float:
    return _timed(make(), steps)


def _timed(call: Callable[[], object], times: int) -> float:
    """Microseconds of CPU for each call; fewer calls of one that takes long."""
    begin = time.process_time()
    done = 0
    while done < times and (done < 2 or time.process_time() - begin < PATIENCE_S):
        call()
        done += 1
    return (time.process_time() - begin) / done * 1e6


def _best(rounds: int, measure: Callable[[], float]) -> float:
    measure()
    return min(measure() for _ in range(rounds))
