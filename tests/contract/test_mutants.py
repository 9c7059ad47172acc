"""The conformance suite sees what it says: each mutant fails the case that is meant for it, and the model fails none."""

import re

import pytest

from asyncsched.errors import StoreError
from asyncsched.stores.memory import MemoryStore
from asyncsched.testing._mutants.rest import Durable
from asyncsched.testing.contract import StoreContract
from asyncsched.testing.mutants import CAUGHT_BY, MUTANTS

pytestmark = pytest.mark.anyio

#: The model has no clone, so that it would skip this case.
NEEDS_A_CLONE = "test_a_clone_works_in_an_event_loop_of_its_own"


class ContractOf(StoreContract):
    """The contract, held to any kind of store in memory."""

    patience_s = 0.02

    def __init__(self, kind: type[MemoryStore]) -> None:
        self.kind = kind
        self.namespaces: dict[str, MemoryStore] = {}

    def make_store(self, namespace: str) -> MemoryStore:
        return self.namespaces.setdefault(namespace, self.kind())


@pytest.mark.parametrize("name", MUTANTS)
async def test_each_mutant_fails_the_case_that_is_meant_for_it(name: str) -> None:
    with pytest.raises((AssertionError, KeyError, ValueError, StoreError)):
        await ContractOf(MUTANTS[name]).run_case(CAUGHT_BY[name])


async def test_the_unmutated_store_fails_none_of_these_cases() -> None:
    for case in sorted(set(CAUGHT_BY.values()) - {NEEDS_A_CLONE}):
        await ContractOf(Durable).run_case(case)


def test_every_case_that_is_named_exists() -> None:
    assert set(CAUGHT_BY.values()) <= set(StoreContract.cases())


def test_every_mutant_says_what_it_breaks() -> None:
    assert [
        name for name, mutant in MUTANTS.items() if not re.search(r"\w", mutant.__dict__.get("__doc__") or "")
    ] == []
