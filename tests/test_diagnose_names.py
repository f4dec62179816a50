"""diagnose: no layer is measured in silence for another, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

TREE = {"a": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}, "b": jnp.ones(4)}


def make(**kw):
    return adamx.diagnose(adamx.adam(1e-3), every=1, **kw)


def test_parameters_of_one_path_are_refused_and_told_apart():
    """Before, one of them was measured, and nothing said so."""
    params = {"a/b": jnp.ones(3), "a": {"b": jnp.ones(4)}, "c": jnp.ones(2)}
    message = r"got \['a'\]\['b'\] and \['a/b'\], which are both 'a/b'"
    with pytest.raises(ValueError, match=message):
        make().init(params)
    tx = make(by=lambda path: None if path == "a/b" else path)
    assert list(adamx.read(tx.init(params)).diagnostics.layers) == ["c"]
    params = {"x": jnp.ones(3), "y": jnp.ones((2, 3))}
    tx = make(by=lambda path: {"x": "L/0", "y": "L"}[path], stacked="y")
    with pytest.raises(ValueError, match=r"different names, got 'L/0' twice"):
        tx.init(params)


def test_a_function_that_leaves_out_all_is_refused():
    tx = make(by=lambda path: None)
    with pytest.raises(ValueError, match=r"`by` .* got None for all: 'a/bias', "):
        tx.init(TREE)
    optax.tree.map_params(tx, jnp.zeros_like, make().init(TREE))


@pytest.mark.parametrize(
    ("params", "layers"),
    [({}, []), ({"a": None}, []), ({"z": jnp.zeros((0, 2))}, ["z"])],
)
def test_trees_without_elements(params, layers):
    for by in ("leaf", "group", lambda path: path):
        tx = make(by=by)
        state = tx.init(params)
        updates, state = jax.jit(tx.update)(params, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        found = adamx.read(state).diagnostics
        assert found.count == 1
        assert by == "group" or list(found.layers) == layers
        assert all(np.isnan(x["r/p50"]) for x in found.layers.values())


def test_a_group_without_parameters():
    both = {"none": make(), "all": adamx.adam(1e-3)}
    tx = optax.partition(both, lambda params: jax.tree.map(lambda _: "all", params))
    _, state = tx.update(TREE, tx.init(TREE), TREE)
    assert adamx.read(state).diagnostics.layers == {}


def named(tx, params=TREE, calls=1):
    """The norms of the gradient by layer; the gradient is the parameters."""
    state = tx.init(params)
    for _ in range(calls):
        _, state = jax.jit(tx.update)(params, state, params)
    layers = adamx.read(state).diagnostics.layers
    return {name: round(float(x["grad_norm"]) ** 2) for name, x in layers.items()}


def test_two_diagnoses_that_name_a_layer_alike_are_both_there():
    """a has 9 elements, b 4, all of them 1; before, one overwrote the other."""
    for by, name in (("group", "all"), (lambda path: "net", "net")):
        tx = adamx.groups([("a", make(by=by))], default=make(by=by))
        assert named(tx) == {f"a/{name}": 9, f"default/{name}": 4}
    own = adamx.groups([("a", make(by=[("^a", "b")]))], default=make())
    assert named(own) == {"a/b": 9, "default/b": 4}
    # Each parameter has its own path: nothing is renamed.
    both = adamx.groups([("a", make())], default=make())
    assert named(both) == {"a/bias": 3, "a/kernel": 6, "b": 4}
    # Nor is it where the new name is there already.
    by = [("bias", "net"), ("kernel", "a/net")]
    taken = adamx.groups([("a", make(by=by))], default=make(by=[("b", "net")]))
    assert named(taken) == {"a/a/net": 3, "a/net": 6, "default/net": 4}


def test_one_diagnose_in_another():
    twice = adamx.diagnose(make(by=[("", "w")]), every=1, by=[("kernel|b$", "w")])
    assert named(twice) == {"0/w": 10, "a/bias": 3, "1/w": 13}


def test_a_group_of_all_is_called_all():
    for tx in (
        adamx.adam(1e-3),
        optax.chain(adamx.clip_by_global_norm(99.0), adamx.adam(1e-3)),
        adamx.stages([(adamx.adam(1e-3), 5), (adamx.adamw(1e-3), None)]),
    ):
        assert named(adamx.diagnose(tx, every=1, by="group")) == {"all": 13}
    tx = adamx.groups([("a", adamx.adam(1e-3))], default=adamx.sgd(0.1))
    assert named(adamx.diagnose(tx, every=1, by="group")) == {"a": 9}


def test_of_stages_in_a_batch_each_member_shows_its_own():
    """The first member is in the first stage, the second in the second."""
    first = adamx.diagnose(adamx.adam(1e-3), every=1)
    second = adamx.diagnose(adamx.adam(1e-3), every=2, by=lambda path: path)
    tx = adamx.stages([(first, 3), (second, 3), (adamx.sgd(0.1), None)])
    params = {"w": jnp.ones(4)}
    states, update = [tx.init(params)], jax.jit(tx.update)
    for _ in range(8):
        states.append(update(params, states[-1], params)[1])
    some = [states[2], states[5], states[8]]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *some)
    for read in (adamx.read, jax.jit(adamx.read)):
        found = read(batch).diagnostics
        assert np.asarray(found.count).tolist() == [2, 2, 0]
        assert np.asarray(found.seen).tolist() == [2, 2, 0]
        assert list(found.layers) == ["w"]
        r = np.asarray(found.layers["w"]["v_change"])
        alone = [adamx.read(s).diagnostics.layers["w"]["v_change"] for s in some[:2]]
        np.testing.assert_allclose(r, [*alone, np.nan])
