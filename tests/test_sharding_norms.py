"""What a norm spans: pieces in shard_map and pmap, whole arrays under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import adamx
from adamx.sharding import state_shardings
from tests.test_bad_input import _check

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:
    from jax.experimental.shard_map import shard_map

UNCHECKED = "check_vma" if hasattr(jax, "shard_map") else "check_rep"
SPECS = {"w": P("data", "model"), "v": P(None, "model"), "b": P()}
NAMES = {"w": ("data", "model"), "v": "model", "b": ()}


def grid():
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))


def gradient(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 4), "v": (3, 4), "b": (5,)}
    return {k: jnp.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()}


def norm64(tree):
    return np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)))


def clipped_in_pieces(names, g):
    tx = adamx.clip_by_global_norm(1.0, axis_name=names)

    def clip(g):
        updates, state = tx.update(g, tx.init(g))
        return updates, state.grad_norm

    shapes = {"mesh": grid(), "in_specs": (SPECS,), "out_specs": (SPECS, P())}
    return jax.jit(shard_map(clip, **shapes))(g)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_the_norm_of_pieces_and_copies_is_that_of_the_whole(dtype):
    g = jax.tree.map(lambda x: 300 * x, gradient(dtype))  # squares overflow float16
    updates, norm = clipped_in_pieces(NAMES, g)
    assert float(norm) == pytest.approx(norm64(g), rel=1e-6)
    whole = adamx.clip_by_global_norm(1.0)
    want, _ = whole.update(g, whole.init(g))
    for name, update in updates.items():
        assert update.dtype == dtype
        rtol = 1e-6 if dtype == jnp.float32 else 1e-3
        np.testing.assert_allclose(update, want[name], rtol=rtol)


def test_copies_count_as_often_as_they_are_said_to():
    """The same names for all leaves: each copy is a piece then."""
    g = gradient()
    _, norm = clipped_in_pieces(("data", "model"), g)
    times = {"w": 1, "v": 4, "b": 8}
    want = np.sqrt(sum(n * norm64(g[name]) ** 2 for name, n in times.items()))
    assert float(norm) == pytest.approx(want, rel=1e-6)


def test_pmap():
    g = gradient()["w"]  # a row for each device
    tx = adamx.clip_by_global_norm(0.5, axis_name="i")

    def clip(row):
        updates, state = tx.update(row, tx.init(row))
        return updates, state.grad_norm

    updates, norms = jax.pmap(clip, axis_name="i")(g)
    np.testing.assert_allclose(norms, norm64(g), rtol=1e-6)
    np.testing.assert_allclose(updates, g * (0.5 / norm64(g)), rtol=1e-6)
    alone = jax.pmap(lambda row: adamx.clip_by_global_norm(0.5).update(row, None)[0])(g)
    norms = np.linalg.norm(np.float64(alone), axis=1)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-6)  # row by row


# (label, transformation, a number of its state that a sum over the arrays makes)
SPANS = [
    ("lamb", lambda: adamx.lamb(1e-2), "trust_ratio_mean"),
    ("update rms", lambda: adamx.clip_by_update_rms(0.1), "update_rms"),
    pytest.param(
        "diagnose",
        lambda: adamx.diagnose(adamx.adamw(0.1), every=1),
        "grad_norm/w",
        marks=pytest.mark.slow,  # 15 s of compilation; test_diagnose has it under jit
    ),
    ("adam_mini", lambda: adamx.adam_mini(1e-2), None),
]


@pytest.mark.parametrize(("label", "make", "name"), SPANS)
def test_whole_under_jit_and_pieces_inside_shard_map(label, make, name):
    tx = make()
    params = {"w": gradient()["w"]}
    g = {"w": 2 * params["w"][::-1] + 0.1}

    def step(g, params):
        return tx.update(g, tx.init(params), params)

    want, state = jax.jit(step)(g, params)
    spec = {"w": P("model", None)}
    zero1 = None if label == "update rms" else "data"  # it keeps no moments
    shardings = state_shardings(tx, params, spec, zero1, mesh=grid())
    spread = jax.device_put((g, params), jax.sharding.NamedSharding(grid(), spec["w"]))
    got, spread_state = jax.jit(step, out_shardings=(None, shardings))(*spread)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6, atol=1e-8)
    if name is not None:
        values = [adamx.read(s).scalars().get(name) for s in (state, spread_state)]
        if values[0] is None:
            values = [float(getattr(s, name)) for s in (state, spread_state)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)
    mapped = {"mesh": grid(), "in_specs": (spec, spec), "out_specs": spec}
    if label == "diagnose":  # its conditional's branches vary unlike
        mapped[UNCHECKED] = False
    pieces = shard_map(lambda g, p: step(g, p)[0], **mapped)
    halves = [
        step({"w": g["w"][i : i + 4]}, {"w": params["w"][i : i + 4]})[0]["w"]
        for i in (0, 4)
    ]
    alone = jax.jit(pieces)(g, params)["w"]
    np.testing.assert_allclose(alone, np.concatenate(halves), rtol=1e-6, atol=1e-8)


def test_bad_input():
    for bad in (3, {"w": 1.5}):
        expected = "`axis_name` name of an axis tuple pass"
        _check(
            lambda bad=bad: adamx.clip_by_global_norm(1.0, axis_name=bad),
            TypeError,
            expected,
        )
    g = gradient()
    tx = adamx.clip_by_global_norm(1.0, axis_name="data")
    expected = "`axis_name` shard_map 'data' unbound leave it out"
    _check(lambda: tx.update(g, tx.init(g)), ValueError, expected)
    other = adamx.clip_by_global_norm(1.0, axis_name={"w": "data"})
    expected = "`axis_name` gradient Give"
    _check(lambda: other.update(g, tx.init(g)), ValueError, expected)
