"""`describe`: bytes, groups, rates; decay and freezing as they are, or a "?"."""

import dataclasses
import io
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
from flax import nnx

import adamx
from adamx import codecs
from tests.test_groups import Module, Net

PARAMS = {
    "embed": jnp.ones((8, 16)),
    "layer": {"bias": jnp.ones(16), "kernel": jnp.ones((16, 4), jnp.bfloat16)},
    "nothing": None,
    "scale": jnp.ones(()),
}
NAMES = ["embed", "layer/bias", "layer/kernel", "scale"]
MATRICES = adamx.decay_mask()
WARMUP = adamx.schedules.warmup_cosine(1e-3, 1000, warmup=100)


def columns(tx, params=PARAMS, state=None):
    """By path: group, decayed, frozen, bytes."""
    *rows, _ = adamx.describe(tx, params, state).rows
    return {r.path: (r.group, r.decayed, r.frozen, r.state_bytes) for r in rows}


def column(tx, field, params=PARAMS, state=None):
    *rows, _ = adamx.describe(tx, params, state).rows
    return [getattr(row, field) for row in rows]


def nbytes(state):
    """Bytes by NumPy, but for 4-bit numbers, which it stores in 8."""
    total = 0
    for x in jax.tree.leaves(state):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        half = x.dtype in (jnp.int4, jnp.uint4)
        total += np.asarray(x).nbytes / (2 if half else 1)
    return total


# ----------------------------------------------------------------------------- bytes


def small(codec):
    return {"mu_dtype": codec, "nu_dtype": codec}


INT4 = codecs.int4(min_size=1)
STATES = {
    "adamw": adamx.adamw(1e-3),
    "sgd": adamx.sgd(0.1),
    "int8": adamx.adamw(1e-3, **small(codecs.int8(min_size=1))),
    "int4": adamx.adamw(1e-3, **small(INT4)),
    "bfloat16, stochastic": adamx.lion(1e-3, mu_dtype=codecs.bfloat16_stochastic()),
    "adam_mini": adamx.adam_mini(1e-3),
    "master_weights": adamx.master_weights(adamx.adamw(1e-3)),
    "chain": optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(WARMUP)),
    "masked": optax.masked(adamx.adamw(1e-3), MATRICES),
    "groups": adamx.groups([("embed", adamx.freeze())], adamx.adamw(1e-3)),
    "optax": optax.adamw(1e-3),
    "MultiSteps": optax.MultiSteps(adamx.adam(1e-3), 4).gradient_transformation(),
    "noise": optax.add_noise(0.1, 0.5, jax.random.key(0)),
}  # fmt: skip


@pytest.fixture
def blind(monkeypatch):
    """Without the runs of stand-ins, which have tests of their own."""
    from adamx.compose import _describe

    nothing = _describe.Behaviour(None, None)
    monkeypatch.setattr(_describe, "observe", lambda tx, p: (
        [nothing] * len(jax.tree.leaves(p)), None))  # fmt: skip


@pytest.mark.parametrize("label", STATES)
def test_bytes_are_those_of_the_whole_state(blind, label):
    tx = STATES[label]
    table = adamx.describe(tx, PARAMS)
    state = tx.init(PARAMS)
    assert table.state_bytes == nbytes(state)
    assert sum(row.state_bytes for row in table.rows) == table.state_bytes
    assert table.parameters == 8 * 16 + 16 + 64 + 1
    assert table.parameter_bytes == nbytes(PARAMS)
    assert table.bytes_per_parameter == table.state_bytes / table.parameters
    assert adamx.describe(tx, jax.eval_shape(lambda: PARAMS)).rows == table.rows


def test_bytes_by_parameter(blind):
    assert column(STATES["adamw"], "state_bytes") == [1024, 128, 64 * 6, 8]
    assert column(STATES["masked"], "state_bytes") == [1024, 0, 64 * 6, 0]
    assert column(STATES["groups"], "state_bytes") == [0, 128, 64 * 6, 8]
    found = column(STATES["MultiSteps"], "state_bytes")
    assert (found[0], found[1], found[3]) == (1536, 192, 12)
    assert column(STATES["sgd"], "state_bytes") == [0, 0, 0, 0]
    # Codes of half a byte, and float32 scales: by row and column, or of 256s.
    state = STATES["int4"].init(PARAMS)[0]
    scales = [(s["embed"].size, s["layer"]["bias"].size)
              for m in (state.mu, state.nu) for s in m.scales]  # fmt: skip
    expected = [
        8 * 16 + 4 * sum(x for x, _ in scales),
        16 + 4 * sum(y for _, y in scales),
    ]
    assert column(STATES["int4"], "state_bytes")[:2] == expected


def test_scalar_parameters_are_not_taken_for_counts(blind):
    """The state has a dozen scalars; two of them are the moments."""
    for params in (jnp.ones(()), [jnp.ones(())], (jnp.ones(()),)):
        (row, shared) = adamx.describe(adamx.adam(1e-3), params).rows
        assert row.state_bytes == 8
        assert row.stored == (("mu", "float32"), ("nu", "float32"))
        assert shared.state_bytes > 8


def test_fields_of_a_module_that_are_named_as_those_of_a_state(blind):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Counted:
        count: jax.Array
        mu: jax.Array

    params = Counted(jnp.ones(()), jnp.ones(()))
    assert column(adamx.adam(1e-3), "state_bytes", params) == [8, 8]


def test_codecs_are_named(blind):
    tx = adamx.adamw(1e-3, mu_dtype=codecs.int8(min_size=64), nu_dtype=codecs.int8())
    stored = column(tx, "stored")
    assert stored[0] == (("mu", "int8"), ("nu", "float32"))
    assert stored[1] == (("mu", "float32"), ("nu", "float32"))


def test_a_state_that_cannot_be_told_apart_is_shared(blind):
    def init(params):
        return {"v": jax.tree.map(lambda p: p.astype(jnp.float32), dict(params))}

    tx = optax.GradientTransformation(init, lambda g, s, p=None: (g, s))
    table = adamx.describe(tx, PARAMS)
    assert table.rows[-1].state_bytes == table.state_bytes == 4 * 209
    assert "placeholder" in table.notes[0]


# -------------------------------------------------------------------- groups and rates


def test_groups_and_rates(blind):
    tx = optax.chain(
        adamx.clip_by_global_norm(1.0),
        adamx.groups(
            [("embed", adamx.sgd(0.5)), ("bias", adamx.adam(WARMUP))],
            default=adamx.freeze(),
        ),
    )
    groups = ["embed", "bias", "default", "default"]
    assert column(tx, "group") == groups
    assert column(tx, "learning_rate") == [None] * 4
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
    assert column(tx, "group", state=state) == groups
    rates = column(tx, "learning_rate", state=state)
    assert rates == [0.5, pytest.approx(2e-5), None, None]
    assert adamx.read(state).learning_rate["bias"] == rates[1]


LABELS = {"embed": "a", "layer": {"bias": "b", "kernel": "b"}, "nothing": None,
          "scale": "a"}  # fmt: skip
SGD, ADAM = adamx.sgd(0.5), adamx.adam(0.25)
INNER = adamx.groups([("bias", ADAM)], default=SGD)

# label: (transformation, groups, rates), by hand
PLACES = {
    "partition": (
        optax.partition({"a": SGD, "b": ADAM}, LABELS), list("abba"),
        [0.5, 0.25, 0.25, 0.5]),
    "partition without any state": (
        optax.partition({"a": SGD, "b": adamx.sgd(0.25)}, LABELS), [None] * 4,
        [None] * 4),
    "groups without any state": (
        adamx.groups([("embed", SGD), ("bias|kernel", adamx.sgd(0.25))],
                     default=adamx.freeze()),
        ["embed", "bias|kernel", "bias|kernel", "default"], [0.5, 0.25, 0.25, None]),
    "overlapping rules without state": (
        adamx.groups([("layer/bias", SGD), ("layer", adamx.freeze())], default=ADAM),
        ["default", None, "layer", "default"], [0.25, None, None, 0.25]),
    "groups in groups": (
        adamx.groups([("layer", INNER)], default=adamx.adam(0.125)),
        ["default", "layer, bias", "layer, default", "default"],
        [0.125, 0.25, 0.5, 0.125]),
    "groups in a partition": (
        optax.partition({"a": SGD, "b": INNER}, LABELS),
        [None, "b, bias", None, None], [None, 0.25, None, None]),
    "groups one after another": (
        optax.chain(INNER, adamx.groups([("embed|bias", ADAM)], default=SGD)),
        ["default, embed|bias", "bias, embed|bias", "default, default",
         "default, default"],
        [(0.5, 0.25), (0.25, 0.25), (0.5, 0.5), (0.5, 0.5)]),
    "masked": (
        optax.masked(ADAM, MATRICES), [""] * 4, [0.25, None, 0.25, None]),
    "masked without any state": (optax.masked(SGD, MATRICES), [""] * 4, [None] * 4),
    "under a wrapper": (
        adamx.loss_scaling(optax.chain(optax.zero_nans(), INNER)),
        ["default", "bias", "default", "default"], [0.5, 0.25, 0.5, 0.5]),
    "not ours": (optax.adam(0.1), [""] * 4, [None] * 4),
    "two rates": (
        optax.chain(ADAM, adamx.scale_by_learning_rate(0.5)), [""] * 4,
        [(0.25, 0.5)] * 4),
    "injected": (
        optax.inject_hyperparams(adamx.adam)(0.25), [""] * 4, [0.25] * 4),
}  # fmt: skip


@pytest.mark.parametrize("label", PLACES)
def test_places(blind, label):
    tx, groups, rates = PLACES[label]
    state = tx.init(PARAMS)
    table = adamx.describe(tx, PARAMS, state)
    *rows, _ = table.rows
    assert [row.group for row in rows] == groups
    assert [row.learning_rate for row in rows] == rates
    is_open = None in groups or label == "masked without any state"
    assert any("several branches" in note for note in table.notes) == is_open


def test_models(blind):
    model = Net(nnx.Rngs(0))
    tx = adamx.groups([("embedding", adamx.sgd(0.5))], default=adamx.adam(0.25))
    params = nnx.state(model, nnx.Param)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    table = adamx.describe(tx, params, optimizer)
    assert [
        (r.path, r.group, r.learning_rate, r.state_bytes) for r in table.rows[:-1]
    ] == [
        ("embed/embedding", "embedding", 0.5, 0),
        ("head/bias", "default", 0.25, 16),
        ("head/kernel", "default", 0.25, 64),
    ]
    module = Module(jnp.ones((3, 2)), {"w": jnp.ones(2), "static": None})
    assert column(adamx.adam(1.0), "path", module) == ["embed", "layer/w"]


# ------------------------------------------------------------------ decay and freezing

YES, NO = [True, False, True, False], [False] * 4
ALL, UNKNOWN = [True] * 4, [None] * 4


def scheduled(start):
    """A weight decay of 0 up to a step."""
    return adamx.adamw(1e-3, weight_decay=lambda t: jnp.where(t < start, 0.0, 0.1))


BIG = lambda p: jax.tree.map(lambda x: x.size > 20, p)  # noqa: E731
SMALL = lambda p: jax.tree.map(lambda x: x.size < 20, p)  # noqa: E731
SOME = [None, False, None, False]

# label: (transformation, decayed, frozen), by hand
BEHAVIOURS = {
    "adam": (adamx.adam(1e-3), NO, NO),
    "adamw": (adamx.adamw(1e-3), ALL, NO),
    "adamw, no decay": (adamx.adamw(1e-3, weight_decay=0.0), NO, NO),
    "adamw, small": (adamx.adamw(1e-6, weight_decay=1e-5), ALL, NO),
    "adamw, masked": (adamx.adamw(WARMUP, mask=MATRICES), YES, NO),
    "adam_l2": (adamx.adam_l2(1e-3, weight_decay=0.1), ALL, NO),
    "lamb, no decay": (adamx.lamb(1e-3, weight_decay=0.0), NO, NO),
    "schedule-free": (adamx.schedule_free_adamw(1e-3, weight_decay=0.1), ALL, NO),
    "schedule-free, no decay": (adamx.schedule_free_adamw(1e-3), NO, NO),
    "decay from step 1,000 on": (scheduled(1000), ALL, NO),
    "loss_scaling": (adamx.loss_scaling(adamx.adamw(1e-3, mask=MATRICES)), YES, NO),
    "cautious": (adamx.cautious(adamx.adamw(1e-3, mask=MATRICES)), YES, NO),
    "master_weights": (
        adamx.master_weights(adamx.adamw(1e-2, weight_decay=0.1, mask=MATRICES)),
        YES, NO),
    "MultiSteps": (
        optax.MultiSteps(adamx.adamw(1e-3), 8).gradient_transformation(), ALL, NO),
    "MultiSteps, too many": (
        optax.MultiSteps(adamx.adamw(1e-3), 100).gradient_transformation(),
        UNKNOWN, UNKNOWN),
    "optax.adamw": (optax.adamw(1e-3, mask=MATRICES), YES, NO),
    "optax.lion": (optax.lion(WARMUP, weight_decay=0.1), ALL, NO),
    "optax.partition": (
        optax.partition({"a": optax.set_to_zero(), "b": optax.adamw(1e-3)}, LABELS),
        [False, True, True, False], [True, False, False, True]),
    "optax.masked": (optax.masked(optax.adamw(1e-3), MATRICES), YES, NO),
    "noise": (
        optax.chain(optax.add_noise(0.1, 0.5, 0), adamx.adamw(1e-3, mask=MATRICES)),
        [None, False, None, False], NO),
    "a drift": (
        optax.stateless(lambda g, p: jax.tree.map(lambda g, p: 2 * g - abs(p), g, p)),
        NO, NO),
    "groups": (
        optax.chain(adamx.clip_by_global_norm(1.0),
                    adamx.groups([("embed|scale", adamx.freeze())], adamx.adamw(1e-3))),
        [False, True, True, False], [True, False, False, True]),
    "frozen, then decayed": (
        optax.chain(adamx.freeze(), adamx.add_decoupled_weight_decay(-0.1)), ALL, NO),
    "freeze": (adamx.freeze(), NO, ALL),
    "set_to_zero": (optax.set_to_zero(), NO, ALL),
    "scale(0)": (optax.scale(0.0), NO, ALL),
    "no transformation": (optax.identity(), NO, NO),
    "a bound": (
        optax.chain(adamx.sgd(0.1), optax.keep_params_nonnegative()), NO, NO),
    "rate 0": (adamx.adam(0.0), NO, ALL),
    # A rate of 0 until later than anybody looks: who knows?
    "rate 0 until later": (
        adamx.adam(lambda t: jnp.where(t == 2**24, 1e-3, 0.0)), NO, UNKNOWN),
    # A mask that asks for sizes: the stand-ins of all leaves are small.
    "decay of the big": (adamx.adamw(1e-3, mask=BIG), SOME, SOME),
    "decay of the small": (
        adamx.adamw(1e-3, mask=SMALL), [False, True, False, True],
        [None, False, None, False]),
    "the big are frozen": (optax.masked(adamx.freeze(), BIG), NO, SOME),
    "the big are frozen, and decay by 0": (
        optax.chain(optax.masked(adamx.freeze(), BIG),
                    adamx.add_decoupled_weight_decay(lambda t: 0.0 * t)),
        NO, SOME),
}  # fmt: skip


SLOW = {
    *("optax.lion", "schedule-free", "cautious", "optax.masked", "MultiSteps"),
    *("adam", "adamw, no decay", "lamb, no decay", "schedule-free, no decay"),
    *("loss_scaling", "MultiSteps, too many", "optax.partition", "a drift"),
    *("set_to_zero", "scale(0)", "decay of the small", "the big are frozen"),
}


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(label, marks=[pytest.mark.slow] if label in SLOW else [])
        for label in BEHAVIOURS
    ],
)
def test_behaviour(label):
    tx, decayed, frozen = BEHAVIOURS[label]
    *rows, _ = adamx.describe(tx, PARAMS).rows
    assert [row.decayed for row in rows] == decayed
    assert [row.frozen for row in rows] == frozen


def test_what_needs_more_than_the_gradient_is_not_guessed():
    table = adamx.describe(adamx.sophia_h(1e-3), PARAMS)
    assert {(row.decayed, row.frozen) for row in table.rows} == {(None, None)}
    assert "loss_fn" in table.notes[0]
    assert table.state_bytes > 0
    assert " ?" in table.text(80)


def test_nothing_of_the_true_size_is_computed():
    huge = {"w": jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32)}
    (row, _) = adamx.describe(adamx.adamw(1e-3), huge).rows
    assert (row.decayed, row.frozen, row.state_bytes) == (True, False, 2.0**43)


def test_empty():
    table = adamx.describe(adamx.adamw(1e-3), {})
    assert (table.parameters, table.bytes_per_parameter) == (0, 0.0)
    assert "(shared)" in str(table)
    empty = {"e": jnp.zeros((0, 3)), "w": jnp.ones((2, 2))}
    assert column(adamx.adamw(1e-3), "state_bytes", empty) == [0, 32]


# ------------------------------------------------------------------------------- table

TALL = {f"decoder/block_{i}/attention/{n}": jnp.ones((4, 4)) for i in range(3)
        for n in ("query_kernel", "scale[0]")}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    from adamx.compose import _describe

    tx = adamx.groups(
        [("scale", adamx.freeze())], adamx.adamw(3e-4, **small(codecs.int8(min_size=1)))
    )
    return _describe.describe(tx, TALL, tx.init(TALL))


@pytest.mark.parametrize("width", [60, 80, 120, 140, 200])
def test_the_table_fits_and_loses_nothing(table, width):
    text = table.text(width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    text.encode("ascii")
    assert "…" not in text
    head = lines[0].split()
    assert head[:2] == ["path", "shape"]
    assert head[-1] == "state"
    assert (
        ("dtype" in head) == ("frozen" in head) == ("moments" in head) == (width > 100)
    )
    if width >= 80:
        for row in table.rows:
            (line,) = [x for x in lines if x.startswith(row.path + " ")]
            cells = line.split()
            assert cells[-1] == "B"
            assert cells[-2] == f"{row.state_bytes:g}"
            if row.path != "(shared)":
                assert row.group in cells
                assert ("0.0003" in cells) == (not row.frozen)
                assert ("yes" in cells) if width > 100 or not row.frozen else (
                    "frozen" in cells)  # fmt: skip
    assert "mu int8, nu uint8" in text or width < 100
    assert lines[-1].startswith("96 parameters, 384 B; state ")


def test_printing(table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    print(table)
    assert capsys.readouterr().out == table.text(90) + "\n"
    assert repr(table) == str(table) == table.text(90)
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    assert [x.rstrip() for x in console.export_text().splitlines()] == (
        table.text(120).splitlines()
    )


def test_without_a_terminal():
    code = (
        "import adamx, jax.numpy as jnp;"
        "print(adamx.describe(adamx.sgd(0.1), {'w': jnp.ones(2)}))"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    env.pop("COLUMNS", None)
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, check=True,
        stdin=subprocess.DEVNULL,
    ).stdout.decode()  # fmt: skip
    assert out.splitlines()[0].split() == ["path", "shape", "decay", "state"]


# --------------------------------------------------------------------------- bad input


def test_bad_input():
    tx = adamx.adam(1e-3)
    with pytest.raises(TypeError, match=r"`tx` must be a gradient transformation"):
        adamx.describe(PARAMS, tx)
    with pytest.raises(TypeError, match=r"parameter at 'f' must be an array.*filter"):
        adamx.describe(tx, {"w": jnp.ones(2), "f": jax.nn.relu})
    with pytest.raises(
        ValueError, match=r"`state` must be of `tx` and `params`, got 2"
    ):
        adamx.describe(tx, PARAMS, adamx.sgd(0.1).init(PARAMS))
    many = jax.vmap(tx.init)(jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS))
    with pytest.raises(ValueError, match=r"`state` must be.*batched"):
        adamx.describe(tx, PARAMS, many)
    with pytest.raises(ValueError, match=r"an array of shape \(3,\) where \(2,\) is"):
        adamx.describe(tx, jnp.ones(2), tx.init(jnp.ones(3)))
    with pytest.raises(ValueError, match=r"`rules` must each match"):
        adamx.describe(adamx.groups([("x", tx)], tx), PARAMS)
