"""Arguments, results and metadata as data: what comes back is what went in, and nothing else gets in."""

import enum
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import DataSerializer, MemoryStore, PickleSerializer, Scheduler, SerializationError
from asyncsched.testing import ManualClock
from tests.support.naming import shown

DATA = DataSerializer()


class Colour(enum.Enum):
    RED = "red"
    GREEN = (0, 255, 0)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Speed(enum.StrEnum):
    LOW = "low"
    HIGH = "high"


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclass
class Segment:
    ends: list[Point]
    colour: Colour | None = None
    length: float = field(init=False, default=1.0)


class Struct(msgspec.Struct, rename="camel"):
    first_name: str
    born: date | None = None


class Model(pydantic.BaseModel):
    when: datetime
    amount: Decimal
    tags: set[str] = set()


class Aliased(pydantic.BaseModel):
    user_id: int = pydantic.Field(alias="userId")
    nested: Model | None = None


class Open(pydantic.BaseModel, extra="allow"):
    a: int


class Root(pydantic.RootModel[list[int]]):
    pass


class Pair(NamedTuple):
    a: int
    b: int


def back(value: Any) -> Any:
    return DATA.loads(DATA.dumps(value, "value"))


# -- there and back ----------------------------------------------------------------------------------------------------

ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kathmandu"]
).map(ZoneInfo)
OFFSETS = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(
    lambda delta: timezone(timedelta(seconds=int(delta.total_seconds())))
)
INSTANTS = st.datetimes(datetime(2, 1, 2), datetime(9998, 1, 1), timezones=st.none() | OFFSETS | ZONES)
HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 80), 1 << 80),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    INSTANTS,
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.sampled_from([*Colour, *Level, *Bits]),
    st.builds(Point, st.integers(-1000, 1000), st.integers(-1000, 1000)),
)
VALUES = st.recursive(
    HASHABLE | st.builds(Struct, st.text("abc"), st.none() | st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
    ),
    max_leaves=10,
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=False)
        return len(a) == len(b) and all(same(x[0], y[0]) and same(x[1], y[1]) for x, y in pairs)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=False))
    if isinstance(a, datetime):
        return a == b and a.utcoffset() == b.utcoffset() and a.replace(tzinfo=None) == b.replace(tzinfo=None)
    return bool(a == b)


@given(VALUES)
def test_what_comes_back_is_what_went_in(value: Any) -> None:
    assert same(back(value), value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(1 << 63),
        (1 << 64) - 1,
        1 << 64,
        -(1 << 63) - 1,
        10**10_000,
        float("inf"),
        -0.0,
        "",
        "é🙂\0",
        b"",
        b"\xff\x00",
        (),
        set(),
        frozenset(),
        {},
        {1: "a", "b": 2, (1, 2): 3, None: 4},
        datetime.min,
        datetime.max,
        date.max,
        time(23, 59, 59, 999_999),
        time(1, tzinfo=timezone(timedelta(hours=2))),
        timedelta.max,
        timedelta.min,
        UUID(int=0),
        Decimal("1.10"),
        Decimal("-Infinity"),
        Decimal("1E+1000"),
        Colour.GREEN,
        Level.HIGH,
        Bits.A,
        Point(1),
        Segment([Point(1, 2)], Colour.RED),
        Struct("Ada", date(1815, 12, 10)),
        Model(when=datetime(2026, 1, 1, tzinfo=UTC), amount=Decimal("1.10"), tags={"a"}),
        Aliased(userId=5, nested=Model(when=datetime(2026, 1, 1, tzinfo=UTC), amount=Decimal(1))),
        Open(a=1, b=[2]),  # type: ignore[call-arg]  # the model allows further fields
        Root([1, 2]),
        {"a": [{"b": (Point(1), {Colour.RED: b"x"})}]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_type_is_restored_as_what_it_was(value: Any) -> None:
    restored = back(value)
    assert restored == value
    assert type(restored) is type(value)


def test_nan_comes_back_as_nan() -> None:
    restored = back(float("nan"))
    assert restored != restored


def test_a_datetime_keeps_its_zone() -> None:
    value = datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert back(value).tzinfo == ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize(
    "wall", [datetime(2026, 10, 25, 2, 30), datetime(2016, 3, 27, 2, 0)], ids=["fold", "gap"]
)
def test_a_datetime_keeps_its_fold(fold: int, wall: datetime) -> None:
    value = wall.replace(tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
    assert back(value).fold == fold
    assert back(value).timestamp() == value.timestamp()


def test_a_datetime_in_a_gap_keeps_its_wall_time() -> None:
    value = datetime(2026, 3, 29, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert back(value).isoformat() == value.isoformat()


# -- what is refused ---------------------------------------------------------------------------------------------------


class Plain:
    pass


class Words(list[str]):
    pass


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "value"),
        (Plain(), "value"),
        (Plain, "value"),
        (print, "value"),
        (1j, "value"),
        (bytearray(b"x"), "value"),
        (range(3), "value"),
        (iter([]), "value"),
        (OrderedDict(a=1), "value"),
        (Pair(1, 2), "value"),
        (Words(), "value"),
        ([1, [2, object()]], "value[1][1]"),
        ((1, object()), "value[1]"),
        ({"a": {"b": object()}}, "value.a.b"),
        ({1: object()}, "value[1]"),
        ({object(): 1}, "value key"),
        (Segment([Point(object())]), "value.ends[0].x"),  # type: ignore[arg-type]  # what cannot be stored is what is tested
        (ValueError("x"), "value"),
        ("\ud800", "value"),
        ([{"a": "\ud800"}], "value[0].a"),
    ],
    ids=shown,
)
def test_what_cannot_be_stored_is_refused_with_the_path_to_it(value: Any, path: str) -> None:
    with pytest.raises(SerializationError) as caught:
        DATA.dumps(value, "value")
    assert str(caught.value).startswith(f"{path}:") or str(caught.value).startswith(f"{path} ")


def test_what_contains_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(SerializationError, match="contains itself"):
        DATA.dumps(ring, "value")


def test_a_local_class_is_refused_because_it_cannot_be_found_again() -> None:
    @dataclass
    class Local:
        x: int

    with pytest.raises(SerializationError, match="local class"):
        DATA.dumps([Local(1)], "value")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91", b"\xc7\x01\x63\x00", b"\xd9\xff"])
def test_data_that_cannot_be_read_is_a_serialization_error(data: bytes) -> None:
    with pytest.raises(SerializationError):
        DATA.loads(data)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_serialization_error(data: bytes) -> None:
    try:
        DATA.loads(data)
    except SerializationError:
        return


@given(VALUES, st.data())
def test_no_damage_raises_anything_but_a_serialization_error(value: Any, data: Any) -> None:
    stored = bytearray(DATA.dumps(value, "value"))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] = data.draw(st.integers(0, 255))
    try:
        DATA.loads(bytes(stored))
    except SerializationError:
        return


def _renamed(value: Any, old: str, new: str) -> bytes:
    """The stored *value*, with the name of its class changed to one of the same length."""
    assert len(old) == len(new)
    stored = DATA.dumps(value, "value")
    assert old.encode() in stored
    return stored.replace(old.encode(), new.encode())


@pytest.mark.parametrize("name", ["Plain", "sys  ", "nope ", "print"])
def test_only_data_classes_are_made(name: str) -> None:
    with pytest.raises(SerializationError):
        DATA.loads(_renamed(Point(1), "Point", name))


def test_reading_never_imports() -> None:
    """A class of a module that is not loaded stays unread, even though it could be imported."""
    script = """
import sys
from asyncsched import DataSerializer, SerializationError
import dataclasses
@dataclasses.dataclass
class Thing:
    x: int
Thing.__module__, Thing.__qualname__ = "wave", "Thing"
stored = DataSerializer().dumps(Thing(1), "value")
assert "wave" not in sys.modules
try:
    DataSerializer().loads(stored)
except SerializationError as error:
    assert "wave" in str(error), error
else:
    raise AssertionError
assert "wave" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={"PYTHONPATH": ":".join(path or "." for path in sys.path)},
    )


# -- pickle ------------------------------------------------------------------------------------------------------------


def test_pickle_warns_that_it_trusts_the_store() -> None:
    with pytest.warns(UserWarning, match="run code"):
        PickleSerializer()


@pytest.fixture
def pickled() -> PickleSerializer:
    with pytest.warns(UserWarning, match="run code"):
        return PickleSerializer()


def test_pickle_stores_what_pickle_can(pickled: PickleSerializer) -> None:
    value = {"a": OrderedDict(b=Pair(1, 2)), "c": 1j}
    assert pickled.loads(pickled.dumps(value, "value")) == value


def test_pickle_refuses_what_pickle_cannot(pickled: PickleSerializer) -> None:
    with pytest.raises(SerializationError, match=r"^value: "):
        pickled.dumps(lambda: None, "value")
    with pytest.raises(SerializationError):
        pickled.loads(b"nonsense")


@pytest.mark.anyio
async def test_a_scheduler_without_pickle_never_unpickles(
    clock: ManualClock, pickled: PickleSerializer
) -> None:
    async def task(value: Any) -> None: ...

    store = MemoryStore()
    async with Scheduler(store, queues=(), serializer=pickled, clock=clock) as scheduler:
        scheduler.register(task, "t")
        await scheduler.add_job("t", id="x", args=[1j])
        assert (await scheduler.get_job("x")).args == (1j,)
    async with Scheduler(store, clock=clock) as scheduler:
        scheduler.register(task, "t")
        assert (await scheduler.get_job("x")).args != (1j,)
        await clock.advance(1)
        [run] = await scheduler.history.runs("x")
        assert run.outcome == "failed"
        assert "SerializationError" in (run.error or "")


@pytest.mark.anyio
async def test_a_scheduler_with_pickle_reads_plain_data_too(
    clock: ManualClock, pickled: PickleSerializer
) -> None:
    async def task(value: Any) -> Any:
        return value

    store = MemoryStore()
    async with Scheduler(store, queues=(), clock=clock) as scheduler:
        scheduler.register(task, "t")
        await scheduler.add_job("t", id="x", args=["plain"])
    async with Scheduler(store, serializer=pickled, clock=clock) as scheduler:
        scheduler.register(task, "t")
        await clock.advance(1)
        assert (await scheduler.history.runs("x"))[0].result == "plain"


# -- annotations -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given_", "annotation", "expected"),
    [
        (5, float, 5.0),
        ({"x": 1, "y": 2}, Point, Point(1, 2)),
        ([1, 2], tuple[int, int], (1, 2)),
        ("high", Speed, Speed.HIGH),
        ("2026-01-01T00:00:00Z", datetime, datetime(2026, 1, 1, tzinfo=UTC)),
        (str(UUID(int=5)), UUID, UUID(int=5)),
        ([{"x": 1}], list[Point], [Point(1)]),
        (None, int | None, None),
        ({"a": 1}, dict[str, int], {"a": 1}),
        (Point(3), Point, Point(3)),
        (Point(3), Any, Point(3)),
        (5, Annotated[int, msgspec.Meta(ge=0)], 5),
    ],
    ids=str,
)
async def test_arguments_are_decoded_to_the_tasks_annotations(
    scheduler: Scheduler, clock: ManualClock, given_: Any, annotation: Any, expected: Any
) -> None:
    seen: list[Any] = []

    async def task(value: Any) -> None:
        seen.append(value)

    task.__annotations__["value"] = annotation
    await scheduler.add_job(scheduler.register(task, "t"), args=[given_])
    await scheduler.add_job("t", kwargs={"value": given_})
    await clock.advance(1)
    assert seen == [expected, expected]
    assert type(seen[0]) is type(expected)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given_", "annotation"),
    [
        ("5", int),
        (5, str),
        (None, int),
        ({"z": 1}, Point),
        ("blue", Speed),
        ([1, "2"], list[int]),
        (Plain(), Point),
    ],
    ids=shown,
)
async def test_arguments_that_do_not_fit_the_annotations_are_refused_when_added(
    scheduler: Scheduler, given_: Any, annotation: Any
) -> None:
    async def task(value: Any) -> None: ...

    task.__annotations__["value"] = annotation
    with pytest.raises(SerializationError, match=r"args\[0\]"):
        await scheduler.add_job(scheduler.register(task, "t"), args=[given_])
    assert await scheduler.get_jobs() == []


@pytest.mark.anyio
async def test_pydantic_models_travel_to_a_task(scheduler: Scheduler, clock: ManualClock) -> None:
    seen: list[Any] = []

    @scheduler.task(name="t")
    async def task(model: Aliased, models: list[Model]) -> None:
        seen.extend([model, models])

    model = Model(when=datetime(2026, 1, 1, tzinfo=UTC), amount=Decimal("1.10"))
    await scheduler.add_job(task, args=[Aliased(userId=5, nested=model)], kwargs={"models": [model]})
    await clock.advance(1)
    assert seen == [Aliased(userId=5, nested=model), [model]]


@pytest.mark.anyio
async def test_arguments_that_fit_no_more_fail_the_run_and_not_the_scheduler(clock: ManualClock) -> None:
    store = MemoryStore()

    async def old(value: int) -> None: ...

    async def new(value: list[str], more: int) -> None: ...

    async with Scheduler(store, queues=(), clock=clock) as scheduler:
        scheduler.register(old, "t")
        await scheduler.add_job("t", id="x", args=[5])
    async with Scheduler(store, clock=clock) as scheduler:
        scheduler.register(new, "t")
        await clock.advance(1)
        assert (await scheduler.get_job("x")).state == "failed"
        assert (await scheduler.history.runs("x"))[0].outcome == "failed"
