"""diagnose: the numbers are NumPy's on the same moments, and the step is the same."""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx import catalogue
from adamx.diagnostics._layers import layers_of
from adamx.diagnostics._probe import RANGES, SINGLE
from adamx.diagnostics._sampling import sample
from adamx.diagnostics._sources import sources
from adamx.moments import _layout
from tests.compiling import AS_USERS
from tests.helpers import TEMPORARIES, enable_x64, some

QS = (10, 50, 90)
B2, EPS = 0.97, 1e-3
RATE = optax.linear_schedule(1e-2, 0.0, 20)
SHAPES = {"a": {"kernel": (17, 9), "bias": (9,)}, "b": (), "empty": (0, 3)}


def tree(seed, shapes=SHAPES, dtype=jnp.float32):
    rng = np.random.default_rng(seed)

    def leaf(shape):
        scale = 10.0 ** rng.uniform(-4, 1, shape)
        return jnp.asarray(rng.standard_normal(shape) * scale, dtype)

    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


def run(tx, steps, shapes=SHAPES, step=None, params=None):
    """Parameters before the last step, its gradient and updates, and the state."""
    params = tree(100, shapes) if params is None else params
    state = tx.init(params)
    update = jax.jit(tx.update) if step is None else step
    for seed in range(steps):
        before, gradients = params, tree(seed, shapes)
        updates, state = update(gradients, state, params)
        params = adamx.apply_updates(params, updates)
    return before, gradients, updates, state


def expected(p, g, u, mean, root, denominator, rate, qs=QS):
    """The numbers of a layer, in float64."""
    p, g, u, mean, root, denominator = (
        np.asarray(x, np.float64).ravel()
        for x in (p, g, u, mean, root, np.broadcast_to(denominator, np.shape(root)))
    )
    r = np.abs(mean) / denominator
    found = {}
    for q in qs:
        found[f"r/p{q}"] = np.percentile(r, q)
        found[f"m/p{q}"] = np.percentile(np.abs(mean), q)
        found[f"sqrt_v/p{q}"] = np.percentile(root, q)
        found[f"step/p{q}"] = rate * np.percentile(r, q)
    found["grad_norm"] = np.linalg.norm(g)
    found["param_norm"] = np.linalg.norm(p)
    found["update_norm"] = np.linalg.norm(u)
    found["update_ratio"] = np.linalg.norm(u) / np.linalg.norm(p)
    found["eps_share"] = np.mean(denominator > 2 * root)
    found["still_share"] = np.mean(r < 0.01)
    found["cosine"] = g @ mean / np.linalg.norm(g) / np.linalg.norm(mean)
    found["nonfinite"] = 0.0
    return found


def adam_moments(state, *path):
    """m_hat, sqrt(v_hat) and denominator by the definition."""
    mu, nu = state.mu, state.nu
    for name in path:
        mu, nu = mu[name], nu[name]
    mean = np.asarray(mu, np.float64) / float(state.bias_correction_mu)
    root = np.sqrt(np.asarray(nu, np.float64) / float(state.bias_correction_nu))
    return mean, root, root + float(state.eps)


def assert_numbers(got, want, rtol=2e-6):
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol, 1e-30, err_msg=name)


def make(**kw):
    return adamx.diagnose(adamx.adamw(RATE, b2=B2, eps=EPS), **{"every": 3} | kw)


@functools.cache
def compiled(**kw):
    """What `make` makes, and its update, compiled once for all tests."""
    tx = make(**kw)
    return tx, jax.jit(chex.assert_max_traces(tx.update, n=1))


def test_every_number_is_numpys_and_the_step_is_the_same():
    tx, update = compiled()
    p, g, u, state = run(tx, 6, step=update)
    found = adamx.read(state).diagnostics
    assert found.count == 6
    assert list(found.layers) == ["a/bias", "a/kernel", "b", "empty"]
    inner = state.inner_state[0]
    for name in ("bias", "kernel"):
        moments = adam_moments(inner, "a", name)
        own = (p["a"][name], g["a"][name], u["a"][name])
        want = expected(*own, *moments, float(RATE(5)))
        assert_numbers(found.layers[f"a/{name}"], want)
        # v_change: `test_it_is_measured_at_multiples_of_every_and_v_change_follows`.
        assert set(found.layers[f"a/{name}"]) == {*want, "v_change"}
    assert found.layers["empty"]["grad_norm"] == 0.0
    assert np.isnan(found.layers["empty"]["r/p50"])
    _, _, bare, plain = run(adamx.adamw(RATE, b2=B2, eps=EPS), 6)
    chex.assert_trees_all_equal((u, state.inner_state), (bare, plain))


def test_every_number_is_described():
    text = inspect.getdoc(adamx.diagnose)
    described = re.findall(r"^    ([a-z_]+(?:/p50)?)  ", text, re.MULTILINE)
    ranges = {f"{kind}/p50" for kind in RANGES}
    assert {*ranges, *SINGLE} == set(described)


def test_it_is_measured_at_multiples_of_every_and_v_change_follows():
    medians, (tx, update) = {}, compiled()
    for steps in range(1, 8):
        *_, state = run(tx, steps, step=update)
        found = adamx.read(state).diagnostics
        assert found.count == steps // 3 * 3
        if steps < 3:
            assert "r/p50/b" not in adamx.read(state).scalars()
            assert np.isnan(found.layers["b"]["grad_norm"])
        else:
            medians[found.count] = found.layers["a/kernel"]["sqrt_v/p50"]
    assert adamx.read(state).scalars()["r/p50/a/kernel"] > 0
    change = (medians[6] / medians[3]) ** 2 - 1
    assert found.layers["a/kernel"]["v_change"] == pytest.approx(change, rel=1e-5)


def test_the_extra_argument_measures_whatever_the_count():
    params = tree(0)
    tx = make(every=1000)
    update = jax.jit(lambda flag, s: tx.update(params, s, params, measure=flag)[1])
    state = update(jnp.array(False), tx.init(params))
    assert adamx.read(state).diagnostics.count == 0
    assert adamx.read(update(jnp.array(True), state)).diagnostics.count == 2


def _distributions():
    rng = np.random.default_rng(3)
    shape = (400, 500)
    normal = rng.standard_normal(shape)
    rows, columns = np.arange(400)[:, None], np.arange(500)[None, :]
    periodic = [np.where(columns % k == 0, 10.0, 0.1) for k in (2, 64, 100, 250)]
    return [
        normal,
        rng.uniform(size=shape),
        rng.lognormal(0, 3, shape),
        rng.standard_cauchy(shape),
        rng.exponential(size=shape),
        rng.beta(0.2, 0.2, shape),
        rng.pareto(1.0, shape),
        normal * 10.0 ** rng.uniform(-6, 2, (1, 500)),
        normal * 10.0 ** rng.uniform(-6, 2, (400, 1)),
        normal * (rng.uniform(size=(400, 1)) < 0.2),
        np.sort(normal.ravel()).reshape(shape),
        np.sort(normal, axis=0),
        np.sort(normal, axis=1),
        np.round(normal),
        *[normal * x for x in periodic],
        normal * (1.0 + rows),
        np.where((rows + columns) % 7 == 0, 5.0, normal),
    ]


def test_sampled_percentiles_are_within_the_stated_bound():
    """On 20 distributions: the share of elements below each, within 4 sigma."""
    distributions = _distributions()
    assert len(distributions) == 20
    tx = adamx.diagnose(adamx.rmsprop(1e-3), every=1)
    samples = 2048
    params = {f"{i:02}": jnp.ones((400, 500)) for i in range(len(distributions))}
    gradients = {
        f"{i:02}": jnp.asarray(x, jnp.float32) for i, x in enumerate(distributions)
    }
    _, state = jax.jit(tx.update)(gradients, tx.init(params), params)
    layers = adamx.read(state).diagnostics.layers
    for i, x in enumerate(distributions):
        size = np.abs(np.float32(x)).ravel()
        for q in QS:
            got = layers[f"{i:02}"][f"m/p{q}"]
            bound = 4 * np.sqrt(q / 100 * (1 - q / 100) / samples)
            below, at_most = np.mean(size < got), np.mean(size <= got)
            assert below - bound <= q / 100 <= at_most + bound, (i, q)
        # A sampled element stands for many.
        assert layers[f"{i:02}"]["param_norm"] == pytest.approx(np.sqrt(200_000))
        still = np.mean(size == 0)  # r is 0, or at the first step about 3
        assert layers[f"{i:02}"]["still_share"] == pytest.approx(still, abs=0.05)


@pytest.mark.parametrize("count", some([30, 100, 300], 30))
def test_many_small_leaves_count_for_what_they_are(count):
    """A matrix of noise, and vectors of 10 with r = 1: up to 1.5% of the elements."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 400, 500)).astype(np.float32)
    ones = {f"{i}": jnp.ones(10) for i in range(count)}
    tx = adamx.diagnose(adamx.adam(1.0, eps=0.0), every=2, by=lambda path: "all")
    update, state = jax.jit(tx.update), tx.init({"matrix": noise[0], **ones})
    for g in noise:
        _, state = update({"matrix": jnp.asarray(g), **ones}, state)
    mean = np.float64(0.1) * (0.9 * noise[0] + noise[1]) / (1 - 0.9**2)
    square = 0.001 * (0.999 * np.float64(noise[0]) ** 2 + np.float64(noise[1]) ** 2)
    r = np.abs(mean) / np.sqrt(square / (1 - 0.999**2))
    r = np.concatenate([r.ravel(), np.ones(10 * count)])
    numbers = adamx.read(state).diagnostics.layers["all"]
    for q in QS:
        bound = 4 * np.sqrt(q / 100 * (1 - q / 100) / 2048)
        below = np.mean(r < numbers[f"r/p{q}"] - 1e-6)
        at_most = np.mean(r <= numbers[f"r/p{q}"] + 1e-6)
        assert below - bound <= q / 100 <= at_most + bound, q


def test_a_sample_is_not_a_grid_and_finds_the_scales_of_its_elements():
    columns = np.broadcast_to(
        np.arange(256), (512, 256)
    )  # 64 elements apart: 4 columns
    found = np.asarray(sample(jnp.asarray(columns), (512, 256), 1, 2048))
    assert len(np.unique(found)) > 200
    # By blocks: 5 layers in 2, 10 rows in 3, of 4 and 4 and 2.
    scales = jnp.arange(36.0).reshape(2, 3, 6)
    layers = jnp.broadcast_to(_layout.spread(scales, (5, 10, 6)), (5, 10, 6))
    for count in (17, 60):
        want = sample(layers, (10, 6), 5, count)
        np.testing.assert_array_equal(sample(scales, (10, 6), 5, count), want)


def test_layers_of_65536_elements_are_seen_whole():
    shapes = {f"{n}": jax.ShapeDtypeStruct((n,), jnp.float32) for n in (65536, 65537)}
    layers = layers_of(shapes, lambda path: path, None, 2048)
    assert [layer.parts[0].samples for layer in layers] == [65536, 2048]


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_eps_is_the_larger_part_and_the_cosine_has_no_unit(factor):
    tx = adamx.diagnose(adamx.adam(1e-3, eps=1e-3), every=1)
    gradient = jnp.full(3, factor * 1e-3)
    _, state = tx.update(gradient, tx.init(gradient), gradient)
    (numbers,) = adamx.read(state).diagnostics.layers.values()
    assert numbers["eps_share"] == float(factor < 1)
    _, state = tx.update(gradient * 1e-25, tx.init(gradient), gradient)
    (numbers,) = adamx.read(state).diagnostics.layers.values()
    assert numbers["cosine"] == pytest.approx(1.0)  # whose squares are 0 in float32


def test_percentiles_at_the_ends_and_between():
    qs = (0, 37.5, 100)
    *_, state = run(make(percentiles=qs), 3)
    moments = adam_moments(state.inner_state[0], "a", "kernel")
    layer = adamx.read(state).diagnostics.layers["a/kernel"]
    for q in qs:
        want = np.percentile(np.abs(moments[0]) / moments[2], q)
        assert layer[f"r/p{q:g}"] == pytest.approx(want, rel=1e-6)


def test_stacked_layers_are_split():
    shapes = {"blocks": (3, 5, 4), "head": (5,)}
    tx = make(stacked="^blocks")
    p, g, u, state = run(tx, 3, shapes)
    layers = adamx.read(state).diagnostics.layers
    assert list(layers) == ["head", "blocks/0", "blocks/1", "blocks/2"]
    mean, root, denominator = adam_moments(state.inner_state[0], "blocks")
    for i in range(3):
        own = (p["blocks"][i], g["blocks"][i], u["blocks"][i])
        want = expected(*own, mean[i], root[i], denominator[i], float(RATE(2)))
        assert_numbers(layers[f"blocks/{i}"], want)


def test_layers_by_rules_functions_and_groups():
    both = [("^a/", "all of a")]
    p, g, u, state = run(make(by=both), 3)
    layers = adamx.read(state).diagnostics.layers
    assert list(layers) == ["all of a", "b", "empty"]
    parts = [adam_moments(state.inner_state[0], "a", n) for n in ("bias", "kernel")]
    joined = [
        np.concatenate([x.ravel() for x in xs]) for xs in zip(*parts, strict=True)
    ]
    flat = [
        np.concatenate([np.ravel(t["a"][n]) for n in ("bias", "kernel")])
        for t in (p, g, u)
    ]
    assert_numbers(layers["all of a"], expected(*flat, *joined, float(RATE(2))))
    *_, state = run(make(by=lambda path: "x" if "kernel" in path else None), 3)
    assert list(adamx.read(state).diagnostics.layers) == ["x"]
    grouped = adamx.groups([("bias", adamx.adam(0.5))], default=adamx.adamw(0.25))
    *_, state = run(adamx.diagnose(grouped, every=1, by="group"), 2)
    layers = adamx.read(state).diagnostics.layers
    assert list(layers) == ["bias", "default"]
    for name, rate in (("bias", 0.5), ("default", 0.25)):
        ratio = layers[name]["step/p50"] / layers[name]["r/p50"]
        assert ratio == pytest.approx(rate, rel=1e-6)


FAMILY = {
    "adam_l2": adamx.adam_l2(1e-3),
    "nadam": adamx.nadam(1e-3),
    "amsgrad": adamx.amsgrad(1e-3),
    "adamax": adamx.adamax(1e-3),
    "radam": adamx.radam(1e-3),
    "adabound": adamx.adabound(1e-3),
    "amsbound": adamx.amsbound(1e-3),
    "adopt": adamx.adopt(1e-3),
    "ademamix": adamx.ademamix(1e-3),
    "adam_mini": adamx.adam_mini(1e-3),
    "sparse_adam": adamx.sparse_adam(1e-3),
    "stable_adamw": adamx.stable_adamw(1e-3),
    "schedule_free": adamx.schedule_free_adamw(1e-3),
    "lamb": adamx.lamb(1e-3),
    "rmsprop": adamx.rmsprop(1e-3),
    "swats": adamx.swats(1e-3),
    "adam_to_sgd": adamx.adam_to_sgd(1e-3, 100),
    "cautious": adamx.cautious(adamx.adamw(1e-3)),
    "guard": adamx.guard(adamx.adamw(1e-3)),
    "accumulate": adamx.accumulate(adamx.adamw(1e-3), 1),
    "master_weights": adamx.master_weights(adamx.adamw(1e-3)),
    "chain": optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3)),
    "inject": optax.inject_hyperparams(adamx.adamw)(1e-3),
    "hyperparams": adamx.with_hyperparams(adamx.adamw, learning_rate=1e-3),
    "stages": adamx.stages([(adamx.adamw(1e-3), 2), (adamx.adam(1e-3), None)]),
    "int8": adamx.adamw(
        1e-3,
        mu_dtype=adamx.codecs.int8(min_size=0),
        nu_dtype=adamx.codecs.int8(min_size=0),
    ),
}


# Quickly: a mean of many elements, an average, and a stage. Codes are read by
# `test_int8_moments_are_read_as_decoded`, a guard by `test_nan_and_inf_are_counted...`.
QUICK = ("adam_mini", "schedule_free", "stages")


@pytest.mark.parametrize("name", some(FAMILY, *QUICK))
def test_every_optimizer_with_moments_is_seen(name):
    tx = adamx.diagnose(FAMILY[name], every=2)
    *_, updates, state = run(tx, 4)
    *_, bare, plain = run(FAMILY[name], 4)
    chex.assert_trees_all_close((updates, state.inner_state), (bare, plain), rtol=1e-6)
    numbers = adamx.read(state).diagnostics.layers["a/kernel"]
    assert all(np.isfinite(x) for x in numbers.values()), numbers
    assert numbers["r/p10"] <= numbers["r/p50"] <= numbers["r/p90"]
    assert numbers["step/p50"] == pytest.approx(1e-3 * numbers["r/p50"], rel=1e-5)
    want = np.linalg.norm(np.asarray(updates["a"]["kernel"], np.float64))
    assert numbers["update_norm"] == pytest.approx(want, rel=1e-4)


def test_behind_a_switch_the_ratios_are_nan_and_of_stages_the_active_counts():
    *_, state = run(adamx.diagnose(adamx.adam_to_sgd(1e-3, 2), every=1), 4)
    numbers = adamx.read(state).diagnostics.layers["a/kernel"]
    assert np.isnan(numbers["r/p50"])
    assert numbers["update_norm"] > 0
    first, second = adamx.adamw(1e-3, b1=0.5), adamx.adamw(1e-2, b1=0.8)
    tx = adamx.diagnose(adamx.stages([(first, 2), (second, None)]), every=1)
    _, g, _, state = run(tx, 3)  # one step of the second: m_hat is the gradient
    numbers = adamx.read(state).diagnostics.layers["a/kernel"]
    want = np.percentile(np.abs(np.asarray(g["a"]["kernel"])), 50)
    assert numbers["m/p50"] == pytest.approx(want, rel=1e-5)
    assert numbers["step/p50"] == pytest.approx(1e-2, rel=1e-3)


def test_of_stages_the_one_at_work_is_shown_though_it_takes_no_step():
    first, second = adamx.adamw(1e-2), adamx.adamw(1e-4)
    tx = adamx.accumulate(adamx.stages([(first, 3), (second, None)]), 2)
    *_, state = run(adamx.diagnose(tx, every=1), 3)  # the second micro-step's moments
    numbers = adamx.read(state).diagnostics.layers["a/kernel"]
    assert numbers["r/p50"] == pytest.approx(1.0, rel=1e-5)
    assert numbers["step/p50"] == pytest.approx(1e-2, rel=1e-5)


def test_behind_stages_with_moments_the_ratios_are_nan():
    tx = adamx.stages([(adamx.adamw(1e-2), 2), (adamx.sgd(0.1), None)])
    tx = adamx.diagnose(tx, every=1)
    for steps, is_shown in ((2, True), (3, False)):
        *_, state = run(tx, steps)
        numbers = adamx.read(state).diagnostics.layers["a/kernel"]
        for name in ("r/p50", "m/p50", "sqrt_v/p50", "step/p50", "cosine"):
            assert np.isfinite(numbers[name]) == is_shown, (steps, name)
        assert numbers["update_norm"] > 0


def test_a_rate_that_is_not_one_for_the_state_is_not_known():
    rule = ("kernel", adamx.scale_by_learning_rate(1e-2))
    rates = adamx.groups([rule], default=adamx.scale_by_learning_rate(1e-3))
    tx = optax.chain(adamx.scale_by_adam(), rates)
    *_, state = run(adamx.diagnose(tx, every=1), 1)
    for layer in ("a/kernel", "a/bias"):
        numbers = adamx.read(state).diagnostics.layers[layer]
        assert np.isnan(numbers["step/p50"])
        assert numbers["r/p50"] == pytest.approx(1.0, rel=1e-5)


def test_inside_stages_it_is_read_whatever_form_the_stage_has():
    seen = adamx.diagnose(adamx.adamw(1e-3), every=1)
    tx = adamx.stages([(seen, 2), (adamx.sgd(1e-3), None)])
    *_, state = run(tx, 2)
    want = adamx.read(state).diagnostics
    assert want.count == 2
    traced = jax.jit(lambda s: adamx.read(s).diagnostics)(state)
    chex.assert_trees_all_close(traced, want, rtol=1e-6)  # ratios are formed when read
    two = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    batched = adamx.read(two).diagnostics
    assert batched.layers["a/kernel"]["r/p50"].shape == (2,)


def test_int8_moments_are_read_as_decoded():
    codec = adamx.codecs.int8(min_size=0)
    tx = adamx.diagnose(adamx.adamw(RATE, mu_dtype=codec, nu_dtype=codec), every=3)
    *_, state = run(tx, 3)
    held = adamx.codecs.decode(state.inner_state)[0]
    mean, _, denominator = adam_moments(held, "a", "kernel")
    got = adamx.read(state).diagnostics.layers["a/kernel"]
    for q in QS:
        want = np.percentile(np.abs(mean) / denominator, q)
        assert got[f"r/p{q}"] == pytest.approx(want, rel=1e-5)


def test_fused_equals_the_protocol_and_needs_no_temporaries():
    tx, update = compiled(every=2)
    init, step = adamx.fused(tx)
    params = tree(100)
    state = init(params)
    for seed in range(4):
        params, state = jax.jit(step)(tree(seed), state, params)
    *_, other = run(tx, 4, step=update)
    chex.assert_trees_all_close(state, other, rtol=1e-5)

    large = {f"{i}": jax.ShapeDtypeStruct((2048, 2048), jnp.float32) for i in range(2)}

    def donated(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    program = (
        jax.jit(donated, donate_argnums=(0, 1))
        .lower(large, jax.eval_shape(tx.init, large), large)
        .compile(AS_USERS)
    )
    size = sum(4 * x.size for x in jax.tree.leaves(large))
    assert program.memory_analysis().temp_size_in_bytes <= TEMPORARIES * size


def test_scan_vmap_and_one_compilation():
    tx, update = compiled(every=2)
    params = tree(100)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[tree(i) for i in range(4)])

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (adamx.apply_updates(params, updates), state), None

    (_, scanned), _ = jax.lax.scan(step, (params, tx.init(params)), stacked)
    *_, looped = run(tx, 4, step=update)
    chex.assert_trees_all_close(scanned, looped, rtol=1e-5)
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    state, update = jax.vmap(tx.init)(two), jax.jit(jax.vmap(tx.update))
    for _ in range(2):
        _, state = update(two, state, two)
    found = adamx.read(state).diagnostics
    assert found.layers["a/kernel"]["grad_norm"].shape == (2,)
    ratio = np.divide(*found.layers["a/kernel"]["grad_norm"][::-1])
    assert ratio == pytest.approx(2.0, rel=1e-6)


def test_reading_slices_nothing_on_the_device():
    tx = adamx.diagnose(adamx.adam(1e-3), every=1)
    params = {"w": jnp.ones(3)}
    _, state = tx.update(params, tx.init(params), params)
    values = state.readings()["diagnostics"].layers["w"].values()
    assert not any(isinstance(value, jax.Array) for value in values)


def test_nan_and_inf_are_counted_in_their_layer():
    tx = adamx.diagnose(adamx.guard(adamx.adamw(1e-3)), every=1)
    params = tree(1)
    bad = tree(2)
    bad["a"]["kernel"] = (
        bad["a"]["kernel"].at[3, 3:6].set(jnp.nan).at[0, 0].set(jnp.inf)
    )
    _, state = jax.jit(tx.update)(bad, tx.init(params), params)
    layers = adamx.read(state).diagnostics.layers
    assert layers["a/kernel"]["nonfinite"] == 4
    assert layers["a/bias"]["nonfinite"] == 0
    assert layers["a/bias"]["grad_norm"] > 0
    large = jnp.zeros((600, 700))
    tx = adamx.diagnose(adamx.adamw(1e-3), every=1)
    for value, is_bad in ((jnp.nan, 1), (-jnp.inf, 1), (1e30, 1), (1e18, 0)):
        one = large.at[599, 3].set(value)
        _, state = jax.jit(tx.update)(one, tx.init(large), large)
        assert adamx.read(state).scalars()["nonfinite/(root)"] == is_bad


def test_eight_devices_give_the_numbers_of_one_and_gather_nothing():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    shapes = {"w": (256, 512), "b": (512,)}
    params = tree(0, shapes)
    specs = {"w": PartitionSpec("data"), "b": PartitionSpec("data")}
    place = {k: NamedSharding(mesh, v) for k, v in specs.items()}
    tx = make(every=1)
    gradients = tree(1, shapes)
    _, want = jax.jit(tx.update)(gradients, tx.init(params), params)
    spread = jax.device_put(params, place)
    arguments = (jax.device_put(gradients, place), tx.init(spread), spread)
    program = jax.jit(tx.update).lower(*arguments).compile()
    _, got = program(*arguments)
    chex.assert_trees_all_close(
        adamx.read(got).diagnostics.layers["w"],
        adamx.read(want).diagnostics.layers["w"],
        rtol=1e-5,
    )
    text = program.as_text()
    gathered = [line for line in text.splitlines() if "all-gather(" in line]
    assert not any("256,512" in line for line in gathered)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="no explicit axes before 0.7")
def test_explicit_axes_give_the_numbers_of_one_device():
    tx, shapes = make(every=1), {"large": (512, 256), "small": (8, 6)}
    params, gradients = tree(0, shapes), tree(1, shapes)
    _, want = jax.jit(tx.update)(gradients, tx.init(params), params)
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=explicit)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("x", "y"))
        params, gradients = jax.device_put((params, gradients), place)
        _, got = jax.jit(tx.update)(gradients, tx.init(params), params)
    for layer in shapes:
        chex.assert_trees_all_close(
            adamx.read(got).diagnostics.layers[layer],
            adamx.read(want).diagnostics.layers[layer],
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    "dtype",
    some(
        (jnp.float16, jnp.bfloat16, jnp.complex64),
        jnp.bfloat16,
        jnp.complex64,
    ),
)
def test_dtypes(dtype):
    params = tree(3, {"w": (9, 5)}, dtype)
    tx = make(every=1)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    numbers = adamx.read(state).diagnostics.layers["w"]
    assert numbers["cosine"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "rate",
    [
        pytest.param(1e-3, marks=pytest.mark.slow),
        pytest.param(lambda step: 1e-3 * 0.9**step, id="schedule"),
    ],
)
def test_x64_mode(rate):
    with enable_x64():
        shapes = {"double": (9, 5), "single": (7,), "large": (300, 300)}
        params = tree(3, shapes, jnp.float64)
        params["single"] = params["single"].astype(jnp.float32)
        tx = adamx.diagnose(adamx.adamw(rate, b2=B2, eps=EPS), every=2)
        update, state = jax.jit(tx.update), tx.init(params)
        for seed in range(4):
            g = jax.tree.map(lambda p, seed=seed: p * 0.9**seed, params)
            updates, state = update(g, state, params)
        layers = adamx.read(state).diagnostics.layers
        at = 1e-3 if rate == 1e-3 else 1e-3 * 0.9**3
        for name in ("double", "single"):
            moments = adam_moments(state.inner_state[0], name)
            want = expected(params[name], g[name], updates[name], *moments, at)
            assert_numbers(layers[name], want)
        norm = np.linalg.norm(np.asarray(g["large"]))
        assert layers["large"]["grad_norm"] == pytest.approx(norm, rel=1e-6)


def test_clients_and_checkpoints():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make(every=1), wrt=nnx.Param)
    gradients = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3)))))(model)
    takes_model = "model" in inspect.signature(nnx.Optimizer.update).parameters
    optimizer.update(*([model] if takes_model else []), gradients)
    layers = adamx.read(optimizer).diagnostics.layers
    assert set(layers) == {"bias", "kernel"}
    assert layers["kernel"]["r/p50"] == pytest.approx(1 / (1 + EPS), rel=1e-5)
    tx, params = make(every=1), tree(3)
    _, state = tx.update(params, tx.init(params), params)
    stored = serialization.to_bytes(state)
    restored = serialization.from_bytes(tx.init(params), stored)
    chex.assert_trees_all_equal(state, restored)
    mapped = optax.tree.map_params(tx, jnp.zeros_like, state)
    assert float(mapped.inner_state[0].mu["b"]) == 0.0


def test_gradients_without_parameters():
    tx = adamx.diagnose(adamx.scale_by_adam(), every=1)
    g = tree(1)
    _, state = jax.jit(tx.update)(g, tx.init(g))
    numbers = adamx.read(state).diagnostics.layers["a/kernel"]
    assert np.isnan(numbers["param_norm"])
    assert np.isnan(numbers["step/p50"])
    assert numbers["update_norm"] > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, r"`every` must be .* got 0"),
        ({"every": -3}, ValueError, r"`every` must be"),
        ({"every": 1.5}, ValueError, r"`every` must be"),
        ({"samples": 0}, ValueError, r"`samples` must be"),
        ({"percentiles": (50, 101)}, ValueError, r"`percentiles` .*\[0, 100\]"),
        ({"percentiles": (-1,)}, ValueError, r"`percentiles` .*\[0, 100\]"),
        ({"percentiles": ()}, ValueError, r"`percentiles` must be at least one"),
        ({"percentiles": (50, 50.0)}, ValueError, r"`percentiles` must differ"),
        ({"percentiles": 50}, TypeError, r"`percentiles` must be numbers"),
        ({"percentiles": (float("nan"),)}, ValueError, r"`percentiles`"),
        ({"by": "layer"}, ValueError, r"`by` must be"),
        ({"by": 3}, ValueError, r"`by` must be"),
        ({"by": ["a"]}, TypeError, r"`by\[0\]` must be a pair"),
        ({"by": [("(", "a")]}, ValueError, r"`by\[0\]\[0\]`"),
        ({"by": [("a", 3)]}, TypeError, r"`by\[0\]\[1\]`"),
        ({"by": [("a", r"\2")]}, ValueError, r"`by\[0\]\[1\]`"),
        ({"stacked": "("}, ValueError, r"`stacked`"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


def test_bad_input_at_init_and_update():
    params = tree(0)
    for tx in (adamx.sgd(1e-3), adamx.lion(1e-3), optax.adam(1e-3)):
        with pytest.raises(ValueError, match="must hold Adam-like moments"):
            adamx.diagnose(tx).init(params)
    with pytest.raises(TypeError, match="`tx` must be"):
        adamx.diagnose(3)
    with pytest.raises(ValueError, match="`stacked` matches 'b'"):
        make(stacked="^b$").init(params)
    with pytest.raises(ValueError, match="must all be stacks"):
        make(stacked="kernel", by=[("^a/", "a")]).init(params)
    with pytest.raises(TypeError, match="`by` must name a layer for 'a/bias'"):
        make(by=lambda path: 3).init(params)
    with pytest.raises(TypeError, match="diagnose"):
        make().update(params, adamx.adamw(1e-3).init(params), params)
    short = params | {"b": jnp.ones(2)}
    with pytest.raises(ValueError, match="shape"):
        make().update(short, make().init(params), params)


def test_all_numbers_are_fetched_at_once():
    *_, state = run(adamx.diagnose(adamx.adamw(RATE), every=1), 1)
    layers = state.readings()["diagnostics"].layers
    assert all(
        isinstance(number, (np.ndarray, np.generic))
        for numbers in layers.values()
        for number in numbers.values()
    )


def test_the_error_names_all_that_have_moments():
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="must hold Adam-like moments") as error:
        adamx.diagnose(adamx.sgd(1e-3)).init(params)
    supported = str(error.value).split("of this library")[0]
    names = [entry.name for entry in catalogue.OPTIMIZERS]
    named = {name for name in names if re.search(rf"\b{name}\b", supported)}
    states = {name: getattr(adamx, name)(1e-3).init(params) for name in names}
    assert named == {name for name, state in states.items() if sources(state)}
