"""The fixtures of the unit tests: a manual clock, a scheduler on it, schedulers over one kept store."""

from tests.unit.conftest import clock, make_scheduler, scheduler, sqlite_url

__all__ = ["clock", "make_scheduler", "scheduler", "sqlite_url"]
