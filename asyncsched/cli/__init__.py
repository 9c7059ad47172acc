"""The command line, ``asyncsched`` or ``python -m asyncsched``; it needs the extra ``cli``.

Exit codes: 0, what was asked is done; 1, it cannot be done, and one line says why; 2, the command line itself is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from asyncsched.errors import MissingExtra

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Do what *args* say (None: those of this process), and leave by SystemExit with the exit code."""
    try:
        from asyncsched.cli.app import serve
    except MissingExtra as error:
        print(f"asyncsched: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    serve(args)
