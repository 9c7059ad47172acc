"""Ids: made and checked."""

import threading
import time
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import DefinitionError
from asyncsched.ids import check_id, check_name, new_id

LEGAL = st.text(st.characters(exclude_characters="\0#", exclude_categories=["Cs"]), min_size=1, max_size=255)


def test_a_new_id_is_a_uuid_of_version_7_and_of_now() -> None:
    before = int(time.time() * 1000)
    id = UUID(new_id())
    assert (id.version, id.variant) == (7, "specified in RFC 4122")
    assert before <= id.int >> 80 <= int(time.time() * 1000) + 1000


def test_new_ids_rise_strictly_though_many_are_made_in_one_microsecond() -> None:
    made = [new_id() for _ in range(20_000)]
    assert all(a < b for a, b in pairwise(made))
    assert {len(id) for id in made} == {36}


def test_new_ids_of_several_threads_are_all_different() -> None:
    made: list[str] = []

    def make() -> None:
        made.extend([new_id() for _ in range(5000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 20_000


@given(LEGAL)
def test_any_text_of_up_to_255_characters_is_an_id(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize("id", ["", "x" * 256, "a\0", "a#b", "#", "\ud800", "a\udfff", 5, None, b"x"])
def test_what_no_store_could_keep_is_no_id(id: object) -> None:
    with pytest.raises(DefinitionError, match="the thing"):
        check_id(id, "the thing")  # type: ignore[arg-type]  # mypy is right: that is what is tested


@pytest.mark.parametrize("name", ["x", "a#b", "é/漢 🙂", "x" * 255])
def test_names_may_hold_anything_but_nul(name: str) -> None:
    assert check_name(name, "a name") == name


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0", "\ud800", 5, None])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(DefinitionError, match="the thing"):
        check_name(name, "the thing")  # type: ignore[arg-type]  # mypy is right: that is what is tested
