"""History: what is kept of a run, in memory and in a file."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import adamx
from adamx.diagnostics import _relate
from adamx.diagnostics._relate import ranks
from adamx.reading import Diagnostics, Reading

NAN, INF = float("nan"), float("inf")
PARAMS = {"w": jnp.ones(3)}


def measured(count, at=None, **layers):
    """A reading with r/p50 of some layers."""
    numbers = {name: {"r/p50": value} for name, value in layers.items()}
    return Reading(
        count=count, learning_rate=0.1, diagnostics=Diagnostics(at or count, numbers)
    )


def strict(text):
    """JSON without the NaN that Python lets through."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def rich_reading(count):
    return Reading(
        count=count,
        learning_rate={"a": 0.1, "b": NAN},
        grad_norm=INF,
        weight_decay=None,
        skipped=2,
        more={"trust_ratio_mean": 0.5, "update_rms": {"x": 1.0, "y": -INF}},
        switch_step=-1,
        diagnostics=Diagnostics(
            count,
            {
                "a/é": {"r/p50": 0.1, "v_change": NAN},
                "b": {"r/p50": INF, "v_change": -INF},
            },
        ),
    )


def same(a, b):
    """Equal, types included, NaN equal to NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_round_trip(tmp_path):
    path = tmp_path / "run.jsonl"
    history = adamx.History(path)
    metrics = {"loss": NAN, "val_loss": -INF, "accuracy": 0.25, "tokens": 2**60}
    history.append(rich_reading(7), **metrics)
    history.append(Reading(), is_good=True)
    for line in path.read_text().splitlines():
        assert isinstance(strict(line), dict)
    for again in (adamx.History.load(path), adamx.History(path)):
        assert len(again) == 2
        for old, new in zip(history, again, strict=True):
            assert same(old.reading.scalars(), new.reading.scalars())
            assert same(dict(old.metrics), dict(new.metrics))
            assert old.step == new.step
        assert same(dict(again[0].reading.more), dict(rich_reading(7).more))
        assert again[0].reading.weight_decay is None
        assert same(again[0].metrics["tokens"], 2**60)


def test_a_killed_run_loses_at_most_the_last_line(tmp_path):
    path = tmp_path / "run.jsonl"
    history = adamx.History(path)
    for count in (1, 2, 3):
        history.append(measured(count, w=0.5), loss=1.0 / count)
        assert len(path.read_bytes().splitlines()) == count, "written at once"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last + 1, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.warns(UserWarning, match="line 3"):
            again = adamx.History(path)
        assert again.steps.tolist() == [1, 2]
        assert [line.number for line in again.broken] == [3]
        again.append(Reading(count=3), loss=0.5)
        with pytest.warns(UserWarning, match="line 3"):
            assert adamx.History.load(path).steps.tolist() == [1, 2, 3]
    path.write_bytes(whole[:-1])  # only the end of the line is lost: a whole record
    again = adamx.History(path)
    again.append(Reading(count=4))
    assert adamx.History.load(path).steps.tolist() == [1, 2, 3, 4]


def test_diagnostics_are_stored_when_they_change(tmp_path):
    history = adamx.History(tmp_path / "run.jsonl")
    counts = [(1, 0), (2, 2), (3, 2), (4, 4), (5, 4)]
    for count, at in counts:
        reading = Reading(
            count=count, diagnostics=Diagnostics(at, {"w": {"r/p50": at}})
        )
        history.append(reading)
    for one in (history, adamx.History.load(tmp_path / "run.jsonl")):
        assert [r.reading.diagnostics is not None for r in one] == [0, 1, 0, 1, 0]
        steps, values = one.series("w", "r/p50")
        assert steps.tolist() == values.tolist() == [2, 4]
    sizes = [len(line) for line in (tmp_path / "run.jsonl").read_bytes().splitlines()]
    assert sizes[2] < sizes[1] / 2
    # What is continued knows what was stored last.
    again = adamx.History(tmp_path / "run.jsonl")
    again.append(Reading(count=6, diagnostics=Diagnostics(4, {"w": {"r/p50": 4}})))
    assert len(again.series("w", "r/p50")[0]) == 2


def test_sequence():
    history = adamx.History()
    assert len(history) == 0
    assert history.layers == history.columns == history.numbers == ()
    for count in range(1, 6):
        history.append(Reading(count=count), loss=count * 2)
    assert [record.step for record in history] == [1, 2, 3, 4, 5]
    assert history[-1].metrics == {"loss": 10}
    assert history[-1].scalars() == {"count": 5, "loss": 10}
    assert [record.step for record in history[1:4:2]] == [2, 4]
    with pytest.raises(IndexError):
        history[5]


def test_columns():
    history = adamx.History()
    history.append(Reading(count=3, learning_rate={"a": 0.1, "b": 0.2}), loss=1.0)
    history.append(Reading(count=4, learning_rate={"a": 0.3, "b": 0.4}), val_loss=NAN)
    history.append(Reading(count=5, grad_norm=9.0, more={"x": 1.0}), grad_norm=7.0)
    assert history.steps.tolist() == [3, 4, 5]
    np.testing.assert_array_equal(history.column("loss"), [1.0, NAN, NAN])
    np.testing.assert_array_equal(history.column("learning_rate/b"), [0.2, 0.4, NAN])
    np.testing.assert_array_equal(history.column("x"), [NAN, NAN, 1.0])
    assert history.column("grad_norm")[2] == 7.0, "the user's own wins"
    assert history.is_recorded("val_loss").tolist() == [False, True, False]
    assert set(history.columns) == {
        *("loss", "val_loss", "grad_norm", "count", "x"),
        *("learning_rate/a", "learning_rate/b"),
    }
    with pytest.raises(ValueError, match=r"'learning_rate/a'.*got 'learning_rate'"):
        history.column("learning_rate")


def test_layers_that_come_and_go():
    history = adamx.History()
    history.append(measured(1, a=0.1))
    history.append(measured(2, b=0.2, a=0.3))
    history.append(measured(3, b=NAN))
    assert history.layers == ("a", "b")
    steps, values = history.matrix("r/p50")
    assert steps.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(values, [[0.1, 0.3, NAN], [NAN, 0.2, NAN]])
    steps, values = history.series("b", "r/p50")
    assert steps.tolist() == [2, 3]
    np.testing.assert_array_equal(values, [0.2, NAN])


def test_a_second_record_of_a_step_does_not_measure_it_again(tmp_path):
    history = adamx.History(tmp_path / "run.jsonl")
    for count, w in ((1, 1.0), (2, 2.0)):
        history.append(measured(count, w=w), loss=w)
        history.append(measured(count, w=w), val_loss=10 * w)
    for found in (history, adamx.History.load(tmp_path / "run.jsonl")):
        assert found.steps.tolist() == [1, 1, 2, 2]
        assert found.measured_steps.tolist() == [1, 2]
        assert found.series("w", "r/p50")[1].tolist() == [1.0, 2.0]
        np.testing.assert_array_equal(found.column("loss"), [1.0, NAN, 2.0, NAN])
        np.testing.assert_array_equal(found.column("val_loss"), [NAN, 10, NAN, 20])
        assert found[1].reading.diagnostics is None


def test_a_run_that_goes_back_replaces_its_records(tmp_path):
    history = adamx.History(tmp_path / "run.jsonl")
    for count in (1, 2, 3, 4):
        history.append(measured(count, w=float(count)), loss=1.0)
    with pytest.warns(UserWarning, match="from step 4 to 3: 2 records left") as warned:
        history.append(measured(3, w=30.0), loss=2.0)
    assert [one.filename for one in warned] == [__file__]
    history.append(Reading(count=3), val_loss=5.0)  # the same step: another record
    assert history.steps.tolist() == [1, 2, 3, 3]
    assert history.series("w", "r/p50")[1].tolist() == [1.0, 2.0, 30.0]
    for make in (adamx.History.load, adamx.History):
        with pytest.warns(UserWarning, match="went back") as warned:
            again = make(tmp_path / "run.jsonl")
        assert [one.filename for one in warned] == [__file__]
        assert again.steps.tolist() == [1, 2, 3, 3]


def test_readings_of_a_real_run(tmp_path):
    tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-2))

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(params)
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state, adamx.read(state), loss

    history = adamx.History(tmp_path / "run.jsonl")
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        params, state, reading, loss = step(params, state)  # 0-d arrays: read in jit
        history.append(reading, loss=loss, half=jnp.bfloat16(0.5), n=np.int64(3))
    assert history.steps.tolist() == [1, 2, 3]
    assert history.column("loss")[0] == 3.0
    assert history.column("grad_norm")[0] == pytest.approx(2 * math.sqrt(3))
    assert same(history[0].reading.learning_rate, 0.01)
    assert same(dict(history[0].metrics), {"loss": 3.0, "half": 0.5, "n": 3})


def test_one_history_for_each_of_several_runs():
    tx = adamx.adamw(1e-3)
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    state = jax.vmap(tx.init)(params)
    _, state = jax.vmap(tx.update)(params, state, params)
    batched = adamx.read(state)
    history = adamx.History()
    with pytest.raises(ValueError, match=r"shape \(2,\).*jax.tree.map"):
        history.append(batched)
    assert len(history) == 0
    history.append(jax.tree.map(lambda x: x[1], batched))
    assert history.steps.tolist() == [1]


def test_what_was_measured_before_going_back_is_there_once():
    history = adamx.History()
    for count, at in ((1, 1), (2, 1), (3, 3)):
        history.append(measured(count, at, w=float(at)))
    with pytest.warns(UserWarning, match="went back"):
        history.append(measured(2, 1, w=1.0))
    assert history.series("w", "r/p50")[0].tolist() == [1]
    history.append(measured(3, 3, w=3.0))
    assert history.series("w", "r/p50")[0].tolist() == [1, 3]


# -------------------------------------------------------------------------- relations


def planted(seed, layers, validations=40, drift=0.0, effect=0.0):
    """Measured twice between validations; layer 0's mean comes before the changes."""
    rng = np.random.default_rng(seed)
    history, val = adamx.History(), 5.0
    r = rng.normal(0.5, 0.1, (2 * validations, layers))
    r -= drift * np.outer(np.arange(2 * validations), np.linspace(0, 0.02, layers))
    for k in range(validations):
        for step in (2 * k, 2 * k + 1):
            numbers = {f"layer_{i}": float(x) for i, x in enumerate(r[step])}
            is_last = step == 2 * k + 1
            history.append(
                measured(step + 1, **numbers), val_loss=val if is_last else None
            )
        change = effect * (r[2 * k : 2 * k + 2, 0].mean() - 0.5) - drift * 3 / (1 + k)
        val += change + rng.normal(0, 0.1 if not drift else 0.03)
    return history


def test_correlations_are_those_of_scipy():
    history = planted(0, 3, effect=3.0)
    relations = history.relate()
    steps = history.steps[history.is_recorded("val_loss")]
    values = history.column("val_loss")[history.is_recorded("val_loss")]
    _, r = history.matrix("r/p50")
    for row in relations.rows:
        own = r[history.layers.index(row.layer)]
        x = own.reshape(-1, 2).mean(1)[:-1]  # two measurements up to each validation
        y = np.diff(values)
        assert row.pairs == len(y) == 39
        assert row.correlation == pytest.approx(scipy.stats.spearmanr(x, y)[0])
        # The partial one by its meaning: of what a line through the steps leaves.
        ranked = [scipy.stats.rankdata(v) for v in (x, y, steps[:-1])]
        design = np.stack([np.ones_like(ranked[2]), ranked[2]], 1)
        rest = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in ranked]
        expected = np.corrcoef(rest[0], rest[1])[0, 1]
        assert row.partial == pytest.approx(expected)


def test_the_layer_that_moves_is_named_and_no_other():
    named = [row.layer for row in planted(1, 12, effect=3.0).relate().moving]
    assert named == ["layer_0"]


def test_noise_and_drift_are_not_claimed():
    # By the stated level one table in 20 names a layer: of 40 tables 2, rarely 6.
    tables = [
        planted(seed, 8, validations=30, drift=1.0).relate() for seed in range(40)
    ]
    assert sum(bool(table.moving) for table in tables) <= 6
    rows = [row for table in tables for row in table.rows]
    assert sum(abs(row.correlation) > 0.6 for row in rows) > len(rows) / 2, "they drift"
    assert sum(abs(row.partial) > 0.6 for row in rows) <= 3


def test_too_few_pairs_say_nothing():
    relations = planted(2, 3, validations=8, effect=5.0).relate()
    assert relations.rows == relations.moving == ()
    assert "7 pairs are too few" in str(relations)
    assert planted(2, 3, validations=8, effect=5.0).relate(min_pairs=7).rows


def test_ahead_and_ties():
    history = planted(3, 2, effect=0.0)
    assert history.relate(ahead=5).rows[0].pairs == 35
    still = adamx.History()
    for count in range(1, 30):
        still.append(measured(count, w=0.5), val_loss=float(count % 3))
    (row,) = still.relate().rows
    assert math.isnan(row.correlation)
    assert not row.moves
    assert "nan" in str(still.relate())


def test_the_score_is_normal_for_rank_correlations_of_noise():
    """Its standard deviation is 1; n - 3 in the place of n - 4 has 1.09 here."""
    rng, scores = np.random.default_rng(0), []
    for _ in range(4000):
        x, y, t = (rng.permutation(10.0 + np.arange(10)) for _ in range(3))
        partial = _relate._correlations(x, y, t, 5)[2]
        scores.append(_relate._score(partial, 10) * np.sign(partial))
    assert np.std(scores) == pytest.approx(1.0, abs=0.04)


def test_equal_values_share_their_rank():
    values = np.random.default_rng(0).integers(0, 5, 50).astype(float)
    np.testing.assert_array_equal(ranks(values), scipy.stats.rankdata(values))


@pytest.mark.parametrize("is_outside", [False, True])
def test_measurements_go_on_where_steps_are_skipped(tmp_path, is_outside):
    """A guard around `diagnose` hides steps from it, one inside does not."""
    adam = adamx.adamw(0.1)
    inside = adamx.diagnose(adamx.guard(adam), every=4)
    tx = adamx.guard(adamx.diagnose(adam, every=4)) if is_outside else inside
    update = jax.jit(tx.update)
    params, history = {"w": jnp.ones(3)}, adamx.History(tmp_path / "run.jsonl")
    state = tx.init(params)
    for step in range(1, 15):
        scale = jnp.nan if step in (2, 7) else 1.0
        _, state = update({"w": jnp.full(3, scale)}, state, params)
        history.append(adamx.read(state))
    reading = adamx.read(state)
    assert (reading.count, reading.skipped) == (12, 2)
    expected = [5, 10, 14] if is_outside else [4, 8, 12]
    for found in (history, adamx.History.load(tmp_path / "run.jsonl")):
        assert list(found.steps) == list(range(1, 15))
        assert list(found.measured_steps) == expected
        assert found[-1].reading.count == 12
    assert reading.diagnostics.unseen == (2 if is_outside else None)
    assert reading.diagnostics.count == 12


ADAM, SGD = adamx.adamw(0.1), adamx.sgd(0.1)
SPIKES = {"spike_zscore": 6.0, "spike_warmup": 2}
GUARDED = {
    "guard": adamx.guard(ADAM),
    "stages": adamx.stages([(adamx.guard(ADAM), 5), (SGD, None)]),
    "guarded stages": adamx.guard(adamx.stages([(ADAM, 2), (SGD, None)])),
    "nothing that counts": optax.chain(adamx.guard(optax.sgd(0.1)), ADAM),
    "two guards": adamx.guard(adamx.guard(ADAM, **SPIKES)),
}


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("other", [ADAM, optax.sgd(0.1)])
def test_steps_where_one_of_several_groups_is_guarded(tmp_path, name, other):
    """What counts all steps is not behind by those that a guard skipped."""
    tx = adamx.groups([("a", GUARDED[name])], default=other)
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    state, history = tx.init(params), adamx.History(tmp_path / "run.jsonl")
    update = jax.jit(tx.update)
    scales = (1.0, 1.1, NAN, 0.9, 1e3, NAN, 1.0, NAN)
    for scale in scales:
        grads = {"a": jnp.full(3, scale), "b": jnp.ones(3)}
        _, state = update(grads, state, params)
        history.append(adamx.read(state))
    again = adamx.History()
    for record in history:
        again.append(record.reading)
    for found in (history, adamx.History(tmp_path / "run.jsonl"), again):
        assert found.steps.tolist() == list(range(1, 9))
        assert found[-1].reading.unseen == adamx.read(state).unseen
    assert "unseen" not in history.columns


def test_two_guards_hide_what_either_skips():
    """The inner one skips a spike, the outer one NaN, which the inner never sees."""
    tx = adamx.guard(adamx.diagnose(adamx.guard(ADAM, **SPIKES), every=1))
    state = tx.init(PARAMS)
    for scale in (1.0, 1.1, 0.9, 1e3, NAN, 1.0):
        _, state = tx.update({"w": jnp.full(3, scale)}, state, PARAMS)
    reading = adamx.read(state)
    assert (reading.count, reading.unseen, reading.skipped) == (4, 2, 1)
    assert reading.diagnostics.count + reading.diagnostics.unseen == 6


def test_a_batch_of_a_batch_hides_by_its_own_guard():
    """Seeds of members: a guard by seed, around counts by seed and member."""
    several = optax.GradientTransformation(
        jax.vmap(ADAM.init), lambda u, s, p=None: jax.vmap(ADAM.update)(u, s, p)
    )
    tx = adamx.guard(several)
    params = {"w": jnp.ones((3, 3, 2))}  # seeds, members, parameters
    state = jax.vmap(tx.init)(params)
    grads = {"w": params["w"].at[1].set(NAN)}
    _, state = jax.vmap(tx.update)(grads, state, params)
    for read in (adamx.read, jax.jit(adamx.read)):
        found = read(state)
        assert np.asarray(found.count).tolist() == [[1] * 3, [0] * 3, [1] * 3]
        assert np.asarray(found.unseen).tolist() == [[0] * 3, [1] * 3, [0] * 3]


def test_what_a_batch_or_a_traced_state_has_not_seen():
    """Member by member; and in jit and from shapes, without asking for a value."""
    tx = adamx.groups([("a", adamx.guard(ADAM))], default=optax.sgd(0.1))
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
    state = jax.vmap(tx.init)(params)
    for scale in ((1.0, NAN, 1.0), (NAN, NAN, 1.0)):
        grads = {"a": jnp.full((3, 2), jnp.array(scale)[:, None]), "b": params["b"]}
        _, state = jax.vmap(tx.update)(grads, state, params)
    for read in (adamx.read, jax.jit(adamx.read), jax.vmap(adamx.read)):
        found = read(state)
        assert np.asarray(found.count).tolist() == [1, 0, 2]
        assert np.asarray(found.unseen).tolist() == [1, 2, 0]
    assert jax.eval_shape(adamx.read, state).unseen.shape == (3,)
    assert adamx.read(jax.eval_shape(lambda: state)).unseen.shape == (3,)


def test_a_batch_of_stages_with_a_guard_inside():
    """Stages count what the guard skips: nothing is hidden, of any member."""
    for tx in (GUARDED["stages"], adamx.guard(GUARDED["stages"])):
        state = jax.vmap(tx.init)({"w": jnp.ones((3, 2))})
        for read in (adamx.read, jax.jit(adamx.read)):
            assert np.asarray(read(state).unseen).tolist() == [0, 0, 0]


def test_a_batch_counts_what_its_furthest_stage_counts():
    tx = adamx.groups([("a", adamx.guard(ADAM))], default=ADAM)
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}
    state = jax.vmap(tx.init)(params)
    grads = {"a": jnp.full((2, 3), jnp.array([[NAN], [1.0]])), "b": params["b"]}
    _, state = jax.vmap(tx.update)(grads, state, params)
    for read in (adamx.read, jax.jit(adamx.read)):
        found = read(state)
        assert np.asarray(found.count).tolist() == [1, 1]
        assert np.asarray(found.unseen).tolist() == [0, 0]


def test_steps_go_on_where_steps_are_skipped(tmp_path):
    tx = adamx.guard(adamx.adamw(0.1))
    state, history = tx.init(PARAMS), adamx.History(tmp_path / "run.jsonl")
    update = jax.jit(tx.update)
    for g in (1.0, NAN, NAN, 1.0):
        _, state = update({"w": jnp.full(3, g)}, state, PARAMS)
        history.append(adamx.read(state))
    history.append(Reading(count=2, skipped={"a": 1, "b": 3, "c": None}))
    history.append(Reading(count=1), step=7)
    assert history.steps.tolist() == [1, 2, 3, 4, 5, 7]
    assert adamx.History(tmp_path / "run.jsonl").steps.tolist() == [1, 2, 3, 4, 5, 7]
    with pytest.warns(UserWarning, match="went back from step 7 to 6"):
        history.append(Reading(count=8), step=np.int32(6))
