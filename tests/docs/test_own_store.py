"""The store that docs/howto/own-store.md writes: it keeps the contract, and is found by its URL once it is installed."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from asyncsched import SchemaError, StoreError, UnknownStoreError, store_from_url
from tests.docs.test_examples import environment

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "howto" / "own-store.md"
EXAMPLES = ROOT / "docs" / "howto" / "examples"


def load(name: str) -> ModuleType:
    """A module of the page, as its readers have it."""
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Left there: msgspec looks names of annotations up in it, and the page's test imports it.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FileStore = load("filestore").FileStore
#: Collected here as if it stood here.
TestFileStore = load("test_filestore").TestFileStore

pytestmark = pytest.mark.anyio


async def test_a_file_of_another_format_and_a_damaged_one_are_left_alone(tmp_path: Path) -> None:
    for content, error in ((b"\x81\xa6format\x07", SchemaError), (b"no state", StoreError)):
        (tmp_path / "asyncsched.jobs").write_bytes(content)
        with pytest.raises(error):
            await FileStore(tmp_path).open()
        assert (tmp_path / "asyncsched.jobs").read_bytes() == content


def test_the_page_shows_the_whole_store_and_its_test() -> None:
    shown = re.findall(
        r"^```{literalinclude} examples/(.*)\n:language: python\n```$", PAGE.read_text(encoding="utf-8"), re.M
    )
    assert (
        shown == ["filestore.py", "test_filestore.py"] == sorted(path.name for path in EXAMPLES.glob("*.py"))
    )


# -- installed -----------------------------------------------------------------------------------------------------------------


#: One that takes each keyword once, one that is still being written, and one whose user loses patience.
VARIANTS = """
import asyncio, os, signal
from filestore import FileStore

class Strict(FileStore):
    @classmethod
    def from_url(cls, url):
        if url.count("namespace=") > 1:
            raise ValueError("namespace stands twice")
        return super().from_url(url)

class Half(FileStore):
    acquire = None

    async def prune(self, older_than_s, per_job, limit):
        raise RuntimeError("not written yet")

class Interrupted(FileStore):
    is_first = True

    async def erase(self):
        if Interrupted.is_first:
            Interrupted.is_first = False
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        await super().erase()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a wheel of the page's project was installed."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = wheel_of_the_page(tmp_path_factory.mktemp("wheel"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        folder,
        wheel,
    ]
    subprocess.run([*map(str, command), "--disable-pip-version-check"], check=True, timeout=60)
    (folder / "variants.py").write_text(VARIANTS)
    info = folder / "variants-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: variants\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[asyncsched.stores]\nstrict = variants:Strict\nhalf = variants:Half\n"
        "interrupted = variants:Interrupted\n"
    )
    return folder


def wheel_of_the_page(folder: Path) -> Path:
    """What a build would make of the page's pyproject.toml and the store, by hand: builds need the network."""
    [text] = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    project = tomllib.loads(text)["project"]
    name, version = project["name"], project["version"]
    info = f"{name}-{version}.dist-info"
    points = [
        f"[{group}]\n" + "".join(f"{scheme} = {place}\n" for scheme, place in of_group.items())
        for group, of_group in project["entry-points"].items()
    ]
    files = {
        "filestore.py": (EXAMPLES / "filestore.py").read_text(encoding="utf-8"),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(points),
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return wheel


def run_python(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python that has the store installed."""
    env = environment()
    env["PYTHONPATH"] += f":{installed}"
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def python(installed: Path, folder: Path, *arguments: str) -> str:
    """What it says where all is well."""
    answer = run_python(installed, folder, *arguments)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


RUNS_A_JOB = """
import asyncio
from asyncsched import Scheduler, store_from_url

store = store_from_url("mine:///jobs?namespace=billing")
scheduler = Scheduler(store)
over = asyncio.Event()

@scheduler.task(name="work")
async def work():
    print("ran in", type(store).__name__)
    over.set()

async def main():
    async with asyncio.timeout(20), scheduler:
        await scheduler.enqueue(work)
        await over.wait()

asyncio.run(main())
"""


def test_its_scheme_is_found_once_it_is_installed(installed: Path, tmp_path: Path) -> None:
    assert python(installed, tmp_path, "-c", RUNS_A_JOB) == "ran in FileStore\n"
    assert (tmp_path / "jobs" / "billing.jobs").exists()


def test_its_scheme_is_unknown_without_it() -> None:
    with pytest.raises(LookupError, match="no store serves mine://"):
        store_from_url("mine:///jobs")


def test_the_command_line_knows_it(installed: Path, tmp_path: Path) -> None:
    said = python(installed, tmp_path, "-m", "asyncsched", "stores", "check", "mine:///jobs")
    assert "FileStore at mine:///jobs: reached, and its schema is in order" in said
    assert ", 0 are broken" in said
    assert {file.name for file in (tmp_path / "jobs").iterdir()} <= {"asyncsched.jobs", "asyncsched.lock"}


def test_it_is_listed_beside_the_others(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(python(installed, tmp_path, "-m", "asyncsched", "stores", "list", "--json"))
    [mine] = [store for store in listed if store["schemes"] == ["mine://"]]
    assert (mine["store"], mine["durable"], mine["missing"]) == ("FileStore", True, None)


def test_a_namespace_in_its_url_is_no_hindrance_to_a_check(installed: Path, tmp_path: Path) -> None:
    said = python(installed, tmp_path, "-m", "asyncsched", "stores", "check", "strict:///jobs?namespace=mail")
    assert ", 0 are broken" in said


def test_a_check_of_a_store_that_is_half_written_names_all_that_is_broken(
    installed: Path, tmp_path: Path
) -> None:
    answer = run_python(installed, tmp_path, "-m", "asyncsched", "stores", "check", "half:///jobs", "-v")
    assert answer.returncode == 1
    assert re.search(r"^an entry .*: BROKEN: RuntimeError: not written yet$", answer.stdout, re.M)
    assert re.search(r"^a free lease is taken: BROKEN: TypeError: ", answer.stdout, re.M)
    assert re.search(r"^\d{3} rules are kept, ", answer.stdout, re.M)


def test_a_check_that_is_interrupted_leaves_nothing(installed: Path, tmp_path: Path) -> None:
    answer = run_python(installed, tmp_path, "-m", "asyncsched", "stores", "check", "interrupted:///jobs")
    assert answer.returncode == 130, answer.stderr
    assert {file.name for file in (tmp_path / "jobs").iterdir()} <= {"asyncsched.jobs", "asyncsched.lock"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere.at.all:Store", "No module named 'nowhere'"),
        ("filestore:Nothing", "no attribute 'Nothing'"),
        ("filestore:FORMAT", "has no from_url"),
    ],
)
def test_an_entry_point_that_is_wrong_is_said(value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", value, "asyncsched.stores")
    monkeypatch.setattr("asyncsched.stores.entry_points", lambda group: [point])
    with pytest.raises(UnknownStoreError, match=f"'mine'.*{value}.*{said}"):
        store_from_url("mine:///jobs")


def test_jobs_are_moved_into_it_and_out_of_it(
    installed: Path, tmp_path: Path, stores: tuple[str, ...]
) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")
    adds = """
import asyncio
from asyncsched import Scheduler, once

async def main():
    async with Scheduler("sqlite:///one.db", queues=()) as client:
        client.register(work, name="work")
        await client.add_job("work", once(delay=3600), id="later")

async def work(): pass

asyncio.run(main())
"""
    python(installed, tmp_path, "-c", adds)
    migrate = ("-m", "asyncsched", "migrate", "--history", "--from")
    assert "copied now: 1" in python(
        installed, tmp_path, *migrate, "sqlite:///one.db", "--to", "mine:///jobs"
    )
    assert "copied now: 1" in python(
        installed, tmp_path, *migrate, "mine:///jobs", "--to", "sqlite:///two.db"
    )
    listed = python(installed, tmp_path, "-m", "asyncsched", "jobs", "--store", "sqlite:///two.db")
    assert listed.splitlines()[1].startswith("later ")
