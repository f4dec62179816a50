"""Libraries that run the loop themselves, and are handed an optimizer.

NumPyro (SVI), Optimistix, FlowJAX, BlackJAX (mean-field inference); and Orbax, which is
handed states. Each fits something whose answer is known, with an optimizer from here as
with Optax's; and with the wrappers that ask more of who calls them. A library that is
not installed fails its tests by name: `pip install 'adamx[tests]'`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import codecs
from tests.helpers import IS_OLD_XLA, some

STEPS, RATE = 120, 0.05
INT8 = codecs.int8(min_size=1)  # of the smallest leaves too


@pytest.fixture(autouse=True, scope="module")
def keeps_no_program():
    """In jax 0.6 Optimistix's loop, read from the compilation cache, takes no step."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    if IS_OLD_XLA:
        jax.config.update(name, 1e9)
    yield
    jax.config.update(name, before)


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a library made of its problem.

    Attributes:
      losses: of the run, where the library tells them; first and last at least.
      answer: by name, what was to be found.
      state: what holds the optimizer's state; None where the library keeps it.
    """

    losses: np.ndarray
    answer: dict[str, Any]
    state: Any = None


# -------------------------------------------------------------------------- the fits


@functools.cache
def line():
    """Inputs, and outputs of slopes 1, -2, 0.5 with noise of 0.3."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    noise = rng.normal(0, 0.3, 200).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(x @ np.float32([1.0, -2.0, 0.5]) + noise)


def numpyro(tx):
    """Stochastic variational inference of a line's slopes and noise."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    x, y = line()

    def model():
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(x @ slope, noise), obs=y)

    guide = AutoNormal(model)
    optimizer = numpyro.optim.optax_to_numpyro(tx)
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=4))
    run = svi.run(jax.random.key(0), STEPS, progress_bar=False)
    answer = guide.median(run.params)
    return Fit(np.asarray(run.losses), answer, run.state)


def optimistix(tx):
    """The same line by least squares, as a minimisation of its own."""
    import optimistix

    x, y = line()

    def loss(p, args):
        residual = x @ p["slope"] - y
        return jnp.mean(residual**2 / p["noise"] ** 2 / 2 + jnp.log(p["noise"]))

    start = {"slope": jnp.zeros(3), "noise": jnp.ones(())}
    solver = optimistix.OptaxMinimiser(tx, rtol=0.0, atol=0.0)
    found = optimistix.minimise(loss, solver, start, max_steps=STEPS, throw=False)
    losses = np.array([loss(start, None), loss(found.value, None)])
    return Fit(losses, found.value, found.state)


def flowjax(tx):
    """A flow fitted to a distribution by its lower bound; the state stays inside."""
    from flowjax import bijections, distributions, train
    from flowjax.train.losses import ElboLoss

    truth = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.5, 0.8])
    target = distributions.Normal(*truth)
    start = bijections.Affine(jnp.zeros(3), jnp.ones(3))
    flow = distributions.Transformed(distributions.StandardNormal((3,)), start)
    flow, losses = train.fit_to_key_based_loss(
        jax.random.key(0),
        flow,
        loss_fn=ElboLoss(target.log_prob, 32, stick_the_landing=True),
        steps=STEPS,
        optimizer=tx,
        show_progress=False,
    )
    sample = flow.sample(jax.random.key(1), (4000,))
    return Fit(np.array(losses), {"slope": sample.mean(0), "noise": sample.std(0)[0]})


def blackjax(tx):
    """Mean-field inference of the same distribution; a step is BlackJAX's own."""
    from blackjax import meanfield_vi

    truth = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.5, 0.8])

    def log_density(position):
        return jnp.sum(jax.scipy.stats.norm.logpdf(position["slope"], *truth))

    inference = meanfield_vi(log_density, tx, num_samples=32)
    state = inference.init({"slope": jnp.zeros(3)})
    keys = jax.random.split(jax.random.key(0), STEPS)
    state, infos = jax.lax.scan(lambda s, key: inference.step(key, s), state, keys)
    answer = {"slope": state.mu["slope"], "noise": jnp.exp(state.rho["slope"][0])}
    return Fit(np.asarray(infos.elbo), answer, state)


CLIENTS = {
    "numpyro": numpyro,
    "optimistix": optimistix,
    "flowjax": flowjax,
    "blackjax": blackjax,
}
HANDS_STATE_OUT = ("numpyro", "optimistix", "blackjax")
HANDS_LOSS_ON = ("numpyro", "optimistix")  # as `value=`


def check(fit, within=0.15):
    assert np.all(np.isfinite(fit.losses))
    assert fit.losses[-1] < fit.losses[0]
    slope, noise = fit.answer["slope"], fit.answer["noise"]
    np.testing.assert_allclose(slope, [1.0, -2.0, 0.5], atol=within)
    assert float(noise) == pytest.approx(0.3, abs=within)


# --------------------------------------------------------------------- the optimizers


def chain(library, schedule):
    clip = library.clip_by_global_norm(50.0)
    return optax.chain(clip, library.adamw(schedule, b2=0.99, weight_decay=1e-4))


def all_at_once():
    """Wrappers in wrappers, around moments of 8 bits."""
    small = adamx.adamw(RATE, mu_dtype=INT8, nu_dtype=INT8, mask=adamx.decay_mask())
    return adamx.diagnose(adamx.guard(small, spike_zscore=50.0), every=STEPS)


@dataclasses.dataclass(frozen=True)
class Special:
    """An optimizer that asks more of its client than a bare one.

    Attributes:
      make: makes it.
      within: how far the answer may be from the truth.
      quick: the clients with which it is tried in every run, not only in slow ones.
    """

    make: Callable[[], Any]
    within: float = 0.15
    quick: tuple[str, ...] = ()


SPECIALS = {
    "all at once": Special(all_at_once, quick=("flowjax",)),
    "schedule-free": Special(lambda: adamx.schedule_free_adamw(2 * RATE), 0.3),
    "guard": Special(lambda: adamx.guard(adamx.adamw(RATE), spike_zscore=50.0)),
    "int8": Special(lambda: adamx.adamw(RATE, mu_dtype=INT8, nu_dtype=INT8)),
    "diagnose": Special(lambda: adamx.diagnose(adamx.adamw(RATE), every=10)),
    "master_weights": Special(lambda: adamx.master_weights(adamx.adamw(RATE))),
    "accumulate": Special(lambda: adamx.accumulate(adamx.adamw(2 * RATE), 2)),
    "adam_to_sgd": Special(lambda: adamx.adam_to_sgd(RATE, total_steps=STEPS)),
    "with_hyperparams": Special(
        lambda: adamx.with_hyperparams(adamx.adamw, RATE), quick=("optimistix",)
    ),
    "cautious": Special(lambda: adamx.cautious(adamx.adamw(RATE))),
}


# Quickly: one that hands its state out; FlowJAX trains in `test_wrappers_in_a_client`.
@pytest.mark.parametrize("client", some(CLIENTS, "optimistix", "blackjax"))
def test_a_client_trains_as_with_optax(client):
    """Clipped AdamW with a schedule; Optax's arithmetic is the less exact."""
    ours = adamx.schedules.warmup_cosine(2 * RATE, STEPS, warmup=10)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 2 * RATE, 10, STEPS)
    fit = CLIENTS[client](chain(adamx, ours))
    check(fit)
    other = CLIENTS[client](chain(optax, theirs))
    np.testing.assert_allclose(fit.losses, other.losses, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(fit.answer, other.answer, rtol=1e-4, atol=1e-4)
    if client in HANDS_STATE_OUT:
        reading = adamx.read(fit.state)
        assert reading.count == STEPS
        assert reading.grad_norm > 0
        assert reading.learning_rate == pytest.approx(
            float(theirs(STEPS - 1)), rel=1e-4
        )


@pytest.mark.parametrize(
    ("client", "name"),
    [
        pytest.param(c, n, marks=[] if c in special.quick else pytest.mark.slow)
        for n, special in SPECIALS.items()
        for c in CLIENTS
    ],
)
def test_wrappers_in_a_client(client, name):
    special = SPECIALS[name]
    fit = CLIENTS[client](special.make())
    check(fit, special.within)
    if client in HANDS_STATE_OUT:
        reading = adamx.read(fit.state)
        assert reading.count == STEPS // (2 if name == "accumulate" else 1)
        assert reading.learning_rate > 0
        if name == "all at once":
            assert reading.skipped == 0
            assert reading.diagnostics.count == STEPS
            shares = [x["r/p50"] for x in reading.diagnostics.layers.values()]
            assert np.all(np.isfinite(shares))


@pytest.mark.parametrize("client", HANDS_LOSS_ON)
def test_the_loss_reaches_a_plateau(client):
    """Both hand `value=` on: Adam ends where the loss gets no better."""
    patient = adamx.adam_to_sgd(RATE, on_plateau=adamx.plateau(patience=5, rtol=1e-2))
    fit = CLIENTS[client](patient)
    reading = adamx.read(fit.state)
    assert 5 < reading.switch_step < STEPS
    assert fit.losses[-1] < fit.losses[0]


@pytest.mark.parametrize("client", sorted(set(CLIENTS) - set(HANDS_LOSS_ON)))
def test_a_plateau_without_a_loss_is_an_error(client):
    patient = adamx.adam_to_sgd(RATE, on_plateau=adamx.plateau(patience=5, rtol=1e-2))
    with pytest.raises(ValueError, match=r"`value` must"):
        CLIENTS[client](patient)


def test_optimistix_has_what_sophia_needs():
    """It hands the loss on as `value_fn`."""
    fit = optimistix(adamx.sophia_h(RATE, gamma=0.05, update_interval=2))
    check(fit)
    assert adamx.read(fit.state).count == STEPS


@pytest.mark.parametrize("client", ["numpyro", "flowjax", "blackjax"])
def test_who_hands_no_loss_on_is_told_so(client):
    with pytest.raises(ValueError, match=r"`loss_fn` must .*library calls `update`"):
        CLIENTS[client](adamx.sophia_h(RATE))


def test_numpyro_evaluates_where_schedule_free_says():
    """The averaged parameters, from the state as SVI returns it."""
    fit = numpyro(adamx.schedule_free_adamw(2 * RATE))
    params = fit.state.optim_state[1][0]
    averaged = adamx.schedule_free_eval_params(fit.state, params)
    found = averaged["slope_auto_loc"]
    assert not np.allclose(found, params["slope_auto_loc"], atol=1e-4)
    np.testing.assert_allclose(found, [1.0, -2.0, 0.5], atol=0.1)


# ------------------------------------------------------------------------------ Orbax


STATES = {
    "all at once": all_at_once,
    "groups": lambda: adamx.groups([("b", adamx.sgd(0.1, 0.9))], adamx.lion(1e-3)),
    "master_weights": lambda: adamx.master_weights(adamx.adamw(1e-2)),
    "with_hyperparams": lambda: adamx.with_hyperparams(adamx.adamw, 1e-2),
    "stages": lambda: adamx.stages([(adamx.adam(0.1), 2), (adamx.sgd(0.1), None)]),
}


@pytest.mark.parametrize("name", some(STATES, "all at once"))
def test_orbax_brings_a_state_back_in_mid_run(name, tmp_path):
    """As a tree, without `adamx.interop`: what goes on ends with the same bits."""
    from orbax import checkpoint

    tx = STATES[name]()
    dtype = jnp.bfloat16 if name == "master_weights" else jnp.float32
    params = {"w": jnp.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4)}
    params["b"] = jnp.ones(4, dtype)

    @jax.jit
    def step(params, state):
        loss = lambda p: jnp.sum((p["w"] ** 2 - p["b"]) ** 2)  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return adamx.apply_updates(params, updates), state

    run = (params, tx.init(params))
    for _ in range(3):
        run = step(*run)
    with checkpoint.StandardCheckpointer() as files:
        files.save(tmp_path / "run", run)
        files.wait_until_finished()
        back = files.restore(tmp_path / "run", jax.eval_shape(lambda: run))
    assert jax.tree.structure(back) == jax.tree.structure(run)
    for _ in range(2):
        run, back = step(*run), step(*back)
    chex.assert_trees_all_equal(back, run)
    assert adamx.read(back[1]).count == 5
