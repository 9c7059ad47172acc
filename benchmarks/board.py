"""A blackboard in shared memory: what several processes of one measurement tell each other, with no round trip that counts.

One row of numbers for each process: whether it is ready, how many runs it has started, when the last one started, and the CPU
that it has used. A run costs it one write of eight bytes.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Board", "until"]

_ROW = struct.Struct("dddd")
_READY, _COUNT, _LAST, _CPU = range(4)
_NUMBER = struct.Struct("d")
#: The first row says whether to go.
_ROWS = 17


class Board:
    """The blackboard in the file *path*, as the process of row *row* (1, 2, ...) sees it; the measuring one has none."""

    def __init__(self, path: Path, row: int = 0) -> None:
        if not path.exists():
            path.write_bytes(bytes(_ROW.size * _ROWS))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._row = row
        self._count = 0.0

    # -- for the measured ----------------------------------------------------------------------------------------------

    def ready(self) -> None:
        self._put(self._row, _READY, 1.0)

    def started(self) -> None:
        """A run has started."""
        self._count += 1
        self._put(self._row, _LAST, time.time())
        self._put(self._row, _COUNT, self._count)

    def spent(self) -> None:
        self._put(self._row, _CPU, time.process_time())

    @property
    def is_going(self) -> bool:
        return self._get(0, _READY) > 0

    # -- for the measurer ----------------------------------------------------------------------------------------------

    def go(self) -> None:
        self._put(0, _READY, 1.0)

    def count_of_ready(self) -> int:
        return sum(self._get(row, _READY) > 0 for row in range(1, _ROWS))

    def count(self) -> int:
        return int(sum(self._get(row, _COUNT) for row in range(1, _ROWS)))

    def last_at(self) -> float:
        return max(self._get(row, _LAST) for row in range(1, _ROWS))

    def cpu_s(self) -> float:
        return sum(self._get(row, _CPU) for row in range(1, _ROWS))

    def _put(self, row: int, field: int, value: float) -> None:
        _NUMBER.pack_into(self._memory, row * _ROW.size + field * _NUMBER.size, value)

    def _get(self, row: int, field: int) -> float:
        value: float = _NUMBER.unpack_from(self._memory, row * _ROW.size + field * _NUMBER.size)[0]
        return value


async def until(condition: Callable[[], bool], limit_s: float = 120.0, every_s: float = 0.002) -> None:
    """Return once *condition* holds, which other processes bring about; raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        while True:
            if condition():
                return
            await asyncio.sleep(every_s)
