"""History: measurements stand at the steps of the records, whatever diagnose counts."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.reading import Diagnostics, Reading

ADAM = adamx.adamw(0.1)
PARAMS = {"w": jnp.ones(3)}


def recorded(tx, calls, path=None, every=1, params=PARAMS):
    """The history of so many calls, one record for every so many of them."""
    state, history = tx.init(params), adamx.History(path)
    update = jax.jit(tx.update)
    for call in range(1, calls + 1):
        _, state = update(params, state, params)
        if call % every == 0:
            history.append(adamx.read(state), loss=1.0)
    return history


def measured(at, seen=None, count=None):
    """A reading whose layer was measured when `at` steps were counted."""
    layers = {"w": {"r/p50": float(at)}}
    return Reading(count=count, diagnostics=Diagnostics(at, layers, seen=seen))


def without_seen(path):
    """The file as earlier versions wrote it."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("seen", None)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


AROUND = {
    "accumulate": lambda tx: adamx.accumulate(tx, 4),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 4),
}


@pytest.mark.parametrize("name", AROUND)
def test_around_accumulation_measurements_stand_at_the_steps_taken(tmp_path, name):
    """Of 160 micro-steps every fourth is measured: each of the 40 steps once."""
    path = tmp_path / "run.jsonl"
    outside = recorded(adamx.diagnose(AROUND[name](ADAM), every=4), 160, path, every=4)
    inside = recorded(AROUND[name](adamx.diagnose(ADAM, every=1)), 160, every=4)
    assert outside.steps.tolist() == inside.steps.tolist() == list(range(1, 41))
    assert inside.measured_steps.tolist() == list(range(1, 41))
    for found in (outside, adamx.History(path), adamx.History.load(path)):
        assert found.measured_steps.tolist() == list(range(1, 41))
        assert found.series("w", "r/p50")[0].tolist() == list(range(1, 41))
        np.testing.assert_array_equal(
            found.matrix("r/p50")[1], inside.matrix("r/p50")[1]
        )
    without_seen(path)
    assert adamx.History(path).measured_steps.tolist() == list(range(1, 41))


@pytest.mark.parametrize("every", [1, 8, 24])
def test_rare_records_do_not_move_what_was_measured(every):
    """Each 12 micro-steps, so at steps 3, 6, ...; of rare records the last one each."""
    tx = adamx.diagnose(adamx.accumulate(ADAM, 4), every=12)
    history = recorded(tx, 72, every=every)
    want = [3, 6, 9, 12, 15, 18] if every < 12 else [6, 12, 18]
    assert history.measured_steps.tolist() == want
    # Micro-steps 5, 10, 15, 20: of the steps 2, 3, 4, 5, not taken to their ends.
    tx = adamx.diagnose(adamx.accumulate(ADAM, 4), every=5)
    assert recorded(tx, 24, every=8).measured_steps.tolist() == [2, 4, 5]


def test_several_measurements_of_a_step_stand_side_by_side(tmp_path):
    history = recorded(adamx.diagnose(adamx.accumulate(ADAM, 2), every=1), 6)
    assert history.steps.tolist() == [0, 1, 1, 2, 2, 3]
    assert history.measured_steps.tolist() == [0, 1, 1, 2, 2, 3]
    assert history.series("w", "r/p50")[1].shape == (6,)
    page = adamx.report(history, tmp_path / "run.html").read_text()
    assert "nan" not in page.lower().replace("nanmax", "")


def test_the_relation_to_the_validation_loss_is_the_same_outside_and_inside():
    """r at a step decides by how much the validation loss then changes."""

    def relation(tx):
        rng = np.random.default_rng(0)
        params, history, val_loss = {"w": jnp.ones(50)}, adamx.History(), 1.0
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(40):
            common = rng.choice([0.0, 3.0])
            for _ in range(4):
                g = {"w": jnp.asarray(common + rng.normal(size=50), jnp.float32)}
                _, state = update(g, state, params)
            reading = adamx.read(state)
            history.append(reading, loss=1.0, val_loss=val_loss)
            val_loss += reading.diagnostics.layers["w"]["r/p50"] - 0.4
        (row,) = history.relate(min_pairs=5, numbers=("r/p50",)).rows
        return row

    adam = adamx.adam(1e-3, b1=0.5, b2=0.9)
    inside = relation(adamx.accumulate(adamx.diagnose(adam, every=1), 4))
    outside = relation(adamx.diagnose(adamx.accumulate(adam, 4), every=4))
    assert outside.pairs == inside.pairs == 39
    assert outside.moves
    assert outside.partial == pytest.approx(inside.partial, abs=1e-6)


@pytest.mark.parametrize("lag", [0, 30])
@pytest.mark.parametrize("is_said", [True, False])
def test_an_optimizer_made_anew_counts_from_its_beginning(tmp_path, lag, is_said):
    """Steps passed by hand go on to 4,000; the optimizer has counted 2,000 twice."""
    path = tmp_path / "run.jsonl"
    history = adamx.History(path)
    for i in range(1, 41):
        seen = 100 * (i if i <= 20 else i - 20)
        reading = measured(seen - lag, seen if is_said else None, count=seen)
        history.append(reading, step=100 * i)
    for found in (history, adamx.History(path)):
        want = (found.steps - lag).tolist()
        assert found.measured_steps.tolist() == want


def test_steps_of_another_unit():
    """Tokens: a thousand for each step, which the first record alone does not tell."""
    history = adamx.History()
    for i in range(1, 41):
        history.append(measured(10 * i - 3, 10 * i, count=10 * i), step=10_000 * i)
    want = (history.steps - 3000).tolist()
    assert history.measured_steps.tolist() == [9997, *want[1:]]
    history = adamx.History()  # epochs of a hundred steps: of no run that went on
    for i in range(1, 5):
        history.append(measured(100 * i - 30, 100 * i, count=100 * i), step=i)
    assert history.measured_steps.tolist() == [1, 2, 3, 4]


def test_in_a_late_stage_measurements_stand_where_it_stands():
    tx = adamx.stages([(ADAM, 10), (adamx.diagnose(ADAM, every=3), None)])
    for every in (1, 4):
        history = recorded(tx, 24, every=every)
        want = [13, 16, 19, 22] if every == 1 else [16, 19, 22]
        assert history.measured_steps.tolist()[-len(want) :] == want


def test_groups_of_unlike_clocks_stand_by_the_furthest():
    """One accumulates and counts steps, the other all calls; of each its own count."""
    a = adamx.accumulate(adamx.diagnose(ADAM, every=1), 3)
    tx = adamx.groups([("a", a)], default=adamx.diagnose(ADAM, every=6))
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    history = recorded(tx, 24, every=3, params=params)
    assert history.steps.tolist() == list(range(3, 25, 3))
    assert set(history.layers) == {"a", "b"}
    assert set(history.measured_steps.tolist()) <= set(range(3, 25))
    assert np.all(np.diff(history.measured_steps) > 0)
    assert history.measured_steps[-1] == 24


def test_without_any_other_count_it_is_what_diagnose_counts():
    history = adamx.History()
    for i in range(1, 4):
        history.append(measured(100 * i))
    assert history.steps.tolist() == [0, 1, 2]
    assert history.measured_steps.tolist() == [100, 200, 300]


@pytest.mark.slow  # two large programs
def test_a_batch_says_what_each_member_has_counted():
    diagnosed = adamx.diagnose(ADAM, every=2)
    tx = adamx.groups([("a", diagnosed)], default=adamx.diagnose(ADAM, every=3))
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}
    state = jax.vmap(tx.init)(params)
    for _ in range(4):
        _, state = jax.vmap(tx.update)(params, state, params)
    for read in (adamx.read, jax.jit(adamx.read), jax.vmap(adamx.read)):
        found = read(state).diagnostics
        assert np.asarray(found.count).tolist() == [4, 4]
        assert np.asarray(found.seen).tolist() == [4, 4]


def test_a_new_optimizer_each_epoch_is_measured_each_time(tmp_path):
    """It counts to 10 each time: what it measured there are other measurements."""
    path = tmp_path / "run.jsonl"
    tx, history = adamx.diagnose(ADAM, every=10), adamx.History(path)
    update, rng = jax.jit(tx.update), np.random.default_rng(0)
    for epoch in range(1, 7):
        state = tx.init(PARAMS)
        for _ in range(10):
            g = {"w": jnp.asarray(rng.normal(size=3), jnp.float32)}
            _, state = update(g, state, PARAMS)
        history.append(adamx.read(state), loss=1.0 / epoch, step=10 * epoch)
        history.append(adamx.read(state), val_loss=1.0, step=10 * epoch)
    for found in (history, adamx.History(path)):
        assert found.measured_steps.tolist() == [10, 20, 30, 40, 50, 60]
        assert len(set(found.series("w", "r/p50")[1].tolist())) == 6
        assert [one.reading.diagnostics is None for one in found] == [False, True] * 6


def test_what_repeats_a_measurement(tmp_path):
    """The same count, layers, numbers and values, in whatever order they are."""

    def reading(**layers):
        return Reading(diagnostics=Diagnostics(100, layers, seen=100))

    first = {"a": {"x": 1.0, "y": float("nan")}, "b": {"x": 2.0, "y": 3.0}}
    turned = {"b": {"y": 3.0, "x": 2.0}, "a": {"y": float("nan"), "x": 1.0}}
    other = first | {"b": {"x": 2.0, "y": 4.0}}
    history = adamx.History(tmp_path / "run.jsonl")
    steps = [100, 100, 150, 200, 300, 400, 400]
    layers = [first, first, turned, other, first, {"a": first["a"]}, {"a": first["a"]}]
    for step, each in zip(steps, layers, strict=True):
        history.append(reading(**each), step=step)
    for found in (history, adamx.History(tmp_path / "run.jsonl")):
        assert found.measured_steps.tolist() == [100, 200, 300, 400]


def test_going_back_keeps_what_only_the_records_that_leave_had_measured(tmp_path):
    history = adamx.History(tmp_path / "run.jsonl")
    for step, at in ((1, 1), (2, 2), (3, 2)):
        history.append(measured(at, step, count=step))
    with pytest.warns(UserWarning, match="went back from step 3 to 2"):
        history.append(measured(2, 2, count=2))
    with pytest.warns(UserWarning, match="went back from step 3 to 2"):
        again = adamx.History(tmp_path / "run.jsonl")
    assert history.measured_steps.tolist() == again.measured_steps.tolist() == [1, 2]


def plain(steps, path=None):
    """A history of a run without `diagnose`, its steps passed by hand."""
    history = adamx.History(path)
    for step in steps:
        history.append(Reading(count=step), loss=1.0, step=step)
    return history


# What comes first behind plain records to 1,000: count, seen, step, where measured.
LATE = {
    "anew": (15, 15, 1015, 1010),
    "anew, and unrecorded for a while": (15, 15, 1515, 1510),
    "counting on": (1015, 15, 1015, 1010),
    "counting on, and steps from elsewhere": (15, 15, 51_015, 51_010),
    "around accumulation": (15, 60, 1015, 1003),
}


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("is_said", [True, False])
def test_diagnose_that_comes_later_measures_behind_the_record_before(
    tmp_path, name, is_said
):
    count, seen, step, want = LATE[name]
    history = plain(range(100, 1001, 100), tmp_path / "run.jsonl")
    history.append(measured(10, seen, count=count), step=step)
    if not is_said:
        without_seen(history.path)
    found = adamx.History(history.path).measured_steps
    assert history.measured_steps.tolist() == [want]
    assert found.tolist() == [want] if is_said else 1000 < found[0] <= step


def test_in_epochs_it_measures_behind_the_record_before():
    history = plain(range(1, 31))
    history.append(measured(50, 100, count=100), step=31)
    assert history.measured_steps.tolist() == [31]


def test_diagnose_that_comes_again_measures_behind_the_record_before():
    """Measured to step 500, not to step 1,000, then by an optimizer made anew."""
    history = adamx.History()
    history.append(measured(500, 500, count=500), step=500)
    for step in range(600, 1001, 100):
        history.append(Reading(count=step), step=step)
    history.append(measured(10, 20, count=20), step=1020)
    assert history.measured_steps.tolist() == [500, 1010]


# The first record of all, with its step passed: count, seen, step, where measured.
FIRST = {
    "from the start": (100, 100, 100, 50),
    "a run that goes on": (100, 100, 50_100, 50_050),
    "that counts on": (50_100, 100, 50_100, 50_050),
    "without a count": (None, 100, 50_100, 50_050),
    "around accumulation": (25, 100, 50_025, 50_013),
    "around accumulation, in micro-steps": (25, 100, 100, 50),
    "in a late stage": (400, 100, 50_400, 50_350),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_record_of_a_run(name):
    count, seen, step, want = FIRST[name]
    history = adamx.History()
    history.append(measured(50, seen, count=count), step=step)
    assert history.measured_steps.tolist() == [want]


class Foreign(NamedTuple):
    """A State of somebody else's, which does not say what it has counted."""

    n: Any

    def readings(self):
        return {"count": self.n, "diagnostics": Diagnostics(self.n, {"w": {"x": 2.0}})}


OTHERS = {"foreign": None, "diagnose": adamx.diagnose(ADAM, every=1), "none": ADAM}


@pytest.mark.parametrize(
    ("name", "is_first"),
    [("foreign", True), ("diagnose", True), ("diagnose", False), ("none", True)],
)
def test_a_batch_of_stages_of_which_one_does_not_say_what_it_counted(name, is_first):
    """One member in each of two stages: what was counted is not known, of either."""
    mine = optax.GradientTransformation(
        lambda params: Foreign(jnp.zeros((), jnp.int32)),
        lambda updates, state, params=None: (updates, Foreign(state.n + 1)),
    )
    both = [mine, OTHERS[name] or mine][:: 1 if is_first else -1]
    tx = adamx.stages([(both[0], 2), (both[1], None)])
    states, update = [tx.init(PARAMS)], jax.jit(tx.update)
    for _ in range(4):
        states.append(update(PARAMS, states[-1], PARAMS)[1])
    state = jax.tree.map(lambda *x: jnp.stack(x), states[1], states[4])
    for read in (adamx.read, jax.jit(adamx.read)):
        reading = read(state)
        assert reading.diagnostics.seen is None
        want = [1, 0 if name == "none" else 2]
        assert np.asarray(reading.diagnostics.count).tolist() == want
        history = adamx.History()
        for i in range(2):
            history.append(jax.tree.map(lambda x, i=i: x[i], reading))
        assert history.steps.tolist() == [1, 4]
