"""Processes whose wall clock is wrong, by libfaketime."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.servers.server import find_program

__all__ = ["LIBRARY", "LIBRARY_PLACES", "with_clock"]

LIBRARY = "libfaketime.so.1"
LIBRARY_PLACES = (
    "/usr/lib/*/faketime",
    "/usr/lib/faketime",
    "/usr/lib64/faketime",
    "/usr/local/lib/faketime",
)


def with_clock(offset: str) -> Mapping[str, str]:
    """The environment of a process whose wall clock is wrong by *offset*, such as ``+2h``; elapsed time stays right.

    Skips the test where the library is not installed.
    """
    library = find_program(LIBRARY, *LIBRARY_PLACES)
    if library is None:
        pytest.skip(f"{LIBRARY} is not installed (Debian's package libfaketime)")
    return {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
