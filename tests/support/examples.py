"""How many examples Hypothesis makes: the long profile makes as many times more everywhere."""

from hypothesis import settings

#: The default of Hypothesis, and so the unit.
_ORDINARY = 100


def examples(n: int) -> settings:
    """So many examples in an ordinary run; a decorator."""
    return settings(max_examples=n * settings.default.max_examples // _ORDINARY, deadline=None)
