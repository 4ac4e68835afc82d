"""Two depths of one suite: what stands for the rest, and with ``--exhaustive`` all of it.

Each case of a test belongs to one of them, said where the test is: by ``cases``, or by
one of the marks ``short`` and ``exhaustive`` on all of a test. A test of few cases belongs
to the short depth without a word.
"""

from collections import Counter

import pytest

FEW = 6  # so many cases need no word


def cases(names, values, short, ids=None):
    """Parametrizes a test: the values in `short` stand for the rest.

    Args:
      names: the arguments, as for `pytest.mark.parametrize`.
      values: their values.
      short: those that the short depth runs, a container or a predicate.
      ids: as for `pytest.mark.parametrize`.

    Returns:
      The decorator.
    """
    one_name = "," not in names if isinstance(names, str) else False
    return pytest.mark.parametrize(names, marked(values, short, one_name), ids=ids)


def marked(values, short, one_name=True):
    """The values as parameters that say their depth, for a fixture."""
    values = list(values)
    chosen = short if callable(short) else short.__contains__
    assert any(map(chosen, values)), f"none of {values} stands for the rest"
    return [
        pytest.param(
            *([value] if one_name else value),
            marks=pytest.mark.short if chosen(value) else pytest.mark.exhaustive,
        )
        for value in values
    ]


def is_exhaustive(item):
    return item.get_closest_marker("exhaustive") is not None


def without_a_depth(items):
    """The tests of many cases of which none says its depth."""
    cases_of = Counter(name_of(item) for item in items if hasattr(item, "callspec"))
    said = {
        name_of(item)
        for item in items
        if is_exhaustive(item) or item.get_closest_marker("short") is not None
    }
    return sorted(name for name, n in cases_of.items() if n > FEW and name not in said)


def name_of(item):
    return item.nodeid.split("[")[0]
