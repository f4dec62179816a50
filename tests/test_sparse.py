"""What lazy rows promise: what has no gradient stays, and the rest is Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from tests import reference_sparse as reference
from tests.compiling import as_users
from tests.helpers import enable_x64, run_updates, some

LR = 1e-2
OFF = {"b1": 0.83, "b2": 0.97, "eps": 1e-3}
SHAPE = (11, 3, 2)


def table(steps=60, dtype=np.float32, seed=0):
    """Gradients of a table of 11 rows; row 0 is never touched, row 1 always."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((steps, *SHAPE)) * 10 ** rng.uniform(-2, 1, SHAPE)
    if np.issubdtype(dtype, np.complexfloating):
        out = out * np.exp(1j * rng.uniform(0, 6, out.shape))
    is_out = rng.uniform(size=out.shape[:2]) < 0.7
    is_out[:, 0], is_out[:, 1] = True, False
    out[is_out] = 0.0
    out[:, 2, 1:] = 0.0  # touched rows with zeros in them
    return out.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64], ids=str)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"per_row_count": True},
        pytest.param({"rows": False}, marks=pytest.mark.slow),
        pytest.param({"rows": False, "per_row_count": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_against_float64(kwargs, dtype):
    gradients = table(dtype=dtype)
    params = np.zeros(SHAPE, dtype)
    ours, _ = run_updates(adamx.sparse_adam(LR, **OFF, **kwargs), gradients, params)
    wants = reference.sparse_adam(gradients, params, LR, **OFF, **kwargs)
    for got, want in zip(ours, wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-8)


@pytest.mark.parametrize("per_row_count", some([False, True], True))
def test_in_double_precision(per_row_count):
    gradients = table(steps=1000, dtype=np.float64)
    params = np.zeros(SHAPE)
    tx = adamx.sparse_adam(LR, per_row_count=per_row_count)
    with enable_x64():
        ours, _ = run_updates(tx, gradients, params)
    wants = reference.sparse_adam(gradients, params, LR, per_row_count=per_row_count)
    np.testing.assert_allclose(ours, np.stack(list(wants)), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("per_row_count", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)],
    ids=str,
)
def test_untouched_rows_stay_bit_for_bit(per_row_count, dtype):
    gradients = jnp.asarray(table(), dtype)
    params = jnp.asarray(np.random.default_rng(1).standard_normal(SHAPE), dtype)
    tx = adamx.sparse_adam(LR, per_row_count=per_row_count)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for g in gradients:
        updates, new = update(g, state, params)
        after = adamx.apply_updates(params, updates)
        still = ~np.any(np.asarray(g) != 0, axis=(1, 2))
        for old, now in [(state[0].mu, new[0].mu), (state[0].nu, new[0].nu)]:
            np.testing.assert_array_equal(old[still], now[still])
            assert np.all(np.any(np.asarray(old != now)[~still], axis=(1, 2)))
        np.testing.assert_array_equal(updates[still], 0.0)
        np.testing.assert_array_equal(after[still], params[still])
        if per_row_count:
            for field in ("row_correction_mu", "row_rest_nu"):
                old, now = getattr(state[0], field), getattr(new[0], field)
                assert old.shape == (11, 1, 1)
                np.testing.assert_array_equal(old[still], now[still])
        params, state = after, new


def test_a_row_counts_its_own_steps():
    """Its bias corrections are those of Adam after as many steps; so is its first."""
    gradients = table()
    tx = adamx.scale_by_sparse_adam(per_row_count=True)
    state = tx.init(jnp.zeros(SHAPE))
    for g in gradients:
        _, state = tx.update(jnp.asarray(g), state)
    own = np.sum(np.any(gradients != 0, axis=(2, 3)), axis=0)
    assert own[0] == 0
    assert own[1] == len(gradients)
    for b, c in [(0.9, state.row_correction_mu), (0.999, state.row_correction_nu)]:
        np.testing.assert_allclose(c[:, 0, 0], 1 - b**own, rtol=1e-6)
    late = jnp.zeros(SHAPE).at[0].set(5.0)
    updates, _ = tx.update(late, state)
    np.testing.assert_allclose(updates[0], 1.0, rtol=1e-5)
    plain = adamx.scale_by_sparse_adam()
    old = plain.init(jnp.zeros(SHAPE))._replace(count=jnp.int32(100_000))
    updates, _ = plain.update(late, old)
    np.testing.assert_allclose(updates[0], 0.1 / np.sqrt(0.001), rtol=1e-4)


@pytest.mark.parametrize("b2", [0.99, 0.999])
def test_the_corrections_of_a_row_never_stall(b2):
    tx, steps = adamx.scale_by_sparse_adam(b2=b2, per_row_count=True), 20_000

    def step(state, _):
        state = tx.update(jnp.ones((1, 1)), state)[1]
        return state, state.row_correction_nu[0, 0]

    start = tx.init(jnp.ones((1, 1)))
    got = jax.jit(lambda s: jax.lax.scan(step, s, None, length=steps)[1])(start)
    want = -np.expm1(np.arange(1, steps + 1) * np.log(b2))
    assert np.max(np.abs(np.asarray(got) - want) / want) <= 2e-7


def test_changing_betas_are_corrected_by_what_each_row_was_given():
    """With a constant gradient, nu_hat stays g^2 whatever b2 was in a row's steps."""
    tx = adamx.scale_by_sparse_adam(
        b1=lambda step: jnp.where(step < 5, 0.9, 0.4),
        b2=lambda step: jnp.where(step < 10, 0.999, 0.99),
        per_row_count=True,
    )
    state = tx.init(jnp.zeros((3, 1)))
    for step in range(20):
        g = jnp.array([[2.0], [2.0 * (step % 3 == 0)], [2.0 * (step > 12)]])
        updates, state = tx.update(g, state)
        want = (np.asarray(g) != 0).astype(np.float32)
        np.testing.assert_allclose(updates, want, rtol=2e-6)


def test_all_rows_touched_is_adam_but_for_eps():
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((30, 5, 4)).astype(np.float32)
    params = np.zeros((5, 4), np.float32)
    for per_row_count in (False, True):
        tx = adamx.sparse_adam(LR, eps=0.0, per_row_count=per_row_count)
        ours, _ = run_updates(tx, gradients, params)
        plain, _ = run_updates(adamx.adam(LR, eps=0.0), gradients, params)
        np.testing.assert_allclose(ours, plain, rtol=2e-6, atol=1e-9)
    tx = adamx.sparse_adam(1.0, eps=1.0)  # compared with sqrt(nu) = sqrt(1 - b2)
    first, _ = run_updates(tx, np.ones((1, 1, 1), np.float32), params[:1, :1])
    root = np.sqrt(1 - 0.999)
    assert first.item() == pytest.approx(-root / (root + 1.0), rel=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        {"embed": True, "dense": False, "b": False},
        lambda p: {"embed": True, "dense": False, "b": False},
        None,
    ],
)
def test_rows_decides_which_leaves_are_lazy(rows):
    params = {"embed": jnp.zeros((4, 2)), "dense": jnp.zeros((4, 2)), "b": jnp.zeros(4)}
    tx = adamx.sparse_adam(LR, rows=rows, per_row_count=True)
    state = tx.init(params)
    shapes = jax.tree.map(jnp.shape, state[0].row_correction_mu)
    dense = (4, 1) if rows is None else (1, 1)
    assert shapes == {"embed": (4, 1), "dense": dense, "b": (1,)}
    ones = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(ones, state, params)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert not np.any(updates["embed"])
    assert np.all(updates["b"] != 0)
    assert np.all(updates["dense"] != 0) == (rows is not None)


def test_a_nan_is_a_gradient_and_stays_in_its_element():
    tx = adamx.sparse_adam(LR)
    params = jnp.zeros((3, 2))
    gradient = jnp.array([[0.0, 0.0], [jnp.nan, 0.0], [1.0, 1.0]])
    updates, state = tx.update(gradient, tx.init(params), params)
    bad = [[False, False], [True, False], [False, False]]
    np.testing.assert_array_equal(np.isnan(updates), bad)
    np.testing.assert_array_equal(np.isnan(state[0].mu), bad)


@pytest.mark.parametrize("per_row_count", some([False, True], True))
@as_users
def test_eight_devices_equal_one(per_row_count):
    """Also where the axis is shared over which `touched` is decided."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.standard_normal((16, 24)), jnp.float32)
    gradients = gradients.at[::3].set(0.0)
    tx = adamx.sparse_adam(LR, per_row_count=per_row_count)
    params = jnp.ones((16, 24))
    one, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    for spec in (PartitionSpec("data"), PartitionSpec(None, "data")):
        place = NamedSharding(mesh, spec)
        spread = jax.device_put(params, place)
        eight, _ = jax.jit(tx.update)(
            jax.device_put(gradients, place), tx.init(spread), spread
        )
        np.testing.assert_array_equal(one, eight)


def test_vmap_and_wrappers_keep_rows_still():
    params = {"embed": jnp.ones((4, 2)), "w": jnp.ones((2, 2))}
    gradients = {"embed": jnp.zeros((4, 2)).at[1].set(1.0), "w": jnp.ones((2, 2))}
    tx = optax.partition(
        {"lazy": adamx.sparse_adam(LR, per_row_count=True), "dense": adamx.adamw(LR)},
        {"embed": "lazy", "w": "dense"},
    )
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    np.testing.assert_array_equal(updates["embed"][jnp.array([0, 2, 3])], 0.0)
    assert np.all(updates["w"] != 0)
    plain = adamx.sparse_adam(LR)
    batch = jnp.stack([gradients["embed"], gradients["embed"][::-1]])
    many = jax.vmap(lambda g: plain.update(g, plain.init(g))[0])(batch)
    np.testing.assert_array_equal(np.any(many != 0, axis=2).sum(axis=1), [1, 1])


def test_the_state_has_nothing_for_rows_unless_asked():
    state = adamx.scale_by_sparse_adam().init({"e": jnp.ones((4, 2))})
    assert state.row_correction_mu is None
    assert state.row_rest_nu is None
