"""The table of `tests/wrapper_pairs.py`: some pairs; in the slow run all of them."""

import re

import pytest

from tests import wrapper_pairs as table

# What no other file compiles: each wrapper with a step of its own is in one.
QUICK = [
    ("with_hyperparams", "loss_scaling"),
    ("master_weights", "guard"),
    ("guard", "accumulate", "groups", "stages"),
]
WORKING = [pair for pair in table.pairs() if pair not in table.REFUSED]


@pytest.mark.parametrize("pair", QUICK, ids=table.label)
def test_some_nests_work(pair):
    table.check(*pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", WORKING, ids=table.label)
def test_every_other_pair_works(pair):
    table.check(*pair)


@pytest.mark.parametrize("pair", table.REFUSED, ids=table.label)
def test_a_pair_is_refused(pair):
    message = table.refusal(*pair)
    assert message is not None
    assert re.search(table.REFUSED[pair], message)


def test_the_printed_table_is_of_these_pairs():
    """A new wrapper, and a pair that is refused from now on, want it printed anew."""
    lines = table.RESULT.read_text().splitlines()
    head, _, *rows = (line for line in lines if line.startswith("|"))
    cells = [[cell.strip("* `") for cell in row.split("|")[1:-1]] for row in rows]
    inners = [cell.strip("* `") for cell in head.split("|")[2:-1]]
    found = {
        (outer, inner): result
        for outer, *results in cells
        for inner, result in zip(inners, results, strict=True)
    }
    assert list(found) == list(table.pairs())
    refused = {pair for pair, result in found.items() if result.startswith("no ")}
    assert refused == set(table.REFUSED)
    assert {found[pair] for pair in WORKING} <= {"=", "~"}


def test_what_is_wrong_is_noticed(monkeypatch):
    """A wrapper that forgets a gradient in one of the two ways."""

    def forgetful(make):
        def of_rate(rate):
            tx = make(rate)

            def step(grads, state, params, **extra_args):
                del grads, extra_args
                return params, state

            return table.adamx._steps.with_step(
                tx.init, lambda *args: tx.update(*args), step
            )

        return of_rate

    monkeypatch.setitem(table.WRAPPERS, "forgetful", table.Wrapper(forgetful))
    with pytest.raises(AssertionError, match="fused against update"):
        table.check("forgetful", "with_hyperparams")
