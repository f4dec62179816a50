"""Recipes: equal to the chain of their numbers, and at home wherever it is."""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx import __main__, catalogue, recipes, schedules
from tests.helpers import some

TOTAL = 40
MASK = adamx.decay_mask()

# The numbers, once more and by hand: label -> (recipe, those of its text, chain).
CASES = {
    "prototype": (
        recipes.prototype,
        ("3e-4", "0.999", "1e-8", "clip 1"),
        lambda: optax.chain(adamx.clip_by_global_norm(1.0), adamx.adam(3e-4)),
    ),
    "finetune_transformer": (
        functools.partial(recipes.finetune_transformer, total_steps=TOTAL),
        ("2e-5", "10%", "0.999", "1e-6", "0.01", "clip 1"),
        lambda: optax.chain(
            adamx.clip_by_global_norm(1.0),
            adamx.adamw(
                schedules.warmup_linear(2e-5, TOTAL, 4, end=0.0),
                b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01, mask=MASK,
            ),
        ),
    ),
    "pretrain_llm": (
        functools.partial(recipes.pretrain_llm, total_steps=TOTAL, warmup=4),
        ("3e-4", "1%", "10%", "0.95", "1e-8", "0.1", "clip 1"),
        lambda: optax.chain(
            adamx.clip_by_global_norm(1.0),
            adamx.adamw(
                schedules.warmup_cosine(3e-4, TOTAL, 4, end=3e-5),
                b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=MASK,
            ),
        ),
    ),
    "vision": (
        functools.partial(recipes.vision, total_steps=TOTAL),
        ("1e-3", "5/300", "0.999", "1e-8", "0.05", "clip 1"),
        lambda: optax.chain(
            adamx.clip_by_global_norm(1.0),
            adamx.adamw(
                schedules.warmup_cosine(1e-3, TOTAL, 1),
                b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, mask=MASK,
            ),
        ),
    ),
    'vision(model="resnet")': (
        functools.partial(recipes.vision, total_steps=TOTAL, model="resnet"),
        ("0.1", "5/120", "0.9", "1e-4"),
        lambda: optax.chain(
            adamx.add_decoupled_weight_decay(1e-4, MASK),
            adamx.momentum(schedules.warmup_cosine(0.1, TOTAL, 2), 0.9, nesterov=True),
        ),
    ),
    "rl": (
        functools.partial(recipes.rl, total_steps=TOTAL),
        ("3e-4", "0.999", "1e-5", "clip 0.5"),
        lambda: optax.chain(
            adamx.clip_by_global_norm(0.5),
            adamx.adam(
                schedules.linear(3e-4, 0.0, TOTAL), b1=0.9, b2=0.999, eps=1e-5
            ),
        ),
    ),
    "sparse_embeddings": (
        recipes.sparse_embeddings,
        ("1e-3", "0.999", "1e-8", "0.01"),
        lambda: adamx.groups(
            [("embed", adamx.sparse_adam(1e-3))],
            default=adamx.adamw(1e-3, weight_decay=0.01, mask=MASK),
        ),
    ),
}  # fmt: skip
by_case = pytest.mark.parametrize("label", CASES)
FEW = ("pretrain_llm", "sparse_embeddings")  # the others in the slow run only
by_few = pytest.mark.parametrize(
    "label",
    [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in CASES],
)


def make(label, *args, **kwargs):
    return CASES[label][0](*args, **kwargs)


def make_params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {
        "embed": {"embedding": (16, 8)},
        "dense": {"kernel": (8, 24), "bias": (24,)},
        "norm": {"scale": (8,)},
    }
    draw = lambda s: jnp.asarray(rng.standard_normal(s), dtype)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda s: isinstance(s, tuple))


def gradients(seed, like):
    rng = np.random.default_rng(seed)
    drawn = [
        jnp.asarray(rng.standard_normal(p.shape), p.dtype)
        for p in jax.tree.leaves(like)
    ]
    new = jax.tree.structure(like).unflatten(drawn)
    rows = rng.integers(0, 16, 4)  # of the table, few are seen
    seen = jnp.zeros((16, 1), bool).at[rows].set(True)
    new["embed"]["embedding"] = jnp.where(seen, new["embed"]["embedding"], 0)
    return new


def batches(params, n=5):
    return jax.tree.map(
        lambda *x: jnp.stack(x), *[gradients(seed, params) for seed in range(n)]
    )


def scanned(tx, params, grads):
    """Parameters and state after some steps, each through `fused`."""
    init, step = adamx.fused(tx)
    one = lambda carry, g: (step(g, carry[1], carry[0]), None)  # noqa: E731
    return jax.lax.scan(one, (params, init(params)), grads)[0]


@functools.cache
def runs(label):
    """The recipe's run and that of the chain, in one compiled function."""
    params = make_params()
    both = lambda *x: [scanned(tx, *x) for tx in (make(label), CASES[label][2]())]  # noqa: E731
    return jax.jit(both)(params, batches(params))


def program(tx, params):
    """What one step computes: the same text, the same bits."""
    shapes = jax.eval_shape(lambda: params)
    state = jax.eval_shape(tx.init, shapes)
    return str(jax.make_jaxpr(tx.update)(shapes, state, shapes))


# ------------------------------------------------------------------- the numbers


# Quickly, those that have least in common.
@pytest.mark.parametrize(
    "label", some(CASES, "finetune_transformer", "pretrain_llm", "rl", *FEW[1:])
)
def test_it_is_the_chain_of_its_numbers(label):
    (got, _), (want, _) = runs(label)
    chex.assert_trees_all_equal(got, want)
    before = jax.tree.leaves(make_params())
    assert all(
        np.any(a != b) for a, b in zip(before, jax.tree.leaves(got), strict=True)
    )


@by_case
def test_its_table_row_has_its_numbers(label):
    (row,) = [r for r in catalogue.RECIPES if r.name == label]
    missing = [n for n in CASES[label][1] if n not in row.numbers]
    assert not missing
    # What is a number in the row is one of those above.
    told = re.findall(r"(?<![\w/])\d[\d.]*(?:e-\d+)?(?:/\d+|%)?", row.numbers)
    known = {n.removeprefix("clip ") for n in CASES[label][1]} | {"0"}
    assert set(told) <= known


@pytest.mark.parametrize(
    "label", sorted({r.name.split("(")[0] for r in catalogue.RECIPES})
)
def test_every_default_is_sourced(label):
    recipe = getattr(recipes, label)
    text = inspect.getdoc(recipe)
    for name, parameter in inspect.signature(recipe).parameters.items():
        if isinstance(parameter.default, float):
            after = text.split(f"\n  {name}: ")[1]
            entry = re.split(r"\n  \w+(?:, \w+)*: ", after)[0]
            number = f"{parameter.default:g}".replace("e-0", "e-")
            number = {"0.0003": "3e-4", "0.001": "1e-3"}.get(number, number)
            assert re.search(
                rf"(?<![\d.e-]){re.escape(number)}(?:\.0)?[:,;.]", entry
            ), (name, entry)
    assert "Source:" in text


def test_every_recipe_is_in_the_table_and_here():
    public = {n for n, f in vars(recipes).items() if inspect.isfunction(f)}
    named = {row.name.split("(")[0] for row in catalogue.RECIPES}
    assert public == named == {label.split("(")[0] for label in CASES}
    assert [row.name for row in catalogue.RECIPES] == list(CASES)


RATES = {  # total_steps 1,000: warm-up's end, peak, last
    "finetune_transformer": (100, 2e-5, 0.0),
    "pretrain_llm": (10, 3e-4, 3e-5),
    "vision": (17, 1e-3, 0.0),
    'vision(model="resnet")': (42, 0.1, 0.0),
}


@pytest.mark.parametrize("label", RATES)
def test_the_rate_at_the_corners(label):
    up, peak, last = RATES[label]
    partial = CASES[label][0]
    more = {"model": "resnet"} if "resnet" in label else {}
    tx = partial.func(total_steps=1000, **more)  # all defaults

    def step(state, _):
        _, state = tx.update(jnp.ones((1, 1)), state, jnp.ones((1, 1)))
        return state, optax.tree.get(state, "applied_learning_rate")

    _, rates = jax.lax.scan(step, tx.init(jnp.ones((1, 1))), None, length=1002)
    np.testing.assert_allclose(rates[jnp.array([0, up])], [0.0, peak], rtol=1e-6)
    np.testing.assert_allclose(rates[1000:], last, rtol=1e-6)
    assert jnp.argmax(rates) == up
    assert np.all(np.diff(rates[: up + 1]) > 0)
    assert np.all(np.diff(rates[up:]) <= 0)
    middle = (up + 1000) // 2
    np.testing.assert_allclose(rates[middle], (peak + last) / 2, rtol=5e-3)


def test_the_rate_of_rl():
    for total_steps, want in ((100, [3e-4, 1.5e-4, 0.0]), (None, [3e-4] * 3)):
        tx = recipes.rl(total_steps=total_steps)
        state = tx.init(jnp.ones(1))
        update = jax.jit(tx.update)
        rates = []
        for _ in range(101):
            _, state = update(jnp.ones(1), state)
            rates.append(float(adamx.read(state).learning_rate))
        np.testing.assert_allclose([rates[i] for i in (0, 50, 100)], want, rtol=1e-6)


DECAYED = {"embed/embedding", "dense/kernel"}


@by_case
def test_what_decays(label):
    """By what `describe` observes; it needs no more than shapes."""
    kwargs = {"weight_decay": 0.1} if label == "prototype" else {}
    table = adamx.describe(make(label, **kwargs), jax.eval_shape(make_params))
    want = DECAYED - ({"embed/embedding"} if label == "sparse_embeddings" else set())
    assert {row.path for row in table.rows if row.decayed} == (
        set() if label == "rl" else want
    )
    assert not table.notes


@pytest.mark.parametrize("label", sorted(set(CASES) - {"rl"}))
def test_a_mask_of_ones_own(label):
    params = make_params()
    one, other = (
        make(label, weight_decay=0.1, mask=adamx.decay_mask(min_ndim=n)) for n in (2, 0)
    )
    assert program(one, params) == program(make(label, weight_decay=0.1), params)
    assert program(one, params) != program(other, params)


def test_arguments_reach_their_stage():
    tx = recipes.pretrain_llm(
        1e-2, total_steps=8, weight_decay=0.3, warmup=2, end_share=0.5, max_norm=0.25,
        b2=0.9, eps=1e-3, mu_dtype=jnp.bfloat16, nu_dtype=adamx.codecs.int8(),
    )  # fmt: skip
    twin = optax.chain(
        adamx.clip_by_global_norm(0.25),
        adamx.adamw(
            schedules.warmup_cosine(1e-2, 8, 2, end=5e-3), b2=0.9, eps=1e-3,
            weight_decay=0.3, mask=MASK, mu_dtype=jnp.bfloat16,
            nu_dtype=adamx.codecs.int8(),
        ),
    )  # fmt: skip
    params = make_params()
    assert program(tx, params) == program(twin, params)
    tx = recipes.finetune_transformer(1e-2, total_steps=8, warmup=0, max_norm=9, eps=1)
    twin = optax.chain(
        adamx.clip_by_global_norm(9),
        adamx.adamw(
            schedules.warmup_linear(1e-2, 8), eps=1, weight_decay=0.01, mask=MASK
        ),
    )
    assert program(tx, params) == program(twin, params)
    tx = recipes.vision(0.2, total_steps=8, model="resnet", max_norm=2.0, warmup=1)
    twin = optax.chain(
        adamx.clip_by_global_norm(2.0),
        adamx.add_decoupled_weight_decay(1e-4, MASK),
        adamx.momentum(schedules.warmup_cosine(0.2, 8, 1), nesterov=True),
    )
    assert program(tx, params) == program(twin, params)
    tx = recipes.sparse_embeddings(2e-3, tables="kernel$", weight_decay=0.2)
    twin = adamx.groups(
        [("kernel$", adamx.sparse_adam(2e-3))],
        default=adamx.adamw(2e-3, weight_decay=0.2, mask=MASK),
    )
    assert program(tx, params) == program(twin, params)
    tx = recipes.prototype(1e-2, weight_decay=0.2, max_norm=3.0)
    twin = optax.chain(
        adamx.clip_by_global_norm(3.0), adamx.adamw(1e-2, weight_decay=0.2, mask=MASK)
    )
    assert program(tx, params) == program(twin, params)
    tx = recipes.rl(1e-2, max_norm=3.0, eps=1e-2)
    twin = optax.chain(adamx.clip_by_global_norm(3.0), adamx.adam(1e-2, eps=1e-2))
    assert program(tx, params) == program(twin, params)


# ------------------------------------------------------------ the shared contract


@by_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_state_and_updates_are_stable(label, dtype):
    tx, params = make(label), make_params(dtype)
    grads = gradients(0, params)
    shapes = jax.eval_shape(tx.init, jax.eval_shape(lambda: params))
    state = tx.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)
    updates, after = jax.eval_shape(tx.update, grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@by_few
def test_16_bit_parameters(label):
    """Fused and scanned, beside the float32 run."""
    params = make_params(jnp.bfloat16)
    many = jax.jit(functools.partial(scanned, make(label)))
    params, state = many(params, batches(params))
    want, after = runs(label)[0]
    assert adamx.read(state).scalars().keys() == adamx.read(after).scalars().keys()
    for got, near in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), near, rtol=0.02, atol=0.05)


@by_few
def test_eight_devices(label):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    axes = lambda p: PartitionSpec("data") if p.ndim > 1 else PartitionSpec()  # noqa: E731
    params = make_params()
    place = jax.tree.map(lambda p: NamedSharding(mesh, axes(p)), params)
    many = jax.jit(functools.partial(scanned, make(label)))
    eight, state = many(jax.device_put(params, place), batches(params))
    chex.assert_trees_all_close(eight, runs(label)[0][0], rtol=1e-6, atol=1e-7)
    spread = [x.sharding for x in jax.tree.leaves(state) if x.shape == (8, 24)]
    assert spread
    assert all(s.is_equivalent_to(place["dense"]["kernel"], 2) for s in spread)


@by_few
def test_read_and_wrappers(label):
    tx, (_, state) = make(label), runs(label)[0]
    reading = adamx.read(state)
    assert reading.count == 5
    assert reading.learning_rate is not None
    if label not in ("sparse_embeddings", 'vision(model="resnet")'):
        assert reading.grad_norm > 1
    params = jax.eval_shape(make_params)
    for wrapped in (adamx.guard(tx), adamx.accumulate(tx, 2), adamx.master_weights(tx)):
        state = jax.eval_shape(wrapped.init, params)
        updates, after = jax.eval_shape(wrapped.update, params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_cautious_sees_the_direction_behind_the_momentum():
    tx = adamx.cautious(make('vision(model="resnet")', warmup=0))
    params = jnp.full((2, 2), 1e-3)
    state = tx.init(params)
    _, state = tx.update(jnp.full((2, 2), 1.0), state, params)
    updates, _ = tx.update(jnp.full((2, 2), -0.1), state, params)
    assert not np.any(updates)  # momentum and gradient point apart


@by_few
def test_rates_are_traced(label):
    """One program for all peaks: the make_tx of a sweep; and in the state."""
    params = make_params()
    grads = gradients(1, params)

    @jax.jit
    @jax.vmap
    def first(rate):
        tx = make(label, rate)
        state = tx.init(params)
        _, state = tx.update(grads, state, params)
        return tx.update(grads, state, params)[0]["dense"]["kernel"]

    got = first(jnp.array([1e-3, 2e-3]))
    assert np.any(got[0])
    if "sparse" not in label:  # decay and direction both scale with the rate
        np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-5)
    recipe, fixed = CASES[label][0], {}
    if isinstance(recipe, functools.partial):
        recipe, fixed = recipe.func, recipe.keywords
    tx = adamx.with_hyperparams(
        recipe,
        1e-3,
        **fixed,
        static=[
            name
            for name in ("total_steps", "warmup")
            if name in inspect.signature(recipe).parameters
        ],
    )

    @jax.jit
    def second(params):
        state = adamx.set_hyperparams(tx.init(params), learning_rate=2e-3)
        _, state = tx.update(grads, state, params)
        return tx.update(grads, state, params)[0]["dense"]["kernel"]

    np.testing.assert_allclose(second(params), got[1], rtol=2e-5)


# ------------------------------------------------------------------- they train


@by_few
def test_it_trains(label):
    """Logistic regression on a bag of tokens: 200 fused steps in one scan."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 16, (64, 4)))
    target = jnp.asarray(np.sum(rng.standard_normal(16)[tokens], 1) > 0, jnp.float32)
    params = {
        "embed": jnp.asarray(rng.standard_normal((16, 8))) * 0.3,
        "dense": {"kernel": jnp.zeros((8, 1)) + 0.1},
    }

    def loss_fn(p):
        x = jnp.sum(p["embed"][tokens], 1) @ p["dense"]["kernel"]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(x[:, 0], target))

    kwargs = {"total_steps": 200} if label in RATES or label == "rl" else {}
    rate = 0.1 if "resnet" in label else 2e-2
    init, step = adamx.fused(make(label, rate, **kwargs))

    @jax.jit
    def train(params):
        def one(carry, _):
            loss, grads = jax.value_and_grad(loss_fn)(carry[0])
            return step(grads, carry[1], carry[0]), loss

        return jax.lax.scan(one, (params, init(params)), None, length=200)[1]

    losses = train(params)
    assert losses[0] > 0.5
    assert losses[-1] < 0.2 * losses[0]


def test_rows_that_are_not_seen_stay():
    params = make_params()
    (after, _), _ = runs("sparse_embeddings")
    seen = np.zeros(16, bool)
    for seed in range(5):
        seen |= np.any(gradients(seed, params)["embed"]["embedding"] != 0, 1)
    moved = np.any(after["embed"]["embedding"] != params["embed"]["embedding"], 1)
    np.testing.assert_array_equal(moved, seen)
    assert not seen.all()


def test_params_map_and_partition():
    """The placeholder of map_params, and trees with masked leaves."""
    params = make_params()
    for label in CASES:
        tx = make(label)
        state = tx.init(params)
        same = optax.tree.map_params(tx, lambda x: x, state)
        chex.assert_trees_all_equal(same, state)
    tx = optax.masked(
        make("sparse_embeddings"), {"embed": True, "dense": True, "norm": False}
    )
    updates, _ = tx.update(gradients(0, params), tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


# ------------------------------------------------------------------- the command


def test_the_command(capsys, monkeypatch):
    assert __main__.main(["recipes", "--markdown"]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 2 + len(CASES)
    assert {line.count("|") for line in printed} == {5}
    for columns in ("60", "140"):
        monkeypatch.setenv("COLUMNS", columns)
        assert __main__.main(["recipes"]) == 0
        shown = capsys.readouterr().out
        assert all(label in shown for label in CASES)
        assert ("Karpathy" in shown) == (columns == "140")
