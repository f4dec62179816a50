"""Every wrapper inside every other: what works, what is refused, what a NaN does.

    python -m tests.wrapper_pairs            prints the table
    python -m tests.wrapper_pairs --write    writes it to tests/PAIRS.md

A wrapper is a row of `WRAPPERS`, a pair that is refused an entry of `REFUSED`; all
others must work. For outer(inner(adamw)) that means, see `check`: compiled once,
the state keeps its form; three steps through `fused` are those through `update` and
`apply_updates`; where both wrappers change nothing in good weather, those of the bare
optimizer; and a gradient that is not finite leaves what a guard guards as it was.
"""

import functools
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx
from adamx.reading import unboxed

LR, STEPS, SCALE = 1e-2, 3, 8.0
RESULT = pathlib.Path(__file__).parent / "PAIRS.md"
# By how much two ways may differ, of numbers about 1 that moved by 1e-2 a step: XLA
# rounds a product and a sum once where it fuses them. bfloat16: two last places.
TOLERANCE = {"float32": 1e-6, "bfloat16": 1.6e-2}

Make = Callable[[Any], Any]  # learning rate -> transformation


class Wrapper(NamedTuple):
    """One wrapper.

    Attributes:
      wrap: from what makes a transformation of a learning rate, the same around it.
      every: gradients per step.
      is_neutral: whether the steps are those of the wrapped one while all is well.
      is_narrow: whether it is for bfloat16 parameters.
      is_innermost: whether it is an optimizer, which wraps nothing.
    """

    wrap: Callable[[Make], Make]
    every: int = 1
    is_neutral: bool = True
    is_narrow: bool = False
    is_innermost: bool = False


def around(wrapper: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return lambda make: lambda rate: wrapper(make(rate), *args, **options)


def _staged(make: Make) -> Make:
    return lambda rate: adamx.stages([(make(rate), 2), (make(rate / 2), None)])


def _grouped(make: Make) -> Make:
    return lambda rate: adamx.groups([("^b", make(rate))], default=make(rate))


def _frozen(make: Make) -> Make:
    return lambda rate: adamx.groups([("v$", adamx.freeze())], default=make(rate))


def _held(make: Make) -> Make:
    def factory(learning_rate: Any) -> Any:
        return make(learning_rate)

    return lambda rate: adamx.with_hyperparams(factory, learning_rate=rate)


def _handed_over(make: Make) -> Make:
    del make
    return lambda rate: adamx.adam_to_sgd(rate, 2, weight_decay=0.1)


def _clipped(make: Make) -> Make:
    return lambda rate: optax.chain(adamx.clip_by_global_norm(1e6), make(rate))


WRAPPERS = {
    "guard": Wrapper(around(adamx.guard, spike_zscore=6.0)),
    "accumulate": Wrapper(around(adamx.accumulate, 2), every=2),
    "stages": Wrapper(_staged, is_neutral=False),
    "groups": Wrapper(_grouped),
    "freeze": Wrapper(_frozen, is_neutral=False),
    "with_hyperparams": Wrapper(_held),
    "loss_scaling": Wrapper(around(adamx.loss_scaling, initial_scale=SCALE)),
    "master_weights": Wrapper(around(adamx.master_weights), is_narrow=True),
    "split master": Wrapper(
        around(adamx.master_weights, storage="split"), is_narrow=True
    ),
    "compensated": Wrapper(around(adamx.compensated), is_narrow=True),
    "cautious": Wrapper(around(adamx.cautious), is_neutral=False),
    "bucketed": Wrapper(around(adamx.bucketed)),
    "offload": Wrapper(around(adamx.offload, min_size=1, fallback="device")),
    "chain": Wrapper(_clipped),
    "adam_to_sgd": Wrapper(_handed_over, is_neutral=False, is_innermost=True),
}
WRITES = ("master_weights", "split master", "compensated")
_NAMES = {"split master": "master_weights"}
# (outer, inner): what the message of the error must contain.
REFUSED = {
    ("guard", "loss_scaling"): r"`tx` must not hold a loss_scaling.*Put it outside",
    ("loss_scaling", "loss_scaling"): r"`inner` must not scale the loss itself.*one",
    ("bucketed", "bucketed"): r"`inner` must not hold bucketed.*Leave one",
    ("cautious", "stages"): r"`inner` .*got stages.*Put it inside",
    # One rule within itself: what is left for it in the other groups is nothing.
    ("groups", "groups"): r"`rules` must each match a parameter, got '\^b'",
    ("freeze", "freeze"): r"`rules` must each match a parameter, got 'v\$'",
    **{
        (outer, inner): rf"must not hold {_NAMES.get(inner, inner)}.*Put it out"
        for outer in ("loss_scaling", "stages", "cautious")
        for inner in WRITES
    },
}


def pairs() -> Iterator[tuple[str, str]]:
    """All of them, outer and inner."""
    for outer, wrapper in WRAPPERS.items():
        if not wrapper.is_innermost:
            yield from ((outer, inner) for inner in WRAPPERS)


def label(names: Sequence[str]) -> str:
    """guard(accumulate), of the outermost and those inside it."""
    return "(".join(names) + ")" * (len(names) - 1)


def make_adamw(rate: Any) -> Any:
    return adamx.adamw(rate, weight_decay=0.1, mask=adamx.decay_mask())


def make(*names: str) -> Any:
    """Wrappers around AdamW, the outermost first."""
    wraps = (WRAPPERS[name].wrap for name in reversed(names))
    return functools.reduce(lambda of_rate, wrap: wrap(of_rate), wraps, make_adamw)(LR)


def make_params(dtype: Any) -> Any:
    """With a -0, which +0 would not leave as it is."""
    rng = np.random.default_rng(0)
    params = {
        group: {"w": rng.standard_normal((3, 4)), "v": rng.standard_normal(3)}
        for group in "ab"
    }
    return jax.tree.map(lambda x: jnp.asarray(x, dtype).at[..., 0].set(-0.0), params)


def gradient(params: Any, seed: int, scale: float = 1.0) -> Any:
    rng = np.random.default_rng(seed + 1)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.standard_normal(p.shape) * scale, p.dtype), params
    )


# ---------------------------------------------------------------------- what is asked


def assert_same_bits(got: Any, want: Any, what: str) -> None:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for a, b in pairs:
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), what


def assert_close(got: Any, want: Any, tolerance: float, what: str) -> None:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for a, b in pairs:
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=what)


def form(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(x.shape, x.dtype) for x in leaves]


def guarded(state: Any) -> list[Any]:
    """The states of all that skips steps, the outermost of nested ones."""
    kinds = (adamx.GuardState, adamx.LossScalingState)
    is_one = lambda x: isinstance(x, kinds)  # noqa: E731
    return [x for x in jax.tree.leaves(state, is_leaf=is_one) if is_one(x)]


def _compiled(tx: Any, traces: list[Any]) -> dict[str, Any]:
    """(params, state, gradients) -> (params, state), in both ways."""
    fused = adamx.fused(tx).step

    def update(params: Any, state: Any, g: Any) -> Any:
        traces.append("update")
        updates, state = tx.update(g, state, params)
        return adamx.apply_updates(params, updates), state

    def step(params: Any, state: Any, g: Any) -> Any:
        traces.append("step")
        return fused(g, state, params)

    return {"update": jax.jit(update), "step": jax.jit(step)}


def _check_bad(run: Any, carry: Any, scale: float, what: str) -> None:
    """A gradient that is not finite leaves parameters and guarded states as they are.

    All of its leaves are bad, since each of several groups has a guard of its own.
    """
    params, state = carry
    for value in (np.nan, np.inf, -np.inf):
        bad = gradient(params, 99, scale)
        bad = jax.tree.map(lambda g, v=value: g.at[(0,) * g.ndim].set(v), bad)
        new, after = run(params, state, bad)
        where = f"{what}, {value}"
        assert_same_bits(new, params, f"{where}: the parameters")
        pairs = list(zip(guarded(after), guarded(state), strict=True))
        for now, before in pairs:
            assert_same_bits(now.inner_state, before.inner_state, f"{where}: the state")
        total = sum(int(now.skipped) - int(before.skipped) for now, before in pairs)
        assert total >= 1, f"{where}: it is not counted"


def check(*names: str) -> str:
    """Raises AssertionError where something is not as it has to be; else what it is.

    Returns:
      "=" where the two ways are the same bits, "~" where they are within `TOLERANCE`.
    """
    wrappers = [WRAPPERS[name] for name in names]
    every = math.prod(wrapper.every for wrapper in wrappers)
    is_narrow = any(wrapper.is_narrow for wrapper in wrappers)
    dtype = jnp.bfloat16 if is_narrow else jnp.float32
    scale = SCALE if "loss_scaling" in names else 1.0
    tolerance = TOLERANCE[jnp.dtype(dtype).name]
    tx, params, traces = make(*names), make_params(dtype), []
    ways, start = _compiled(tx, traces), (params, tx.init(params))
    is_guarded = bool({*names} & {"guard", "loss_scaling"})
    ends = {}
    for way, run in ways.items():
        carry = start
        for call in range(STEPS * every):
            before = carry
            carry = run(*carry, gradient(params, call // every, scale))
            assert form(carry) == form(start), f"{way} changes the state's form"
        # In the place of the last call, where a window of gradients ends, and at first.
        if is_guarded:
            _check_bad(run, before, scale, f"{way}, last call")
            if every == 1:
                _check_bad(run, start, scale, f"{way}, first call")
        ends[way] = carry
    assert traces == ["update", "step"], "compiled more than once"
    got, want = ends["step"], ends["update"]
    assert_close(got[0], want[0], tolerance, "fused against update")
    for a, b in zip(*(jax.tree.leaves(end[1]) for end in (got, want)), strict=True):
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            assert np.array_equal(a, b) or a.dtype == jnp.int16, "counts"
    if all(wrapper.is_neutral for wrapper in wrappers):
        assert_close(got[0], _bare(dtype), tolerance, "against the bare optimizer")
    moved = jax.tree.map(lambda p, q: bool(jnp.any(p != q)), got[0], params)
    assert moved["a"] == moved["b"] == {"w": True, "v": "freeze" not in names}
    count = unboxed(adamx.read(got[1]).count)
    assert count == STEPS or "stages" in names, f"count {count}"
    same = zip(jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True)
    is_same = all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in same)
    return "=" if is_same else "~"


def _bare(dtype: Any) -> Any:
    """What AdamW alone comes to; of bfloat16, with a master."""
    tx = make_adamw(LR)
    tx = adamx.master_weights(tx) if dtype == jnp.bfloat16 else tx
    params, step = make_params(dtype), jax.jit(adamx.fused(tx).step)
    state = tx.init(params)
    for seed in range(STEPS):
        params, state = step(gradient(params, seed), state, params)
    return params


# -------------------------------------------------------------------------- the table


def refusal(outer: str, inner: str) -> str | None:
    """The message with which a pair is refused, by its factory or by init; or None."""
    try:
        jax.eval_shape(make(outer, inner).init, make_params(jnp.bfloat16))
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def markdown(results: dict[tuple[str, str], str]) -> str:
    """The table, from "=", "~" or the message of a refusal by pair."""
    outers = list(dict.fromkeys(outer for outer, _ in results))
    numbers: dict[str, int] = {}
    for result in results.values():
        if len(result) > 1:
            numbers.setdefault(result, len(numbers) + 1)

    def cell(outer: str, inner: str) -> str:
        result = results[outer, inner]
        return f"no [{numbers[result]}]" if result in numbers else result

    lines = ["# Wrappers in wrappers", ""]
    lines += ["outer(inner(adamw)): the outer one by row, the inner one by column."]
    lines += ["Written by `python -m tests.wrapper_pairs --write`.", ""]
    lines += ["| | " + " | ".join(f"`{name}`" for name in WRAPPERS) + " |"]
    lines += ["| --- |" + " :-: |" * len(WRAPPERS)]
    for outer in outers:
        cells = (cell(outer, inner) for inner in WRAPPERS)
        lines += [f"| **`{outer}`** | " + " | ".join(cells) + " |"]
    works = sum(len(result) == 1 for result in results.values())
    same = sum(result == "=" for result in results.values())
    lines += [
        "",
        f"{works} of {len(results)} pairs work, {same} of them to the same bits;",
    ]
    lines += ["the others are refused.", ""]
    lines += ["- `=` three steps through `fused` are those through `update` and"]
    lines += ["  `apply_updates`, to the last bit of the parameters, both compiled."]
    lines += [f"- `~` to {TOLERANCE['float32']:g}; with bfloat16 parameters to two"]
    lines += ["  last places. A compiler rounds p + a * b once where it fuses both."]
    lines += ["- `no` refused, at construction or by `init`:", ""]
    lines += [f"{number}. {message}" for message, number in numbers.items()]
    return "\n".join(lines) + "\n"


def main(flags: list[str]) -> None:
    results = {}
    for outer, inner in pairs():
        message = refusal(outer, inner)
        results[outer, inner] = message or check(outer, inner)
        print(f"{label((outer, inner))}: {results[outer, inner]}", flush=True)
    text = markdown(results)
    print(text)
    if "--write" in flags:
        RESULT.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
