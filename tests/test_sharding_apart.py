"""Inside shard_map: what devices may decide, round and draw apart, and what not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import adamx
from adamx import codecs
from adamx.optimizers import _curvature
from adamx.optimizers.sophia import scale_by_sophia
from tests.helpers import some
from tests.test_bad_input import _check
from tests.test_sharding_norms import NAMES, SPECS, gradient, grid, shard_map

BOTH = ("data", "model")
needs_types = pytest.mark.skipif(
    not hasattr(jax, "shard_map"), reason="no types of what varies before 0.7"
)


def in_pieces(function, specs, out):
    return jax.jit(shard_map(function, mesh=grid(), in_specs=specs, out_specs=out))


# --------------------------------------------------------------------------- choices


@pytest.mark.parametrize("way", ["update", "fused"])
def test_loss_scaling_of_pieces_judges_as_one(way):
    """Not finite on one device: none steps, and all have the same scale."""
    tx = adamx.loss_scaling(adamx.sgd(1.0), initial_scale=4.0, axis_name=NAMES)

    def step(g, p):
        state = tx.init(p)
        if way == "fused":
            p, state = adamx.fused(tx).step(g, state, p)
        else:
            u, state = tx.update(g, state, p)
            p = adamx.apply_updates(p, u)
        return p, (state.scale, state.skipped)

    step = in_pieces(step, (SPECS, SPECS), (SPECS, P()))
    g, p = gradient(), gradient()
    large = g | {"w": g["w"].at[5, 2].set(1e30)}  # its square overflows
    bad = g | {"w": g["w"].at[5, 2].set(jnp.inf)}
    for given, is_good in ((g, True), (large, True), (bad, False)):
        new, (scale, skipped) = step(given, p)
        assert (float(scale), int(skipped)) == ((4.0, 0) if is_good else (2.0, 1))
        for name in p:
            want = p[name] - given[name] / 4 if is_good else p[name]
            np.testing.assert_array_equal(new[name], want)


def clip():
    return adamx.clip_by_global_norm(1.0, axis_name=BOTH)


# A wrapper without the axis_name of what it wraps; and with.
CHOOSING = {
    "guard": lambda **k: adamx.guard(optax.chain(clip(), adamx.sgd(1.0)), **k),
    "loss_scaling": lambda **k: adamx.loss_scaling(
        adamx.guard(adamx.sgd(1.0), axis_name=BOTH), **k
    ),
    "accumulate": lambda **k: adamx.guard(
        adamx.accumulate(optax.chain(clip(), adamx.sgd(1.0)), 2), **k
    ),
}


@needs_types
@pytest.mark.parametrize("way", ["update", "fused"])
@pytest.mark.parametrize("name", CHOOSING)
def test_devices_that_would_wait_for_ever_are_an_error(name, way):
    """One device skips a step, the others wait in it for its part of the norm."""
    g = {"w": gradient()["w"]}
    specs = {"w": P(*BOTH)}

    def lower(**kwargs):
        tx = CHOOSING[name](**kwargs)

        def step(g):
            state = tx.init(g)
            if way == "fused":
                return adamx.fused(tx).step(g, state, g)[0]
            return tx.update(g, state, g)[0]

        return in_pieces(step, (specs,), specs).lower(g)

    expected = "`axis_name` wrapper 'data', 'model' wait guard loss_scaling pmean"
    _check(lower, ValueError, expected)
    lower(axis_name=BOTH)


@needs_types
def test_copies_of_which_devices_judge_apart_are_no_copies():
    """A leaf that every device has whole, and a guard that sees pieces of others."""
    tx = adamx.guard(adamx.sgd(1.0))
    step = in_pieces(lambda g: tx.update(g, tx.init(g), g)[0], (SPECS,), SPECS)
    with pytest.raises(ValueError, match="replicat"):
        step.lower(gradient())


def test_a_hand_over_inside_shard_map():
    """Its conditionals have branches that vary along unlike axes."""
    first = adamx.lamb(1e-2, axis_name=BOTH)
    stages = adamx.stages([(first, 1), (adamx.sgd(0.1), None)])
    for tx in (adamx.adam_to_sgd(1e-2, 1, sgd_learning_rate=0.1), stages):

        def run(gradients, p, tx=tx):
            state = tx.init(p)
            for g in gradients:
                updates, state = tx.update(g, state, p)
            return updates

        g = {"w": gradient()["w"]}
        specs = {"w": P(*BOTH)}
        got = in_pieces(run, ([specs] * 2, specs), specs)([g, g], g)["w"]
        np.testing.assert_allclose(got, -0.1 * g["w"], rtol=1e-6)


# ----------------------------------------------------------------------------- codes


def signed(shape=(16, 8)):
    x = np.random.default_rng(0).standard_normal(shape)
    x *= np.exp(np.arange(shape[0]))[:, None] / 1e4  # pieces of unlike sizes
    return {"w": jnp.asarray(x, jnp.float32)}


def state_specs(tx, params):
    """Whatever has the parameter's rank is in pieces, scales too."""
    state = jax.eval_shape(tx.init, params)
    return jax.tree.map(lambda x: P(*BOTH) if x.ndim == 2 else P(), state)


@pytest.mark.parametrize("layout", some(["rank1", "block", "tensor"], "rank1"))
def test_a_scale_spans_the_piece_of_a_device(layout):
    """Each piece is encoded by itself; the whole is a state of blocks."""
    tx = adamx.scale_by_lion(b2=0.5, mu_dtype=codecs.int8(layout, min_size=1))
    g, specs = signed(), {"w": P(*BOTH)}
    out = state_specs(tx, g)

    def two_steps(g):
        state = tx.init(g)
        for _ in range(2):
            _, state = tx.update(g, state, g)
        return state

    apart = in_pieces(two_steps, (specs,), out)(g)
    whole = jax.jit(two_steps)(g)
    read = [np.asarray(codecs.decode(s.mu)["w"]) for s in (apart, whole)]
    for i in range(0, 16, 4):
        for j in (0, 4):
            at = np.s_[i : i + 4, j : j + 4]
            own = jax.jit(two_steps)({"w": g["w"][at]})
            np.testing.assert_array_equal(read[0][at], codecs.decode(own.mu)["w"])
            # Half a step of the code, twice, of the first half the error.
            truth = 0.75 * np.float64(g["w"][at])
            bound = 1.5 * np.abs(truth).max() / 127
            assert np.abs(read[0][at] - truth).max() <= bound
    truth = 0.75 * np.float64(g["w"])
    assert np.abs(read[1] - truth).max() <= 1.5 * np.abs(truth).max() / 127
    # It goes on without shard_map.
    _, after = jax.jit(tx.update)(g, apart, g)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, apart)
    truth = 0.875 * np.float64(g["w"])
    error = np.abs(codecs.decode(after.mu)["w"] - truth)
    assert error.max() <= 1.75 * np.abs(truth).max() / 127


@needs_types
def test_scales_of_whole_arrays_are_none_of_pieces():
    """A state made outside, one number for all: devices would each write another."""
    tx = adamx.scale_by_lion(mu_dtype=codecs.int8("tensor", min_size=1))
    g, specs = signed(), {"w": P(*BOTH)}
    out = jax.tree.map(lambda x: P(*BOTH) if x.shape == (16, 8) else P(), tx.init(g))
    step = in_pieces(lambda g, s: tx.update(g, s, g)[1], (specs, out), out)
    with pytest.raises(ValueError, match="replicat"):
        step.lower(g, tx.init(g))


def test_devices_may_have_random_bits_of_their_own():
    """A key that differs between devices: the same piece is not rounded alike."""
    tx = adamx.scale_by_lion(b2=0.5, mu_dtype=codecs.int8(min_size=1))
    g = {"w": jnp.tile(signed((4, 4))["w"], (4, 2))}

    def two_steps(g):
        state = tx.init(g)
        own = jax.lax.axis_index(BOTH).astype(jnp.uint32)
        state = state._replace(mu=state.mu._replace(key=state.mu.key + own))
        for _ in range(2):
            _, state = tx.update(g, state, g)
        return state.mu.codes

    specs = {"w": P(*BOTH)}
    codes = np.asarray(in_pieces(two_steps, (specs,), specs)(g)["w"])
    pieces = [codes[i : i + 4, j : j + 4] for i in range(0, 16, 4) for j in (0, 4)]
    assert len({piece.tobytes() for piece in pieces}) > 1
    assert np.ptp(pieces, axis=0).max() == 1


# ----------------------------------------------------------------------- diagnostics


@pytest.mark.slow  # a table takes long to compile
def test_each_device_measures_its_piece():
    """As an output of shard_map the tables follow one another, device by device."""
    tx = adamx.diagnose(adamx.adamw(0.1), every=1)

    def table(g):
        return tx.update(g, tx.init(g), g)[1].values

    g = {"w": gradient()["w"]}
    found = in_pieces(table, ({"w": P(*BOTH)},), P(BOTH))(g)
    alone = jax.jit(table)
    for device, (i, j) in enumerate((i, j) for i in range(0, 8, 2) for j in (0, 2)):
        want = alone({"w": g["w"][i : i + 2, j : j + 2]})[0]
        np.testing.assert_allclose(found[device], want, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------- curvature


def test_pieces_have_probes_of_their_own():
    """Hessian 2 everywhere: with the same signs on all, 8 times the diagonal."""

    def estimate(p, key):
        loss = lambda p: jax.lax.psum(jnp.sum(p), BOTH) ** 2  # noqa: E731
        many = jax.vmap(lambda k: _curvature.hutchinson(loss, p, p, k, "rademacher"))
        return jnp.mean(many(jax.random.split(key, 200)), axis=0)

    p = jnp.ones((8, 4))
    step = in_pieces(estimate, (P(*BOTH), P()), P(*BOTH))
    # The mean of 200 x 32 estimates, of a standard deviation of 2 sqrt(31) each.
    spread = 2 * np.sqrt(31 / 6400)
    assert abs(float(jnp.mean(step(p, jax.random.key(0)))) - 2) < 6 * spread


@needs_types
def test_labels_of_a_batch_in_pieces_are_refused():
    tx = scale_by_sophia(estimator="gauss_newton")

    def step(x):
        p = {"w": jnp.ones((4, 3))}
        more = {"logits_fn": lambda p: x @ p["w"]}
        return tx.update(p, tx.init(p), p, **more)[0]

    lower = in_pieces(step, (P("data"),), P()).lower
    expected = "`logits_fn` whole batch 'data' hessian_fn"
    _check(lambda: lower(jnp.ones((8, 4))), ValueError, expected)
