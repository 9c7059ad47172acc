"""The pictures of docs/ are what their script draws from the triggers."""

import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "docs" / "pictures"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location("pictures_of_dst", FOLDER / "dst.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_script_draws_the_pictures_byte_for_byte(script: ModuleType) -> None:
    drawn = {name: text.encode() for name, text in script.pictures().items()}
    assert drawn == {path.name: path.read_bytes() for path in FOLDER.glob("*.svg")}


def test_each_fire_time_is_drawn_once(script: ModuleType) -> None:
    gap, fold = script.CHANGES["berlin"]
    fired = (
        script.HERE.joinpath("berlin.svg").read_text(encoding="utf-8").count(f"fill='{script.FIRE}' stroke=")
    )
    # In the gap run 03:00, none and 03:30; in the fold one, one and both; the followers seven, and nine.
    assert (gap.fixed, fold.fixed) == ("30 2 * * *", "30 2 * * *")
    assert fired == (1 + 0 + 1) + (1 + 1 + 2) + 7 + 9


def test_the_pictures_are_well_formed(script: ModuleType) -> None:
    for text in script.pictures().values():
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
