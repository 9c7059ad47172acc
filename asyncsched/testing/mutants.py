"""Stores that each break one rule, and the case that catches each: the proof that the conformance suite sees what it says.

``MUTANTS`` has every such store by its name, and ``CAUGHT_BY`` the case of
:class:`~asyncsched.testing.contract.StoreContract` that it must fail. A rule that is new gets a case and a mutant.
"""

from __future__ import annotations

from asyncsched.testing._mutants import claims, moved, records, rest, settlements
from asyncsched.testing._mutants.table import CAUGHT_BY, MUTANTS

__all__ = ["CAUGHT_BY", "MUTANTS"]

#: What holds the mutants; importing it has filled the table.
TOPICS = (records, claims, settlements, rest, moved)
