"""The mutation run's own bookkeeping; the run itself is started by hand."""

import pytest

from tests import mutation

OLD = """# Mutation run

5 of 7 mutants killed (71.4%).

| file | mutants | killed |
| --- | ---: | ---: |
| adam | 4 | 3 |
| _layout | 3 | 2 |

Survivors:

- adam.py line 3, sign: `-x  ->  x`
- _layout.py line 1, comparison: `a < b  ->  a >= b`

2026-11-22, two cores.

## A note

| _layout | 9 | 9 |
"""


def test_some_files_replace_their_own_lines_only():
    rows = {"_layout": (6, 6), "sgd": (2, 1)}
    got = mutation.merged(OLD, rows, ["- sgd.py line 8, x"])
    head, notes = got.split("\n2026", 1)
    assert notes == OLD.split("\n2026", 1)[1]
    assert (
        head
        == """# Mutation run

10 of 12 mutants killed (83.3%).

| file | mutants | killed |
| --- | ---: | ---: |
| adam | 4 | 3 |
| _layout | 6 | 6 |
| sgd | 2 | 1 |

Survivors:

- adam.py line 3, sign: `-x  ->  x`
- sgd.py line 8, x
"""
    )


def test_the_result_in_the_repository_can_be_continued():
    text = mutation.RESULT.read_text()
    assert mutation.merged(text, {}, []) == text


def test_a_sample_is_a_part_of_all_mutants():
    (path,) = [path for path in mutation.FILES if path.stem == "_layout"]
    every, some = (mutation.drawn(path, f) for f in (set(), {"--sample=7"}))
    assert len(some) == 7 < len(every)
    assert set(some) < set(every)
    assert mutation.drawn(path, {"--sample=1000"}) == every


@pytest.mark.parametrize("name", mutation.TESTS)
def test_files_with_tests_of_their_own_exist_and_have_mutants(name):
    (path,) = [path for path in mutation.FILES if path.stem == name]
    assert len(mutation.mutants(path, path.parent.name == "moments")) > 5
    for row in mutation.selections(path):
        assert all((mutation.ROOT / x).exists() for x in row if x.endswith(".py"))
