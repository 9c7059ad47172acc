"""For tests: a clock that a test moves, a way to run what is due, and the suite that every job store is held to.

``StoreContract`` stands in :mod:`asyncsched.testing.contract`, which needs pytest.
"""

from asyncsched.testing.clock import ManualClock
from asyncsched.testing.due import run_due

__all__ = ["ManualClock", "StoreContract", "run_due"]


def __getattr__(name: str) -> object:
    """``StoreContract`` is loaded when it is asked for: it needs pytest, and the clock does not."""
    if name == "StoreContract":
        from asyncsched.testing.contract import StoreContract

        return StoreContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
