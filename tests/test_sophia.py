"""Sophia's estimates of curvature: their means, their cost, what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.compiling import AS_USERS
from tests.reference_sophia import quadratic

N = 4000
MATRIX = np.array([[3.0, 1.0, -0.5], [1.0, -2.0, 0.7], [-0.5, 0.7, 0.1]], np.float32)


def _estimates(tx, params, **sources):
    """N independent estimates: nu after one step from as many seeds, b2 = 0."""

    def one(key):
        made = tx(seed=key)
        return made.update(params, made.init(params), params, **sources)[1].nu

    keys = jax.vmap(jax.random.key)(jnp.arange(N))
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def _assert_unbiased(estimates, want):
    error = estimates.std(0) / np.sqrt(len(estimates)) + 1e-6
    assert np.all(np.abs(estimates.mean(0) - want) <= 5 * error)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_has_the_diagonal_as_its_mean(probe):
    def make(seed):
        return adamx.scale_by_sophia(b2=0.0, probe=probe, seed=seed)

    found = _estimates(make, jnp.ones(3), loss_fn=lambda p: p @ MATRIX @ p / 2)
    _assert_unbiased(found, np.diag(MATRIX))
    # Var of u_i sum_j h_ij u_j: the squares beside the diagonal; Gaussian: and 2 h_ii^2
    beside = np.sum(MATRIX**2, 1) - np.diag(MATRIX) ** 2
    variance = beside + (2 * np.diag(MATRIX) ** 2 if probe == "gaussian" else 0)
    np.testing.assert_allclose(found.var(0), variance, rtol=0.15)


def test_probes_of_two_leaves_are_independent():
    """h_ab must average out; with one probe for both it would add to h_aa."""
    params = {"a": jnp.ones(()), "b": jnp.ones(())}

    def one(key):
        tx = adamx.scale_by_sophia(b2=0.0, seed=key)
        loss = {"loss_fn": lambda p: p["a"] ** 2 + 3 * p["a"] * p["b"]}
        return tx.update(params, tx.init(params), params, **loss)[1].nu["a"]

    found = jax.vmap(one)(jax.vmap(jax.random.key)(jnp.arange(N)))
    _assert_unbiased(np.asarray(found, np.float64), 2.0)


def test_gauss_newton_bartlett_has_the_gauss_newton_diagonal_as_its_mean():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3)).astype(np.float32)  # two axes of positions
    w = rng.standard_normal((3, 4)).astype(np.float32)

    def logits_fn(p):
        return jnp.asarray(x) @ p.reshape(3, 4)

    def make(seed):
        return adamx.scale_by_sophia(b2=0.0, estimator="gauss_newton", seed=seed)

    found = _estimates(make, jnp.asarray(w.reshape(-1)), logits_fn=logits_fn)
    logits = x.astype(np.float64) @ w
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    # d2 loss / d w_ic^2 = mean over positions of x_i^2 p_c (1 - p_c)
    exact = np.einsum("abi,abc->ic", x.astype(np.float64) ** 2, p * (1 - p)) / 10
    _assert_unbiased(found, exact.reshape(-1))
    assert np.all(found >= 0)


def test_the_model_runs_at_steps_1_and_1_plus_k_only():
    asked = []

    def hessian_fn(params, key):
        jax.debug.callback(lambda: asked.append(len(counted)))
        return params

    tx = adamx.sophia_h(1e-2, update_interval=4)
    params, counted = jnp.ones(3), []
    state = tx.init(params)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, hessian_fn=hessian_fn))
    nus = []
    for step in range(1, 11):
        counted.append(step)
        _, state = update(params, state, params)
        jax.effects_barrier()
        nus.append(float(state[0].nu[0]))
    assert asked == [1, 5, 9]
    assert [bool(b != a) for a, b in zip([0.0, *nus], nus, strict=False)] == [
        step in asked for step in counted
    ]


@pytest.mark.parametrize("name", ["sophia_h", "sophia_g"])
def test_the_model_is_inside_the_branch(name):
    tx = getattr(adamx, name)(1e-2)
    params = jnp.ones((3, 2))
    source = {
        "sophia_h": {"loss_fn": lambda p: jnp.sum(jnp.cos(p) ** 2)},
        "sophia_g": {"logits_fn": lambda p: jnp.cos(p)},
    }[name]
    jaxpr = jax.make_jaxpr(lambda s: tx.update(params, s, params, **source))
    outside = jaxpr(tx.init(params)).jaxpr.eqns
    (cond,) = (e for e in outside if e.primitive.name == "cond")
    branches = [str(branch) for branch in cond.params["branches"]]
    assert ["cos" in text for text in branches] == [False, True]
    rest = " ".join(str(e) for e in outside if e is not cond)
    assert not any(word in rest for word in ("cos", "random", "threefry"))


def test_steps_between_estimates_need_no_temporaries():
    params = jnp.ones((256, 256))
    tx = adamx.sophia_h(1e-2)

    def step(params, state, gradients):
        updates, state = tx.update(
            gradients, state, params, hessian_fn=lambda p, key: jnp.ones_like(p)
        )
        return adamx.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
        params, tx.init(params), params
    )
    temporary = lowered.compile(AS_USERS).memory_analysis().temp_size_in_bytes
    assert temporary <= 0.02 * params.nbytes


def test_estimates_differ_by_step_and_seed_and_the_key_stays():
    params = jnp.ones(3)

    def run(seed):
        tx = adamx.scale_by_sophia(b2=0.0, update_interval=1, seed=seed)
        state, nus = tx.init(params), []
        loss = lambda p: p @ MATRIX @ p / 2  # noqa: E731
        update = jax.jit(lambda s: tx.update(params, s, params, loss_fn=loss)[1])
        for _ in range(4):
            before = state.key
            state = update(state)
            np.testing.assert_array_equal(state.key, before)
            nus.append(np.asarray(state.nu))
        return np.stack(nus)

    first = run(0)
    np.testing.assert_array_equal(first, run(0))
    assert len({tuple(nu) for nu in first}) > 1
    assert np.any(first != run(1))
    assert np.any(run(jax.random.key(0)) != run(jax.random.key(1)))


def test_negative_or_no_curvature_makes_a_step_of_the_sign():
    params = jnp.ones(4)
    h = jnp.array([-5.0, 0.0, 1e-9, 100.0])
    tx = adamx.sophia_h(0.1, b1=0.0, b2=0.0, gamma=1.0, eps=1e-8, weight_decay=0.0)
    gradient = jnp.array([1.0, -2.0, 3.0, 50.0])
    updates, state = tx.update(
        gradient, tx.init(params), params, hessian_fn=lambda p, key: h
    )
    np.testing.assert_allclose(updates, [-0.1, 0.1, -0.1, -0.05], rtol=1e-6)
    assert float(state[0].clipped_fraction()) == 0.75
    tx = adamx.sophia_h(1.0, b1=0.0, b2=0.0, gamma=1.0, clip_threshold=None, eps=1e-8)
    updates, state = tx.update(
        gradient, tx.init(params), params, hessian_fn=lambda p, key: h
    )
    np.testing.assert_allclose(updates[:2], [-1e8, 2e8], rtol=1e-6)
    assert float(state[0].clipped_fraction()) == 0.0


def test_clipped_fraction_before_the_first_step_and_without_parameters():
    tx = adamx.scale_by_sophia()
    for params in ({}, jnp.ones(3), jnp.zeros((0, 2))):
        assert float(tx.init(params).clipped_fraction()) == 0.0


def test_clipped_fraction_of_more_elements_than_an_int32_counts():
    params = [jax.ShapeDtypeStruct((30_000, 40_000), jnp.float32)] * 2
    tx = adamx.scale_by_sophia()
    found = jax.eval_shape(lambda p: tx.init(p).clipped_fraction(), params)
    assert found.shape == ()


def test_eps_zero_never_divides_zero_by_zero():
    tx = adamx.sophia_h(1.0, eps=0.0, weight_decay=0.0)
    gradient = jnp.array([0.0, 1.0, -1e-30])
    updates, _ = tx.update(
        gradient, tx.init(gradient), gradient, hessian_fn=lambda p, key: 0 * p
    )
    np.testing.assert_array_equal(updates, [0.0, -1.0, 1.0])


def test_obj_fn_and_value_fn_are_loss_fn_and_hessian_fn_goes_first():
    params = jnp.arange(1.0, 4.0)
    tx = adamx.sophia_h(1e-2)
    nus = [
        tx.update(params, tx.init(params), params, **source)[1][0].nu
        for source in (
            {"loss_fn": quadratic},
            {"obj_fn": quadratic},
            {"value_fn": quadratic, "value": 1.0},
            {"loss_fn": quadratic, "hessian_fn": lambda p, key: jnp.full(3, 7.0)},
        )
    ]
    np.testing.assert_array_equal(nus[0], nus[1])
    np.testing.assert_array_equal(nus[0], nus[2])
    np.testing.assert_allclose(nus[3], 0.07, rtol=1e-6)


def test_labels_are_drawn_in_float32():
    """64 classes of one logit in bfloat16: no class may be preferred by rounding."""
    params = jnp.zeros(64, jnp.bfloat16)
    tx = adamx.scale_by_sophia(b2=0.0, estimator="gauss_newton")
    _, state = tx.update(
        params,
        tx.init(params),
        params,
        logits_fn=lambda p: jnp.broadcast_to(p, (20_000, 64)),
    )
    exact = 1 / 64 * (1 - 1 / 64)
    # One estimate is B times a squared mean: exact times chi squared.
    assert abs(float(jnp.mean(state.nu)) / exact - 1) < 0.9


def test_where_optax_differs_from_the_paper():
    """Its mu is bias-corrected, and its step uses the curvature of the step before."""
    params, gradient = jnp.ones(1), jnp.ones(1)
    loss = {"obj_fn": lambda p: jnp.sum(p**2) / 2}  # h = 1
    kwargs = {"b1": 0.5, "b2": 0.5, "eps": 1e-8, "gamma": 4.0, "weight_decay": 0.0}

    def first_two(tx):
        state, out = tx.init(params), []
        for _ in range(2):
            updates, state = tx.update(gradient, state, params, **loss)
            out.append(-float(updates[0]))
        return out

    ours = first_two(adamx.sophia_h(1.0, update_interval=1, **kwargs))
    theirs = first_two(optax.contrib.sophia(1.0, update_interval=1, **kwargs))
    # mu = 0.5, 0.75; nu = 0.5, 0.75
    assert ours == pytest.approx([0.5 / 2, 0.75 / 3])
    assert theirs == pytest.approx([1.0, 1.0 / 2])  # clipped: nu was 0


def test_a_gradient_of_none_is_no_variable():
    model = {"w": jnp.ones(3), "scale": 2.0, "f": jnp.tanh}
    gradients = {"w": jnp.ones(3), "scale": None, "f": None}
    tx = adamx.sophia_h(1e-2, b2=0.0)
    updates, state = tx.update(
        gradients,
        tx.init({"w": jnp.ones(3), "scale": None, "f": None}),
        model,
        loss_fn=lambda m: jnp.sum(m["scale"] * m["w"] ** 2 + m["f"](0.0)),
    )
    np.testing.assert_allclose(state[0].nu["w"], 4.0)
    assert updates["f"] is None
