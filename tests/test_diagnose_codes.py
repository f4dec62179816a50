"""diagnose on encoded moments: r as stored, behind the rounding, and r of the step.

python -m tests.test_diagnose_codes        prints what docs/reading.md says
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx

SHAPE, RATE, STEPS, EVERY = (100, 120), 0.01, 240, 20
CODECS = {
    "float32": None,
    "bfloat16_stochastic": adamx.codecs.bfloat16_stochastic(),
    "fp8": adamx.codecs.fp8(),
    "int8": adamx.codecs.int8(),
    "int4": adamx.codecs.int4(),
}


@functools.cache
def made(name):
    """A transformation, and its update, compiled once for all deviations."""
    codec = CODECS[name]
    tx = adamx.diagnose(adamx.adam(RATE, mu_dtype=codec, nu_dtype=codec), every=EVERY)
    return tx, jax.jit(tx.update)


def shown_and_taken(name, deviation):
    """Medians over 7 measurements: r/p50, still_share; and those of |update| / rate.

    Gaussian gradients, each element with a scale of its own: exp of a normal number.
    """
    scale = np.random.default_rng(0).lognormal(0.0, deviation, SHAPE)
    tx, update = made(name)
    params = {"w": jnp.ones(SHAPE)}
    state = tx.init(params)
    found = []
    for step in range(1, STEPS + 1):
        g = np.random.default_rng(step).normal(size=SHAPE) * scale
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        if step > 100 and step % EVERY == 0:
            numbers = adamx.read(state).diagnostics.layers["w"]
            r = np.abs(np.asarray(updates["w"], np.float64)) / RATE
            shown = numbers["r/p50"], numbers["still_share"]
            found.append((*shown, np.median(r), np.mean(r < 0.01)))
    return np.median(found, axis=0)


@pytest.mark.slow  # quickly: test_int8_moments_are_read_as_decoded in test_diagnose.py
@pytest.mark.parametrize("deviation", [1.0, 2.0])
def test_with_8_bits_what_is_stored_is_the_step(deviation):
    r, still, r_taken, still_taken = shown_and_taken("int8", deviation)
    assert r == pytest.approx(r_taken, rel=5e-3)
    assert still == pytest.approx(still_taken, abs=3e-3)


@pytest.mark.parametrize(
    ("deviation", "want"),
    [(1.0, (0.175, 0.394, 0.168, 0.063)), (1.5, (0.0, 0.583, 0.055, 0.239))],
)
def test_with_4_bits_small_elements_are_stored_as_none(deviation, want):
    """As the docstring of `diagnose` and docs/reading.md say."""
    np.testing.assert_allclose(shown_and_taken("int4", deviation), want, atol=6e-3)


if __name__ == "__main__":
    print("codec, deviation: r/p50 and still_share shown; of the step taken")
    for codec_name in CODECS:
        for sigma in (0.0, 0.5, 1.0, 1.5, 2.0):
            r, still, r_taken, still_taken = shown_and_taken(codec_name, sigma)
            print(
                f"{codec_name} {sigma}: {r:.4f} {still:.3f}; {r_taken:.4f} "
                f"{still_taken:.3f}"
            )
