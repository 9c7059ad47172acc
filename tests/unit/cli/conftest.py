"""``cli("jobs", "--store", url)`` runs ``asyncsched jobs --store url`` in a folder of its own."""

from functools import partial
from pathlib import Path

import pytest

from tests.unit.cli.asking import Cli, ask


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return partial(ask, tmp_path)
