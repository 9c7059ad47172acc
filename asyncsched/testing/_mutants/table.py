"""The table that every mutant enters itself into."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from asyncsched.stores.memory import MemoryStore

__all__ = ["CAUGHT_BY", "MUTANTS", "caught_by"]

#: Every mutant by its name.
MUTANTS: dict[str, type[MemoryStore]] = {}
#: The case of the contract that each mutant must fail.
CAUGHT_BY: dict[str, str] = {}

_Mutant = TypeVar("_Mutant", bound=type[MemoryStore])


def caught_by(case: str) -> Callable[[_Mutant], _Mutant]:
    """Enter the decorated store into the table, as one that must fail *case*."""

    def enter(store: _Mutant) -> _Mutant:
        MUTANTS[store.__name__] = store
        CAUGHT_BY[store.__name__] = case
        return store

    return enter
