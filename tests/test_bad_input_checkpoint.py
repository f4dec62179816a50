"""Bad input of names, migration and files: what is wrong, where, and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.interop import from_flat, migrate, restore, save, to_flat

PARAMS = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
ADAM = adamx.adam(1e-3)
STATE = ADAM.init(PARAMS)
FLAT = to_flat(STATE)


def without(*names):
    return {name: x for name, x in FLAT.items() if name not in names}


FROM_FLAT = {
    "no dict": (STATE, TypeError, r"`flat` must be a dict .* got .*to_flat"),
    "missing": (
        without("scale_by_adam/mu/a", "scale_by_adam/count"),
        ValueError,
        r"missing: 'scale_by_adam/count', 'scale_by_adam/mu/a'.*migrate",
    ),
    "unknown": (FLAT | {"x/y": 1}, ValueError, r"unknown: 'x/y'"),
    "shape": (
        FLAT | {"scale_by_adam/mu/a": jnp.ones(2)},
        ValueError,
        r"'scale_by_adam/mu/a' must be float32\[2,3\], got float32\[2\]",
    ),
    "dtype": (
        FLAT | {"scale_by_adam/mu/b": jnp.ones(3, jnp.bfloat16)},
        ValueError,
        r"'scale_by_adam/mu/b' must be float32\[3\], got bfloat16\[3\]",
    ),
    "all": (
        {"x/y": 1},
        ValueError,
        r"missing: .* and \d+ more; unknown: 'x/y'",
    ),
}


@pytest.mark.parametrize("name", FROM_FLAT)
def test_from_flat(name):
    flat, kind, message = FROM_FLAT[name]
    with pytest.raises(kind, match=message):
        from_flat(flat, ADAM, PARAMS)


def test_two_arrays_of_one_name():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(
        ValueError, match=r"two arrays .* 'scale_by_adam/mu/a/b'.*renam"
    ):
        to_flat(ADAM.init(params))


BATCH = jax.tree.map(lambda x: jnp.stack([x, x]), STATE)
COUNTED = ADAM.update(PARAMS, STATE)[1]
MIGRATE = {
    "transformation": (
        {"new_tx": STATE},
        TypeError,
        r"`new_tx` must be a gradient transformation",
    ),
    "choice": ({"missing": "ignore"}, ValueError, r"`missing` must be one of 'init'"),
    "saved": ({"saved": 3}, TypeError, r"`saved` must be an optimizer state"),
    "a transformation": ({"saved": ADAM}, TypeError, r"`saved` must be an .* state"),
    "names": (
        {"saved": {"a/b": jnp.ones(2), "a//@": jnp.ones(2)}},
        ValueError,
        r"`saved` must have the names .* got 'a//@'",
    ),
    "nothing fits": (
        {"saved": optax.scale_by_rss().init(PARAMS)},
        ValueError,
        r"`saved` must have something .*'scale_by_rss/sum_of_squares/a'",
    ),
    "other parameters": (
        {"saved": FLAT, "params": {"z": jnp.ones(2)}, "new_tx": adamx.scale_by_adam()},
        ValueError,
        r"`saved` must have something .* other parameters",
    ),
    "a batch": ({"saved": BATCH}, ValueError, r"`saved` must be one state.*x\[0\]"),
    "no count": (
        {"saved": without("scale_by_adam/count")},
        ValueError,
        r"no 'scale_by_adam/count'.*Add the count",
    ),
    "missing": (
        {"new_tx": adamx.guard(ADAM), "missing": "error"},
        ValueError,
        r"it lacks 4: 'guard/skipped'.*missing='init'",
    ),
    "a new parameter": (
        {"params": PARAMS | {"c": jnp.ones(1)}, "missing": "error"},
        ValueError,
        r"it lacks 2: 'scale_by_adam/mu/c', 'scale_by_adam/nu/c'",
    ),
    "warming": (
        {
            "saved": optax.nadam(1e-3).init(PARAMS),
            "new_tx": adamx.nadam(1e-3, momentum_decay=4e-3),
        },
        ValueError,
        r"cannot be derived from the count: b1 warms up",
    ),
}


@pytest.mark.parametrize("name", MIGRATE)
def test_migrate(name):
    changes, kind, message = MIGRATE[name]
    arguments = {"saved": COUNTED, "new_tx": ADAM, "params": PARAMS} | changes
    with pytest.raises(kind, match=message):
        migrate(**arguments)


def test_files(tmp_path):
    save(tmp_path, 1, {"w": jnp.ones(2)})
    cases = [
        (lambda: save(tmp_path, -1, {}), ValueError, "`step` must be a whole number"),
        (lambda: save(tmp_path, 1, {}), ValueError, "`step` must be .* not saved yet"),
        (lambda: save(tmp_path, 2, {}, keep=0), ValueError, "`keep` must be .*None"),
        (lambda: save(tmp_path, 2, {"x": "y"}), TypeError, "`tree` at 'x' must be"),
        (lambda: restore(tmp_path, step=5), FileNotFoundError, r"\[1\], got 5"),
        (lambda: restore(tmp_path / "no"), FileNotFoundError, "holds none"),
        (lambda: restore(tmp_path, fallback=1), TypeError, "`fallback` must be True"),
        (
            lambda: restore(tmp_path, {"w": jnp.ones(3), "v": jnp.ones(1)}),
            ValueError,
            r"not saved: 'v'; 'w' is float32\[2\], `like` has float32\[3\].*migrate",
        ),
        (
            lambda: restore(tmp_path, {}),
            ValueError,
            "only saved: 'w'",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    assert np.array_equal(restore(tmp_path)["w"], [1, 1])  # nothing was touched


def test_without_orbax(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'adamx\[checkpoints\]'"):
        save(tmp_path, 1, {"w": jnp.ones(2)})
