"""Queues with a hash tag each."""

from __future__ import annotations
from typing import Any


class Spread:
    def __init__(self, *args: Any) -> None:
        raise NotImplementedError
    def __getattr__(self, name: str) -> Any: ...
