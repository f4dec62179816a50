"""`lr_sweep` and `lr_range_test`: the curves, one compilation, rules, pictures."""

import builtins
import contextlib
import re
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.diagnostics import _curves, _sweep, _sweep_run, _threads
from tests.helpers import enable_x64, some

STEPS = 40
RATES = np.geomspace(1e-3, 3.0, 11)
COMPILED = "/jax/core/compile/backend_compile_duration"


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def problem(steps=STEPS):
    rng = np.random.default_rng(0)
    params = {
        "kernel": 0.5 * rng.normal(size=(4, 5)),
        "bias": np.zeros(5),
        "out": 0.5 * rng.normal(size=5),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    x = rng.normal(size=(steps, 8, 4)).astype(np.float32)
    return params, (x, np.sin(x.sum(-1)).astype(np.float32))


def reference(make_tx, rates, params, batches):
    """A plain loop with the protocol; one rate for each step, or one for all."""
    losses = []
    state = make_tx(rates[0]).init(params)

    @jax.jit
    def step(rate, params, state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = make_tx(rate).update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for t in range(len(batches[0])):
        batch = jax.tree.map(lambda x, t=t: x[t], batches)
        params, state, loss = step(rates[t], params, state, batch)
        losses.append(loss)
    return np.array(losses)


@pytest.fixture(scope="module")
def sweep():
    return adamx.lr_sweep(loss_fn, *problem(), adamx.adamw, RATES)


@pytest.fixture
def compilations():
    heard = []

    def hear(event, duration, **kwargs):
        if event == COMPILED:
            heard.append(duration)

    jax.monitoring.register_event_duration_secs_listener(hear)
    yield heard
    jax.monitoring.clear_event_listeners()


# ----------------------------------------------------------------------- the curves


def test_the_curves_are_those_of_single_runs(sweep):
    assert sweep.losses.shape == (len(RATES), STEPS)
    np.testing.assert_allclose(sweep.learning_rates, RATES, rtol=1e-6)
    params, batches = problem()
    for i in (0, 5, 8):
        rates = np.full(STEPS, RATES[i], np.float32)
        want = reference(adamx.adamw, rates, params, batches)
        np.testing.assert_allclose(sweep.losses[i], want, atol=1e-5)


OTHERS = {
    "optax": lambda r: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(r, 0.9)),
    "injected": lambda r: optax.inject_hyperparams(optax.adam)(learning_rate=r),
    "fused": lambda r: adamx.guard(adamx.accumulate(adamx.adam(r), 2)),
    "loss handed on": lambda r: optax.chain(
        adamx.adam(r), optax.contrib.reduce_on_plateau()
    ),
    "curvature": adamx.sophia_h,
    "scheduled": lambda r: adamx.lion(adamx.schedules.warmup_cosine(r, STEPS)),
    "stochastic": lambda r: adamx.adamw(r, nu_dtype=adamx.codecs.int8()),
}


@pytest.mark.parametrize("name", some(OTHERS, "injected", "fused", "loss handed on"))
def test_any_transformation_will_do(name):
    params, batches = problem(12)
    rates = [1e-4, 1e-3, 1e-2]
    found = adamx.lr_sweep(loss_fn, params, batches, OTHERS[name], rates)
    assert np.isfinite(found.losses).all()
    assert len(np.unique(found.losses[:, -1])) == 3
    assert not found.diverged.any()


def test_chunks_devices_and_the_bar_change_nothing(sweep):
    params, batches = problem()
    for options in (
        {"chunk": 4},
        {"devices": jax.devices()[:1]},
        {"devices": jax.devices()[:3], "chunk": 5, "progress": True},
    ):
        found = adamx.lr_sweep(loss_fn, params, batches, adamx.adamw, RATES, **options)
        np.testing.assert_allclose(found.losses[:7], sweep.losses[:7], atol=1e-5)
        assert found.suggestion == sweep.suggestion


def test_rates_are_spread_over_the_devices(monkeypatch):
    meshes = []
    real = _sweep_run.mesh_of

    def spy(*args):
        meshes.append(real(*args))
        return meshes[-1]

    monkeypatch.setattr(_sweep_run, "mesh_of", spy)
    params, batches = problem(3)
    for rates in (RATES, RATES[:3], RATES[:1]):
        found = adamx.lr_sweep(loss_fn, params, batches, adamx.sgd, rates)
        assert found.losses.shape == (len(rates), 3)
    assert [mesh and mesh.size for mesh in meshes] == [8, 3, None]
    # What is spread over devices already stays as it is.
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    spec = jax.sharding.PartitionSpec(None, "data")
    spread = jax.device_put(batches, jax.sharding.NamedSharding(mesh, spec))
    again = adamx.lr_sweep(loss_fn, params, spread, adamx.sgd, RATES)
    assert meshes[-1] is None
    first = adamx.lr_sweep(loss_fn, params, batches, adamx.sgd, RATES)
    np.testing.assert_allclose(again.losses, first.losses, rtol=1e-5)


def test_one_compilation_refined_or_not(compilations):
    params, batches = problem()
    params = jax.block_until_ready(params)
    for refine in (None, len(RATES), 5):
        compilations.clear()
        found = adamx.lr_sweep(
            loss_fn, params, batches, adamx.nadam, RATES, refine=refine
        )
        assert len(compilations) == 1
        assert len(found.losses) == len(RATES) + (refine or 0)
    compilations.clear()
    adamx.lr_range_test(loss_fn, params, batches, adamx.nadam)
    assert len(compilations) == 1


def test_refined_rates_lie_inside_the_band():
    params, batches = problem()
    coarse = adamx.lr_sweep(loss_fn, params, batches, adamx.sgd, RATES)
    found = adamx.lr_sweep(loss_fn, params, batches, adamx.sgd, RATES, refine=5)
    assert found.refined.tolist() == [False] * len(RATES) + [True] * 5
    np.testing.assert_array_equal(found.losses[: len(RATES)], coarse.losses)
    step = RATES[1] / RATES[0]
    low, high = coarse.band[0] / step, coarse.band[1] * step
    finer = found.learning_rates[found.refined]
    assert ((finer > low * 0.999) & (finer < high * 1.001)).all()
    assert len(np.unique(finer)) == 5


def test_the_callers_arrays_stay(sweep):
    params, batches = problem()
    before = jax.tree.map(np.array, params)
    adamx.lr_sweep(loss_fn, params, batches, adamx.adamw, RATES, progress=True)
    adamx.lr_range_test(loss_fn, params, batches, adamx.adamw, progress=True)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_the_bar_ends_full(monkeypatch):
    seen = []

    @contextlib.contextmanager
    def bar(is_shown, total):
        seen.append([total, 0])

        def on_steps(steps):
            seen[-1][1] += steps

        yield on_steps

    monkeypatch.setattr(_sweep_run, "bar", bar)
    monkeypatch.setattr(_sweep_run, "_BLOCKS", 3)
    given = (loss_fn, *problem(10), adamx.sgd)
    # 3 rates, and 2 between them, two at a time on two devices: three calls of 10.
    options = {"devices": jax.devices()[:2], "chunk": 2, "refine": 2, "progress": True}
    found = adamx.lr_sweep(*given, [0.01, 0.02, 0.03], **options)
    assert seen == [[30, 30]]
    assert np.isfinite(found.losses).all()
    adamx.lr_range_test(*given, progress=True)
    assert seen[1:] == [[10, 10]]


def test_a_rate_that_diverges_touches_no_other():
    params, batches = problem()
    calm, wild = RATES[:4], [*RATES[:4], 1e30]
    alone = adamx.lr_sweep(loss_fn, params, batches, adamx.sgd, calm)
    found = adamx.lr_sweep(loss_fn, params, batches, adamx.sgd, wild)
    assert found.diverged.tolist() == [False] * 4 + [True]
    assert not np.isfinite(found.losses[4, -1])
    assert found.final[4] == np.inf
    np.testing.assert_allclose(found.losses[:4], alone.losses, atol=1e-6)


def test_random_keys_and_double_precision():
    keys = jax.random.split(jax.random.key(0), 6)

    def noisy(params, key):
        return jnp.mean((params - jax.random.normal(key, (3,))) ** 2)

    found = adamx.lr_sweep(noisy, jnp.ones(3), keys, adamx.adam, [1e-3, 1e-2])
    want = [float(noisy(jnp.ones(3), key)) for key in keys[:1]]
    np.testing.assert_allclose(found.losses[:, 0], want * 2, rtol=1e-6)

    with enable_x64():
        found = adamx.lr_sweep(
            lambda p, b: jnp.mean((p - b) ** 2),
            jnp.ones(3),
            jnp.zeros((4, 3)),
            adamx.sgd,
            [0.1],
        )
        assert found.losses.dtype == found.learning_rates.dtype == np.float64
        np.testing.assert_allclose(found.losses[0], (1 - 0.2 / 3) ** (2 * np.arange(4)))


# ------------------------------------------------------------------------ the rules


def test_smoothing_is_the_corrected_moving_average():
    losses = np.random.default_rng(0).normal(size=(3, 30))
    losses[1, 7], losses[2, 0] = np.nan, np.inf
    got = _curves.smooth(losses, 0.8)
    for t in (0, 1, 6, 29):
        weights = 0.8 ** np.arange(t, -1, -1)
        want = (losses[0, : t + 1] * weights).sum() / weights.sum()
        np.testing.assert_allclose(got[0, t], want, rtol=1e-12)
    assert np.isfinite(got[1, :7]).all()
    assert np.isnan(got[1, 7:]).all()
    assert np.isnan(got[2]).all()
    np.testing.assert_array_equal(_curves.smooth(losses[0], 0.0), losses[0])


def test_what_diverged():
    t = np.linspace(0, 1, 50)
    curves = {
        "falls": 2 - 1.5 * t,
        "still": 2 + 0 * t,
        "falls and returns": 2 - 1.4 * t + 2.0 * np.maximum(0, 2 * t - 1),
        "a small rise": 2 - 1.4 * t + 0.5 * np.maximum(0, 2 * t - 1),
        "blows up and recovers": 2 - 1.5 * t + 9 * (np.abs(t - 0.3) < 0.1),
        "a hump at first": 2 - 1.4 * t + 1.2 * (np.abs(t - 0.1) < 0.05),
        "not finite": np.where(t > 0.9, np.inf, 2 - t),
    }
    losses = np.stack(list(curves.values()))
    expected = [False, False, True, False, True, False, True]
    # A loss has neither a zero nor a unit.
    for scale, shift in ((1.0, 0.0), (1e-3, -7.0), (1e4, 1e5)):
        moved = scale * losses + shift
        got = _curves.is_diverged(moved, _curves.smooth(moved, 0.0))
        assert dict(zip(curves, got.tolist(), strict=True)) == dict(
            zip(curves, expected, strict=True)
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_does_not_move_has_not_diverged(dtype):
    still = np.full((4, 100), 0.7, dtype)
    rounded = still.copy()
    rounded[-1, 60:] = np.nextafter(dtype(0.7), dtype(1))
    for losses in (still, rounded):
        smoothed = _curves.smooth(losses, _curves.default_weight(100))
        assert not _curves.is_diverged(losses, smoothed).any()
    np.testing.assert_array_equal(_curves.smooth(still, 0.8), still)
    assert not _curves.from_divergence(_curves.smooth(still[0], 0.8)).any()


def test_the_gain_is_at_least_ten_deviations_of_a_loss():
    noise = np.random.default_rng(0).standard_normal((8, 4000))
    unit = _curves.gain(5.0 + noise, np.full((8, 4000), 99.0))
    assert unit == pytest.approx(10.0, rel=0.05)


UNSTABLE = {
    "grows by 1.44 to 1.96 a step": (60, [1.1, 1.15, 1.2]),
    "in 20 steps": (20, [1.1, 1.15, 1.2]),
    "in 10 steps": (10, [1.1, 1.15, 1.2]),
    "from slow to fast": (60, np.geomspace(1.02, 1.3, 8)),
    "squares leave float32": (60, [1.25, 1.3, 1.35, 1.4]),
    "one": (60, [1.02]),
}


def test_losses_that_rise_with_the_data_have_not_diverged():
    """Under each of five slow rates alike: the second half of the batches is harder."""
    rng = np.random.default_rng(0)
    losses = 1 + 0.005 * rng.normal(size=(5, 200))
    losses[:, 100:] += 0.1 + 0.05 * rng.normal(size=(5, 100))
    losses -= np.outer(np.linspace(0, 0.02, 5), np.linspace(0, 1, 200))
    found = _curves.is_diverged(losses, _curves.smooth(losses, 0.9))
    assert not found.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("with_a_good_one", [False, True])
@pytest.mark.parametrize("name", UNSTABLE)
def test_runs_that_end_above_their_start_have_diverged(name, with_a_good_one):
    """SGD on a parabola multiplies the distance by 1 - 2 r: all rates above 1 grow."""
    steps, rates = UNSTABLE[name]
    found = adamx.lr_sweep(
        lambda p, b: jnp.sum((p - b) ** 2),
        jnp.zeros(3),
        jnp.ones((steps, 3)),
        adamx.sgd,
        [0.1, *rates] if with_a_good_one else rates,
    )
    assert found.diverged[-len(rates) :].all()
    if with_a_good_one:
        assert not found.diverged[0]
        assert found.suggestion == pytest.approx(0.1)
        assert found.band == pytest.approx((0.1, 0.1))
    else:
        assert any("every rate diverged" in note for note in found.notes)
        with pytest.raises(ValueError, match=r"must include one that does not"):
            _ = found.suggestion


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_what_diverges_does_not_set_the_unit(scale):
    """Seven that blew up and stay where they began, beside one that learns slowly."""
    noise = 0.05 * np.random.default_rng(0).standard_normal((8, 200))
    losses = 2.3 + noise
    losses[0] -= np.linspace(0, 0.9, 200)
    losses[1:, 20:40] += 1e4 * np.arange(1, 8)[:, None]
    losses[:, 0] = 2.3
    losses = np.float32(scale * losses)
    smoothed = _curves.smooth(losses, _curves.default_weight(200))
    got = _curves.is_diverged(losses, smoothed)
    np.testing.assert_array_equal(got, [False] + [True] * 7)
    unit = _curves.gain(losses, smoothed)
    assert 0.5 * scale < unit < 1.5 * scale


@pytest.mark.parametrize("steps", some([20, 100, 1000], 20, 100))
def test_noise_about_a_start_is_no_divergence(steps):
    """Where nothing moves, however the losses are spread: one batch in a hundred may
    be far off, and the last one too."""
    random = np.random.default_rng(0)
    spreads = [random.standard_normal, random.standard_exponential]
    spreads.append(lambda size: random.standard_t(3, size))
    for _ in range(100):
        for spread in spreads:
            losses = np.tile(spread(steps), (4, 1))
            losses[:, -1] += 5.0
            smoothed = _curves.smooth(losses, _curves.default_weight(steps))
            assert not _curves._is_risen(losses, smoothed).any()


# label: (rates, scores, expected suggestion, expected band)
INF = np.inf
CHOICES = {
    "far apart: the lowest": ([1, 10, 100], [3, 1, 1.01], 1, (1, 2)),
    "next to an edge": ([1, 1.5, 2, 3], [9, 1.2, 1.0, INF], 1, (1, 2)),
    "a lucky one": ([1, 1.5, 2, 3, 4], [1.2, 1.2, 1.3, 1.0, 5], 0, (0, 3)),
    "first end": ([1, 1.5, 2], [1, 5, 9], 0, (0, 0)),
    "all the same": ([1, 2, 3], [1, 1, 1], 0, (0, 2)),
    "one": ([1], [4], 0, (0, 0)),
    "between two that diverged": ([1, 1.5, 2], [INF, 2, INF], 1, (1, 1)),
    "broken band": ([1, 2, 3, 4], [1, 9, 1, 0.9], 2, (2, 3)),
}


@pytest.mark.parametrize("label", CHOICES)
def test_the_suggestion(label):
    rates, scores, best, band = CHOICES[label]
    got = _curves.suggested(np.array(rates, float), np.array(scores, float), 10.0)
    assert got == (best, *band)


def test_order_does_not_matter(sweep):
    params, batches = problem()
    back = adamx.lr_sweep(loss_fn, params, batches, adamx.adamw, RATES[::-1])
    np.testing.assert_allclose(back.losses[::-1][:8], sweep.losses[:8], atol=1e-5)
    assert (back.suggestion, back.band) == (sweep.suggestion, sweep.band)


def a_sweep(rates, scores):
    """Curves that fall from 10 to the scores; inf: not finite at the end."""
    ends = np.array(scores)[:, None]
    losses = np.concatenate([np.full((len(rates), 1), 10.0), ends], axis=1)
    return _sweep._judged(np.array(rates), losses, 0.0, len(rates))


@pytest.mark.parametrize(
    ("rates", "scores", "is_noted"),
    [
        ((0.1, 0.25, 1.0), (2.0, 1.0, np.inf), True),
        ((0.13, 0.25, 1.0), (2.0, 1.0, np.inf), True),  # only below it
        ((0.1, 0.25, 0.5), (2.0, 1.0, 1.2), False),
        ((0.1, 0.25, 0.5), (1.8, 1.0, 3.0), False),
        ((0.01, 0.1, 1.0), (3.0, 2.0, 1.0), False),  # the highest: another note
    ],
)
def test_rates_too_far_apart_to_know_the_edge_are_noted(rates, scores, is_noted):
    found = a_sweep(rates, scores)
    assert found.suggestion == rates[np.argmin(scores)]
    assert any("up to twice this rate" in n for n in found.notes) == is_noted
    assert ("near divergence: refine" in found.table()) == is_noted


def test_where_all_diverge_the_suggestion_says_so():
    params, batches = problem(5)
    found = adamx.lr_sweep(loss_fn, params, batches, adamx.sgd, [1e30, 1e31], refine=2)
    assert found.diverged.all()
    assert "every rate diverged" in found.table()
    with pytest.raises(ValueError, match=r"`learning_rates` must include.*Try lower"):
        _ = found.suggestion


# ------------------------------------------------------------------- the rising rate


@pytest.fixture(scope="module")
def range_test():
    return adamx.lr_range_test(loss_fn, *problem(80), adamx.sgd, 1e-4, 100.0)


def test_the_rate_rises_at_every_step(range_test):
    rates = np.geomspace(1e-4, 100.0, 80).astype(np.float32)
    np.testing.assert_array_equal(range_test.learning_rates, rates)
    want = reference(adamx.sgd, rates, *problem(80))
    fine = slice(0, 50)
    np.testing.assert_allclose(range_test.losses[fine], want[fine], atol=1e-5)


def test_the_range_test_suggests_the_steepest_descent(range_test):
    found = range_test
    low, high = found.band
    assert low <= found.suggestion <= high
    lowest = np.nanargmin(found.smoothed)
    assert high == float(found.learning_rates[lowest])
    assert not found.diverged[: lowest + 1].any()
    assert found.diverged[-1]
    slope = np.gradient(found.smoothed, np.log(found.learning_rates))
    first = int(np.flatnonzero(found.learning_rates == np.float32(low))[0])
    best = first + np.argmin(slope[first:lowest])
    assert found.suggestion == float(found.learning_rates[best])
    is_high = found.smoothed > found.smoothed[0] - 0.1 * (
        found.smoothed[0] - found.smoothed[lowest]
    )
    assert is_high[first - 1]
    assert not is_high[first : lowest + 1].any()


def test_a_range_test_without_a_fall_says_so():
    params, batches = jnp.zeros(3), jnp.zeros((10, 3))
    found = adamx.lr_range_test(
        lambda p, b: jnp.sum((p - b) ** 2), params, batches, adamx.sgd
    )
    assert "did not fall" in found.table()
    with pytest.raises(ValueError, match=r"`low` and `high`.*add steps"):
        _ = found.suggestion


# ------------------------------------------------------------------ tables, pictures


def test_tables(sweep, range_test):
    text = str(sweep)
    assert text == sweep.table() == repr(sweep)
    assert text.count("suggestion") == 2
    assert f"suggestion {sweep.suggestion:.3g}" in text
    rows = [line for line in text.splitlines() if re.match(r" *[\d.e-]+ ", line)]
    assert len(rows) == len(RATES)
    assert "suggestion" in range_test.table()
    assert max(map(len, f"{text}\n{range_test.table()}".splitlines())) <= 88


@pytest.mark.parametrize("name", ["sweep", "range_test"])
def test_plot(name, request):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = request.getfixturevalue(name)
    ax = found.plot()
    assert ax.get_xscale() == "log"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"suggestion {found.suggestion:.2g}" in labels
    ax.figure.canvas.draw()
    _, own = plt.subplots(figsize=(3, 3))
    assert found.plot(ax=own) is own
    plt.close("all")


def test_plot_without_matplotlib_names_the_extra(sweep, monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=re.escape("pip install 'adamx[plots]'")):
        sweep.plot()


def test_on_a_cpu_only_so_many_rates_at_a_time_as_stay_in_its_cache(monkeypatch):
    params, batches = {"w": jnp.ones((4, 5))}, jnp.ones((3, 4))
    search = _sweep_run.checked(
        lambda p, batch: jnp.sum((batch @ p["w"]) ** 2), params, batches, adamx.adamw
    )
    # Parameters, gradients, two moments, and scalars.
    each = 4 * 20 * 4
    for size, cores, most, width in (
        (1.5 * each, 2, 32, 1),
        (6 * each, 1, 32, 4),  # not 5, which pads by 3
        (99 * each, 1, 32, 16),
        (99 * each, 2, 32, 8),
        (99 * each, 2, 7, 2),
        (99 * each, 64, 32, 1),
    ):
        monkeypatch.setattr(_sweep_run, "_CACHE", int(size))
        monkeypatch.setattr(_threads, "cores", lambda cores=cores: cores)
        assert _sweep_run.width_in_cache(search, most) == width


def test_each_core_has_a_thread(monkeypatch):
    """Of two items, each waits for the other one; behind an error none is begun."""
    monkeypatch.setattr(_threads, "cores", lambda: 2)
    both = threading.Barrier(2, timeout=60)

    def wait(item):
        both.wait()
        return -item

    assert _threads.in_threads(wait, [1, 2]) == [-1, -2]
    assert _threads.in_threads(lambda x: x, []) == []
    begun = []

    def fail(item):
        begun.append(item)
        if item == 0:
            raise ValueError(f"item {item}")
        time.sleep(0.05)

    with pytest.raises(ValueError, match="item 0"):
        _threads.in_threads(fail, range(50))
    assert len(begun) < 50


def test_a_sweep_keeps_the_settings_that_hold_around_it():
    """A thread has none of what `with` sets, so nothing is traced in one."""
    params, batches = problem()
    found = []

    def loss(p, batch):
        found.append(jax.config.jax_default_matmul_precision)
        return loss_fn(p, batch)

    with jax.default_matmul_precision("float32"):
        adamx.lr_sweep(
            loss, params, batches, adamx.sgd, RATES, devices=jax.devices()[:1]
        )
    assert set(found) == {"float32"}


def test_prints_of_chunks_are_in_order(monkeypatch):
    monkeypatch.setattr(_threads, "cores", lambda: 2)
    heard = []

    def loss(p, batch):
        jax.debug.callback(lambda x: heard.append(int(x)), p["step"], ordered=True)
        return p["step"] * 1.0 + jnp.sum(batch) * 0

    def make_tx(rate):
        return optax.GradientTransformation(
            lambda p: rate, lambda g, s, p: ({"step": jnp.ones(())}, s * 1)
        )

    params, batches = {"step": jnp.zeros(())}, jnp.ones((4, 2))
    train = _sweep.Trainer(
        _sweep_run.checked(loss, params, batches, make_tx),
        4,
        jax.devices()[:1],
        in_cache=True,
    )
    assert train.width == 1
    train(np.float32([1, 2, 3, 4]), None)
    jax.effects_barrier()
    assert heard == [0, 1, 2, 3] * 4


def test_chunks_side_by_side_have_the_curves_of_all_at_once(
    sweep, compilations, monkeypatch
):
    monkeypatch.setattr(_sweep_run, "_CACHE", 2000)
    monkeypatch.setattr(_threads, "cores", lambda: 2)
    params, batches = problem()
    train = _sweep.Trainer(
        _sweep_run.checked(loss_fn, params, batches, adamx.adamw),
        len(RATES),
        jax.devices()[:1],
        in_cache=True,
    )
    assert train.width == 3
    compilations.clear()
    losses = train(RATES.astype(np.float32), None)
    assert len(compilations) == 1
    np.testing.assert_allclose(losses[:7], sweep.losses[:7], atol=1e-5)
