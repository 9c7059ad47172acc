"""The ids of tests with parameters: the same in each process that collects them."""

from __future__ import annotations

import re

__all__ = ["shown"]


def shown(value: object) -> str:
    """*value* as text, without addresses, and sets in order."""
    text = ", ".join(sorted(map(str, value))) if isinstance(value, set) else str(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)
