"""``python -m benchmarks core``, ``python -m benchmarks cron`` and ``python -m benchmarks profile``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.core import measure, report
from benchmarks.cron import figures
from benchmarks.profiling import SUBJECTS, profile
from benchmarks.table import table


def main() -> None:
    """Measure, or profile, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    core = commands.add_parser("core", help="memory and SQLite beside APScheduler 3 and 4 and the limits")
    core.add_argument(
        "--quick", action="store_true", help="once, with fewer jobs: shows that it works, no more"
    )
    core.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a case, or how its name begins; may be repeated: {', '.join(CASES['full'][1])}",
    )
    core.add_argument("--json", type=Path, metavar="FILE", help="write everything that was read there")
    core.add_argument("--table", type=Path, metavar="FILE", help="measure nothing; show what --json wrote")
    where = commands.add_parser("profile", help="where the time goes, by function")
    where.add_argument("subject", choices=SUBJECTS)
    commands.add_parser(
        "cron", help="reading cron expressions and finding fire times, beside croniter and cronsim"
    )
    stores = commands.add_parser(
        "stores", help="Redis, PostgreSQL, MariaDB and MySQL beside what their drivers can do"
    )
    stores.add_argument(
        "--quick", action="store_true", help="once, with fewer jobs: shows that it works, no more"
    )
    stores.add_argument(
        "--stores", default="", metavar="NAMES", help="such as redis,postgres; all unless given"
    )
    stores.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="one measurement; may be repeated"
    )
    stores.add_argument("--repeats", type=int, default=3, help="medians of so many")
    options = parser.parse_args()
    if options.command == "stores":
        _stores(options)
    elif options.command == "cron":
        print(figures())
    elif options.command == "profile":
        profile(options.subject)
    else:
        _core(options)


def _stores(options: argparse.Namespace) -> None:
    # Only here: it needs the drivers.
    from benchmarks.stores import KINDS, MEASURES, measure_stores

    kinds = [name for name in options.stores.split(",") if name] or list(KINDS)
    unknown = (set(kinds) - set(KINDS)) | (set(options.only) - set(MEASURES))
    if unknown:
        sys.exit(
            f"unknown: {', '.join(sorted(unknown))}; stores: {', '.join(KINDS)}; measurements: {', '.join(MEASURES)}"
        )
    repeats = 1 if options.quick else options.repeats
    print(
        measure_stores(
            kinds, options.only, repeats, options.quick, lambda text: print(text, file=sys.stderr, flush=True)
        )
    )


def _core(options: argparse.Namespace) -> None:
    names = list(CASES["full"][1])
    for wanted in options.only:
        if not any(name.startswith(wanted) for name in names):
            sys.exit(f"no case begins with {wanted!r}; there are {', '.join(names)}")
    if options.table:
        measured = json.loads(options.table.read_text(encoding="utf-8"))
    else:
        measured = measure(options.only, options.quick, lambda text: print(text, file=sys.stderr, flush=True))
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    repeats = "once" if measured["repeats"] == 1 else f"medians of {measured['repeats']}"
    before, after = measured["load"]
    print(f"{measured['machine']}, {measured['at']} UTC, {repeats}; load {before} before, {after} after\n")
    print(table(report(measured)))


if __name__ == "__main__":
    main()
