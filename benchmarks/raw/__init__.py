"""What the drivers can do on these servers: due jobs, claimed and deleted by the hundred, each in the way that suits it best.

No fences, no lanes, no log, no policies: nothing that is built on these drivers does more with one connection.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["claim_and_delete", "queries"]


async def claim_and_delete(kind: str, url: str, jobs: int) -> float:
    """Jobs a second."""
    return float(await _module(kind).claim_and_delete(url, jobs))


async def queries(kind: str, url: str) -> float | None:
    """How many queries the server has counted so far; None where it does not count them."""
    return await _module(kind).queries(url)  # type: ignore[no-any-return]  # each module gives a float or None


def _module(kind: str) -> Any:
    return importlib.import_module(f"benchmarks.raw.{'mysql' if kind == 'mariadb' else kind}")
