"""Every promise of the documents that this project grew from has a test; promises.toml says which."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.promises import Seed, Seen, collected, faults, read_map

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MAP = HERE / "promises.toml"

SMALL = """
[seed]
title = "a seed"
lines = 5
nothing = ["1", "3-4"]

[[seed.promise]]
lines = "2"
says = "It does this."
tests = ["tests/test_this.py::test_this"]

[[seed.promise]]
lines = "5"
says = "It does that."
tests = ["tests/test_this.py::test_that", "tests/test_this.py::test_this"]
note = "Ours does that later."
"""
SEEN = Seen(ids={"tests/test_this.py::test_this", "tests/test_this.py::test_that"})


@pytest.fixture(scope="module")
def seeds() -> dict[str, Seed]:
    return read_map(MAP.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def seen(seeds: dict[str, Seed], tmp_path_factory: pytest.TempPathFactory) -> Seen:
    named = {
        test.partition("::")[0] for seed in seeds.values() for entry in seed.promise for test in entry.tests
    }
    own = {path.relative_to(ROOT).as_posix() for path in HERE.glob("test_*.py")}
    return collected(named | own, tmp_path_factory.mktemp("collected") / "ids.json")


def test_each_line_of_each_seed_is_promised_by_a_test_that_runs(seeds: dict[str, Seed], seen: Seen) -> None:
    assert not faults(seeds, seen)


def test_each_test_of_a_seed_keeps_a_promise(seeds: dict[str, Seed], seen: Seen) -> None:
    used = {
        test.partition("[")[0] for seed in seeds.values() for entry in seed.promise for test in entry.tests
    }
    here = HERE.relative_to(ROOT).as_posix()
    own = {test.partition("[")[0] for test in seen.ids if test.startswith(f"{here}/test_")}
    machinery = f"{here}/{Path(__file__).name}::"
    assert sorted(test for test in own - used if not test.startswith(machinery)) == []


def test_all_documents_are_there_in_their_whole_length(seeds: dict[str, Seed]) -> None:
    """Five documents, and a list of what is easily missed: lines that are taken off an end would not be missed otherwise."""
    assert sorted(seed.lines for seed in seeds.values()) == [15, 247, 287, 323, 393, 752]


def test_each_seed_says_what_it_is_and_is_not_empty(seeds: dict[str, Seed]) -> None:
    assert [name for name, seed in seeds.items() if not seed.title.strip() or not seed.promise] == []
    titles = Counter(seed.title for seed in seeds.values())
    assert [title for title, count in titles.items() if count > 1] == []


def test_a_whole_map_has_no_fault() -> None:
    assert faults(read_map(SMALL), SEEN) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("lines = 5", "lines = 6", "seed: line 6 is neither promised nor nothing"),
        ("lines = 5", "lines = 4", "seed: line 5 is not one of its 4"),
        ('"3-4"', '"3"', "seed: line 4 is neither promised nor nothing"),
        ('"3-4"', '"3-5"', "seed: line 5 is there 2 times"),
        ('"3-4"', '"4-3"', "seed: lines '4-3' are neither 'N' nor 'N-M'"),
        ('"3-4"', '"3, 4"', "seed: lines '3, 4' are neither 'N' nor 'N-M'"),
        ('["tests/test_this.py::test_this"]', "[]", "seed, 2: has no test"),
        ('"It does this."', '" "', "seed, 2: says nothing"),
        (
            "test_that",
            "test_thta",
            "seed, 5: tests/test_this.py::test_thta is not a test that pytest collects",
        ),
        ("test_that", "test_this", "seed, 5: names a test twice"),
    ],
)
def test_a_map_with_a_fault_is_told_so(old: str, new: str, fault: str) -> None:
    assert old in SMALL
    assert fault in faults(read_map(SMALL.replace(old, new, 1)), SEEN)


def test_a_map_with_a_key_of_no_meaning_is_not_read() -> None:
    with pytest.raises(TypeError, match="noet"):
        read_map(SMALL.replace("note", "noet"))
    with pytest.raises(KeyError, match="tests"):
        read_map(re.sub("^tests = .*$", "", SMALL, flags=re.M))


def test_only_tests_that_pytest_collects_and_that_may_run_and_fail_are_seen(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "support").symlink_to(ROOT / "tests" / "support")
    (tmp_path / "tests" / "test_some.py").write_text(SOME)
    seen = collected(["tests/test_some.py", "tests/test_none.py"], tmp_path / "ids.json", tmp_path)
    here = "tests/test_some.py::"
    assert {test.removeprefix(here) for test in seen.ids} == {
        "test_runs", "test_marked", "test_fails", "test_skips", "test_empty", "test_maybe",
        "test_each", "test_each[a]", "test_each[b]", "TestMore::test_inherited",
    }  # fmt: skip
    assert {test.removeprefix(here): why for test, why in seen.idle.items()} == {
        "test_marked": "it is marked skip (no time)",
        "test_fails": "it is marked xfail (no reason given)",
        "test_skips": "it skips itself whatever comes",
        "test_empty": "there is nothing in it",
    }


SOME = '''
import pytest

def test_runs(): assert True

@pytest.mark.skip(reason="no time")
def test_marked(): assert True

@pytest.mark.xfail
def test_fails(): assert True

def test_skips():
    pytest.skip("never")

def test_empty():
    """It shows this."""
    pass

def test_maybe():
    if not __name__:
        pytest.skip("sometimes")
    assert True

@pytest.mark.parametrize("letter", "ab")
def test_each(letter): assert letter

class Base:
    def test_inherited(self): assert True

class TestMore(Base): ...

def helper_test(): ...
'''
