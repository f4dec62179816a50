"""Schedules: corners exact, values against float64, and every way of calling them."""

import builtins
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamx import schedules as s
from tests import reference_schedules
from tests.helpers import enable_x64

LAST = 2**31 - 1
PEAK = 3e-4


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def _row(name, *args, **kwargs):
    label = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
    return pytest.param(name, args, kwargs, id=f"{name}({label})")


# Every mode, short and as long as int32 allows; the first number but one is the peak.
ROWS = [
    _row("constant", PEAK),
    _row("linear", 0.0, PEAK, 1000),
    _row("linear", PEAK, 1e-5, 1000, begin=100),
    _row("linear", PEAK, 0.0, LAST, begin=LAST - 1000),
    _row("linear", PEAK, 1e-4, LAST),
    _row("warmup_cosine", PEAK, 1000, 100),
    _row("warmup_cosine", PEAK, 1000),
    _row("warmup_cosine", PEAK, 100_000, 2000, 3e-5, start=1e-6),
    _row("warmup_cosine", PEAK, LAST, LAST - 1000),
    _row("warmup_cosine", PEAK, LAST, 10),
    _row("warmup_linear", PEAK, 777, 77, 1e-6, start=1e-5),
    _row("warmup_linear", PEAK, 1000, 999),
    _row("warmup_linear", PEAK, LAST, LAST // 3),
    _row("warmup_stable_decay", PEAK, 1000, 100, 300),
    _row("warmup_stable_decay", PEAK, 1000, 0, 1000, 1e-5, shape="cosine"),
    _row("warmup_stable_decay", PEAK, 1000, 500, 500, shape="sqrt", start=1e-5),
    _row("warmup_stable_decay", PEAK, LAST, 10**9, 1000, shape="linear"),
    _row("warmup_stable_decay", PEAK, LAST, 1000, 10**9 + 7, shape="cosine"),
    _row("warmup_stable_decay", PEAK, LAST, 1000, 10**9 + 7, shape="sqrt"),
    _row("inverse_sqrt", PEAK, 4000),
    _row("inverse_sqrt", PEAK, 1, start=1e-4),
    _row("inverse_sqrt", PEAK, LAST - 3),
    _row("step_decay", PEAK, 30),
    _row("step_decay", PEAK, 1, 0.999999),
    _row("step_decay", PEAK, 2**30, 0.5),
    _row("step_decay", PEAK, factor=0.3, boundaries=[1, 50, 99, 2**30, LAST]),
    _row("step_decay", PEAK, factor=1.0, boundaries=[7]),
    _row("exponential_decay", PEAK, 0.96, 100),
    _row("exponential_decay", PEAK, 0.96, 100, staircase=True, begin=50, end=1e-4),
    _row("exponential_decay", PEAK, 1 - 1e-9, 1),
    _row("exponential_decay", PEAK, 1e-3, LAST, begin=7),
    _row("exponential_decay", PEAK, 1.0, 10),
    _row("cyclical", 1e-5, PEAK, 200),
    _row("cyclical", 1e-5, PEAK, 7, mode="triangular2"),
    _row("cyclical", 1e-5, PEAK, 1000, mode="exp_range", gamma=0.9999),
    _row("cyclical", 0.0, PEAK, 1, mode="triangular2"),
    _row("cyclical", 1e-5, PEAK, LAST),
    _row("one_cycle", PEAK, 1000, warmup=300),
    _row("one_cycle", PEAK, 1000, warmup=0, shape="linear", end_factor=10.0),
    _row("one_cycle", PEAK, LAST, warmup=LAST - 1000, start_factor=2.0),
    _row("cosine_restarts", PEAK, 100),
    _row("cosine_restarts", PEAK, 1),
    _row("cosine_restarts", PEAK, 10, multiplier=2, decay=0.5, end=1e-5),
    _row("cosine_restarts", PEAK, 3, multiplier=3, decay=0.9),
    _row("cosine_restarts", PEAK, 1000, decay=0.7, end=1e-4),
    _row("cosine_restarts", PEAK, 2**30 + 1, multiplier=2),
    _row("cosine_restarts", PEAK, 1000, multiplier=10**6),
    _row("cosine_restarts", PEAK, LAST, multiplier=5),
]
ONE_OF_EACH = list({row.values[0]: row for row in reversed(ROWS)}.values())
NAMES = [row.values[0] for row in ONE_OF_EACH]


def _make(name, args, kwargs):
    return getattr(s, name)(*args, **kwargs)


def _steps(args, kwargs):
    """The first steps, the neighbours of every number given, random and last ones."""
    rng = np.random.default_rng(0)
    given = [*args, *kwargs.values(), *kwargs.get("boundaries", [])]
    corners = [int(v) for v in given if not isinstance(v, (str, list)) and v >= 1]
    corners += [2**24, 2**30, LAST, *(2 * c for c in corners)]
    corners += [LAST - c for c in corners]
    near = [c + d for c in corners for d in (-2, -1, 0, 1, 2)]
    spread = [*np.arange(64), *rng.integers(0, LAST, 300)]
    spread += [*rng.integers(0, 2000, 200), *(2.0 ** rng.uniform(0, 31, 300))]
    return np.unique(np.clip(np.array([*near, *spread], np.int64), 0, LAST))


def _values(schedule, steps):
    return np.asarray(jax.jit(schedule)(jnp.asarray(steps, jnp.int32)), np.float64)


# ------------------------------------------------------------------------- values


def test_the_table_has_all_schedules():
    public = {key for key, value in vars(s).items() if inspect.isfunction(value)}
    assert set(NAMES) == public - {"plot"}
    others = vars(s).keys() - public
    assert all(key[0] == "_" for key in others), "something else is public"
    assert len(public) == 12


@functools.cache
def _values_of_rows(name):
    """What all rows of one schedule return, compiled together to save time."""
    rows = [row for row in ROWS if row.values[0] == name]
    steps = [jnp.asarray(_steps(*row.values[1:]), jnp.int32) for row in rows]

    @jax.jit
    def compute(steps):
        made = [_make(*row.values) for row in rows]
        return [schedule(n) for schedule, n in zip(made, steps, strict=True)]

    return {row.id: got for row, got in zip(rows, compute(steps), strict=True)}


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
def test_value_is_the_float64_reference(row):
    name, args, kwargs = row.values
    want = getattr(reference_schedules, name)(_steps(args, kwargs), *args, **kwargs)
    got = np.asarray(_values_of_rows(name)[row.id], np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * PEAK)


# Quickly, of each third row, every third.
@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        pytest.param(*row.values, id=row.id, marks=pytest.mark.slow if i % 3 else [])
        for i, row in enumerate(ROWS[1::3])
    ],
)
def test_value_under_x64(name, args, kwargs):
    steps = _steps(args, kwargs)
    want = getattr(reference_schedules, name)(steps, *args, **kwargs)
    with enable_x64():
        got = jax.jit(_make(name, args, kwargs))(steps)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=1e-12 * PEAK)
    assert _make(name, args, kwargs)(3).dtype == jnp.float32


RELATIVE = [
    (
        s.warmup_cosine(1.0, LAST, 10),
        lambda n: np.sin(np.pi / 2 * n / (LAST - 10)) ** 2,
    ),
    (s.warmup_linear(1.0, LAST), lambda n: n / LAST),
    (
        s.warmup_stable_decay(1.0, LAST, decay=10**6, shape="sqrt"),
        lambda n: -np.expm1(0.5 * np.log1p(-n / 10**6)),
    ),
]


@pytest.mark.parametrize(("schedule", "remaining"), RELATIVE)
def test_the_last_steps_keep_their_digits(schedule, remaining):
    n = np.array([1, 2, 3, 10, 1000, 10**5])
    want = remaining(n)
    np.testing.assert_allclose(_values(schedule, LAST - n), want, rtol=1e-6)


CORNERS = [
    (s.constant(0.1), {0: 0.1, 1: 0.1, LAST: 0.1}),
    (s.linear(0.1, 0.3, 70), {0: 0.1, 70: 0.3, 71: 0.3, LAST: 0.3}),
    (s.linear(0.1, 0.3, 70, begin=9), {0: 0.1, 9: 0.1, 70: 0.3, LAST: 0.3}),
    (s.linear(0.1, 0.3, 70, begin=0.5), {35: 0.1, 70: 0.3}),
    (
        s.warmup_cosine(0.3, 70, 7, 0.1, start=0.01),
        {0: 0.01, 7: 0.3, 70: 0.1, 71: 0.1, LAST: 0.1},
    ),
    (s.warmup_cosine(0.3, 70), {0: 0.3, 70: 0.0, LAST: 0.0}),
    (s.warmup_cosine(0.3, 70, 0.1), {0: 0.0, 7: 0.3, 70: 0.0}),
    (s.warmup_cosine(0.3, LAST, LAST - 1), {LAST - 1: 0.3, LAST: 0.0}),
    (s.warmup_linear(0.3, 75, 0.1, 0.3), {8: 0.3, 30: 0.3, 41: 0.3, 75: 0.3}),
    (s.warmup_linear(0.3, 70, 7.0, 0.1), {0: 0.0, 7: 0.3, 70: 0.1}),
    (s.warmup_linear(0.3, 1), {0: 0.3, 1: 0.0}),
    (
        s.warmup_stable_decay(0.3, 70, 7, 20, 0.1, start=0.01, shape="sqrt"),
        {0: 0.01, 7: 0.3, 8: 0.3, 33: 0.3, 50: 0.3, 70: 0.1, LAST: 0.1},
    ),
    (s.warmup_stable_decay(0.3, 70, decay=0.1), {0: 0.3, 63: 0.3, 70: 0.0}),
    (
        s.warmup_stable_decay(0.3, LAST, 0.5, 0.5, shape="cosine"),
        {2**30: 0.3, LAST: 0.0},
    ),
    (s.inverse_sqrt(0.3, 7, start=0.1), {0: 0.1, 7: 0.3, 28: 0.15}),
    (s.step_decay(0.3, 7), {0: 0.3, 6: 0.3}),
    (s.step_decay(0.3, factor=0.5, boundaries=[7, 9]), {6: 0.3, 7: 0.15, 9: 0.075}),
    (s.exponential_decay(0.3, 0.9, 7, begin=3, end=0.1), {0: 0.3, 3: 0.3, LAST: 0.1}),
    (s.exponential_decay(0.3, 0.5, 7, staircase=True), {0: 0.3, 6: 0.3, 7: 0.15}),
    (s.cyclical(0.1, 0.3, 7), {0: 0.1, 7: 0.3, 14: 0.1, 21: 0.3, 28: 0.1}),
    (s.cyclical(0.0, 0.3, 7, mode="triangular2"), {7: 0.3, 21: 0.15, 35: 0.075}),
    (s.cyclical(0.1, 0.3, 7, mode="exp_range", gamma=0.9), {0: 0.1, 14: 0.1}),
    (
        s.one_cycle(0.3, 70, start_factor=4, end_factor=2),
        {0: 0.075, 21: 0.3, 70: 0.0375, LAST: 0.0375},
    ),
    (s.one_cycle(0.3, 70, warmup=7), {0: 0.3 / 25, 7: 0.3, 70: 0.3 / 25e4}),
    (s.cosine_restarts(0.3, 7, end=0.1), {0: 0.3, 7: 0.3, 14: 0.3, 7 * 10**8: 0.3}),
    (s.cosine_restarts(0.3, 7, multiplier=2), {0: 0.3, 7: 0.3, 21: 0.3, 49: 0.3}),
    (s.cosine_restarts(0.4, 7, multiplier=2, decay=0.5), {7: 0.2, 21: 0.1}),
]


@functools.cache
def _compiled_corners(step):
    """The rates of all schedules in the table, from a single compiled function."""
    return [np.asarray(rate) for rate in _all_corners(step)]


@jax.jit
def _all_corners(step):
    return [schedule(step) for schedule, _ in CORNERS]


@pytest.mark.parametrize("index", range(len(CORNERS)))
def test_corners_are_exact(index):
    schedule, corners = CORNERS[index]
    for step, rate in corners.items():
        assert schedule(step) == np.float32(rate), step
        assert _compiled_corners(step)[index] == np.float32(rate), step


def test_drops_come_at_their_step_and_not_before():
    drops = [
        (s.step_decay(1.0, 30), 30),
        (s.step_decay(1.0, boundaries=[30]), 30),
        (s.exponential_decay(1.0, 0.1, 30, staircase=True, begin=5), 35),
        (s.cosine_restarts(1.0, 30, decay=0.1), 30),
    ]
    for schedule, step in drops:
        np.testing.assert_allclose(float(schedule(step)), 0.1, rtol=3e-7)
        np.testing.assert_array_less(float(schedule(step + 29)), 0.1000001)
    for schedule, step in drops[:3]:
        assert schedule(step - 1) == 1.0


def test_shares_are_rounded_to_the_nearest_step():
    for share, total, steps in [
        (0.1, 14, 1),
        (0.1, 15, 2),
        (0.29, 100, 29),
        (0.0, 9, 0),
    ]:
        got = s.warmup_linear(1.0, total, share)
        assert got(steps) == 1.0
        assert got(steps + 1) < 1.0
        assert not steps or got(0) == 0


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.35, 0.5, 0.7])
@pytest.mark.parametrize("total", [2, 5, 7, 45, 101, 10**6 + 5, LAST])
def test_shares_that_add_up_to_one_fit(warmup, total):
    if total * (1 - warmup) > 0.5:
        assert s.warmup_stable_decay(1.0, total, warmup, 1 - warmup)(total) == 0.0


# ----------------------------------------------------------------------- neighbours

STEPS = np.arange(0, 130, dtype=np.int32)
TWINS = [
    (s.constant(0.1), optax.constant_schedule(0.1)),
    (s.linear(0.1, 0.01, 100), optax.linear_schedule(0.1, 0.01, 100)),
    (s.linear(0.1, 0.0, 100, begin=40), optax.linear_schedule(0.1, 0.0, 60, 40)),
    (s.warmup_cosine(0.1, 100), optax.cosine_decay_schedule(0.1, 100)),
    (
        s.warmup_cosine(0.1, 100, 20, 0.01, start=0.001),
        optax.warmup_cosine_decay_schedule(0.001, 0.1, 20, 100, 0.01),
    ),
    (
        s.exponential_decay(0.1, 0.5, 30, begin=10, end=0.02),
        optax.exponential_decay(0.1, 30, 0.5, 10, end_value=0.02),
    ),
    (
        s.exponential_decay(0.1, 0.5, 30, staircase=True, begin=10),
        optax.exponential_decay(0.1, 30, 0.5, 10, staircase=True),
    ),
    (
        s.step_decay(0.1, factor=0.3, boundaries=[30, 60]),
        optax.piecewise_constant_schedule(0.1, {30: 0.3, 60: 0.3}),
    ),
    (s.one_cycle(0.1, 100), optax.cosine_onecycle_schedule(100, 0.1)),
    (
        s.cosine_restarts(0.1, 30, end=0.01),
        optax.join_schedules(
            [optax.cosine_decay_schedule(0.1, 30, 0.1)] * 5, [30, 60, 90, 120]
        ),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), TWINS)
def test_value_is_that_of_optax(ours, theirs):
    @jax.jit
    def both(steps):
        got = ours(steps)
        with jax.numpy_dtype_promotion("standard"):  # Optax's own arithmetic needs it
            return got, jax.vmap(theirs)(steps)

    got, want = both(jnp.asarray(STEPS))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * 0.1)


def _torch_rates(make_scheduler, steps, lr=0.1):
    torch = pytest.importorskip("torch", reason="pip install 'adamx[torch]'")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make_scheduler(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


TORCH = (
    [
        (
            s.one_cycle(0.1, 99, warmup=29, shape=ours),
            lambda sched, opt, theirs=theirs: sched.OneCycleLR(
                opt, 0.1, total_steps=100, pct_start=0.3, anneal_strategy=theirs
            ),
            99,
        )
        for ours, theirs in [("cosine", "cos"), ("linear", "linear")]
    ]
    + [
        (s.step_decay(0.1, 30), lambda sched, opt: sched.StepLR(opt, 30), 100),
        (
            s.step_decay(0.1, boundaries=[30, 80]),
            lambda sched, opt: sched.MultiStepLR(opt, [30, 80]),
            100,
        ),
        (
            s.cosine_restarts(0.1, 10, multiplier=2, end=0.01),
            lambda sched, opt: sched.CosineAnnealingWarmRestarts(opt, 10, 2, 0.01),
            100,
        ),
    ]
    + [
        (
            s.cyclical(0.01, 0.1, 10, mode=mode, gamma=gamma),
            lambda sched, opt, mode=mode, gamma=gamma: sched.CyclicLR(
                opt, 0.01, 0.1, 10, mode=mode, gamma=gamma, cycle_momentum=False
            ),
            100,
        )
        for mode, gamma in [
            ("triangular", 1.0),
            ("triangular2", 1.0),
            ("exp_range", 0.99),
        ]
    ]
)


@pytest.mark.parametrize(("ours", "theirs", "steps"), TORCH)
def test_value_is_that_of_pytorch(ours, theirs, steps):
    want = _torch_rates(theirs, steps)
    np.testing.assert_allclose(_values(ours, np.arange(steps)), want, atol=1e-6 * 0.1)


# --------------------------------------------------------------- ways of calling it


KINDS = (np.int64, np.int32, np.uint64, np.float64, jnp.int32, jnp.uint32)


FEW = ("cosine_restarts", "step_decay", "warmup_cosine", "constant")


# Quickly: one with restarts, of steps, with an end, and a constant.
@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        pytest.param(
            *row.values,
            id=row.id,
            marks=[] if row.values[0] in FEW else pytest.mark.slow,
        )
        for row in ONE_OF_EACH
    ],
)
def test_every_kind_of_step_gives_the_same_rate(name, args, kwargs):
    schedule = _make(name, args, kwargs)
    steps = [0, 57, 100, 1000]
    want = np.stack([schedule(step) for step in steps])
    for kind in KINDS:
        got = [schedule(kind(step)) for step in steps]
        for rate in got:
            assert isinstance(rate, jax.Array)
            assert rate.shape == (), kind
            assert rate.dtype == jnp.float32, kind
            assert not rate.weak_type, kind
        np.testing.assert_allclose(np.stack(got), want, rtol=1e-6, atol=1e-9 * PEAK)

    @jax.jit
    def traced(steps):
        square = schedule(steps.reshape(2, 2)).reshape(4)
        scanned = jax.lax.scan(lambda _, step: (None, schedule(step)), None, steps)[1]
        return square, jax.vmap(schedule)(steps), scanned

    in_jax = jnp.array(steps, jnp.int32)
    in_numpy = np.array(steps, np.int64)
    for got in (schedule(in_jax), schedule(in_numpy), *traced(in_jax)):
        assert got.dtype == jnp.float32
        assert not got.weak_type
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9 * PEAK)


@pytest.mark.parametrize(("name", "args", "kwargs"), ONE_OF_EACH)
def test_steps_outside_int32_are_held_to_it(name, args, kwargs):
    schedule = _make(name, args, kwargs)
    first, last = np.asarray(schedule(0)), np.asarray(schedule(LAST))
    for step in (-1, -(2**31), -(2**70), np.int64(-(2**40)), jnp.int32(-5), -0.5):
        assert schedule(step) == first, step
    for step in (2**31, 2**70, np.int64(2**40), np.uint64(2**63), jnp.uint32(2**31)):
        assert schedule(step) == last, step
    # Four steps: the operations on this shape are compiled by the test above.
    beyond = schedule(np.array([-(2**40), -1, 2**31, 2**40]))
    np.testing.assert_array_equal(beyond, [first, first, last, last])
    assert schedule(jnp.int8(100)) == schedule(100)


def test_a_float_step_is_used_as_it_is():
    assert s.linear(0.0, 1.0, 10)(2.5) == 0.25
    assert s.cyclical(0.0, 1.0, 2)(jnp.float32(2.5)) == 0.75
    assert s.warmup_linear(1.0, 10, 5)(np.float64(2.5)) == 0.5
    assert s.exponential_decay(1.0, 0.25, 1)(0.5) == 0.5


@pytest.mark.parametrize(("name", "args", "kwargs"), ONE_OF_EACH)
def test_rates_may_be_traced(name, args, kwargs):
    index = 1 if name in ("linear", "cyclical") else 0
    steps = np.arange(0, 1200, 37)
    peaks = jnp.array([PEAK, 2e-3, 0.1])

    def with_peak(peak):
        return (*args[:index], peak, *args[index + 1 :])

    def rates(peak):
        return _make(name, with_peak(peak), kwargs)(steps)

    got = jax.jit(jax.vmap(rates))(peaks)
    assert got.dtype == jnp.float32
    for row, peak in zip(np.asarray(got), peaks, strict=True):
        reference = getattr(reference_schedules, name)
        want = reference(steps, *with_peak(float(peak)), **kwargs)
        np.testing.assert_allclose(row, want, rtol=0, atol=1e-6 * float(peak))
        at_37 = _make(name, with_peak(peak), kwargs)(37)  # a concrete array
        np.testing.assert_allclose(at_37, want[1], rtol=0, atol=1e-6 * float(peak))


FACTORS = [
    ("step_decay", lambda f: ((0.1, 10, f), {})),
    ("exponential_decay", lambda f: ((0.1, f, 10), {})),
    ("cyclical", lambda f: ((0.0, 0.1, 10), {"mode": "exp_range", "gamma": f})),
    ("cosine_restarts", lambda f: ((0.1, 10), {"decay": f})),
    ("one_cycle", lambda f: ((0.1, 1000), {"warmup": 300, "start_factor": 1 / f})),
]


@pytest.mark.parametrize(("name", "arguments"), FACTORS)
def test_factors_may_be_traced(name, arguments):
    steps = np.arange(0, 1000, 13)
    factors = np.array([0.5, 0.99, 0.99999, 1.0], np.float32)
    got = jax.jit(jax.vmap(lambda f: _make(name, *arguments(f))(steps)))(factors)
    for row, factor in zip(np.asarray(got), factors, strict=True):
        args, kwargs = arguments(float(factor))
        want = getattr(reference_schedules, name)(steps, *args, **kwargs)
        np.testing.assert_allclose(row, want, rtol=0, atol=1e-6 * 0.1)


def test_a_16_bit_rate_is_widened():
    schedule = s.warmup_cosine(jnp.bfloat16(0.5), 100)
    assert schedule(1).dtype == jnp.float32
    assert schedule(1) == s.warmup_cosine(0.5, 100)(1)
    assert s.one_cycle(jnp.bfloat16(0.5), 9)(0) == np.float32(0.5) / np.float32(25)


def test_a_new_step_does_not_recompile():
    schedules = {row.values[0]: _make(*row.values) for row in ONE_OF_EACH}
    traces = []

    @jax.jit
    def rates(step):
        traces.append(step)
        return {name: schedule(step) for name, schedule in schedules.items()}

    found = [rates(jnp.int32(step)) for step in (0, 1, 100, 5000, LAST)]
    assert len(traces) == 1
    for name in schedules:
        values = {float(rate[name]) for rate in found}
        assert len(values) > 1 or name == "constant", name


def test_it_is_a_learning_rate_for_optax():
    schedule = s.warmup_cosine(0.1, 10, 5)
    sgd, adam = optax.sgd(schedule), optax.adam(schedule)
    adam_step = jax.jit(adam.update)
    params = jnp.ones(3)
    with jax.numpy_dtype_promotion("standard"):
        state, adam_state = sgd.init(params), adam.init(params)
        for step in range(12):
            want = np.full(3, -np.asarray(schedule(step)))
            update, state = sgd.update(params, state)
            np.testing.assert_allclose(update, want, rtol=1e-7)
            update, adam_state = adam_step(params, adam_state)
            np.testing.assert_allclose(update, want, rtol=1e-4)


# ---------------------------------------------------------------------------- errors

BAD = [
    # arguments in each other's place
    (lambda: s.warmup_cosine(1000, 3e-4), ValueError, "`total_steps`.*0.0003.*swapped"),
    (lambda: s.warmup_linear(1000, 0.1), ValueError, "`total_steps`.*whole.*swapped"),
    (lambda: s.one_cycle(1000, 0.1), ValueError, "`total_steps`.*swapped"),
    (lambda: s.linear(1000, 0.1, 0.5), ValueError, "`total_steps`.*swapped"),
    (lambda: s.inverse_sqrt(4000, 1e-3), ValueError, "`warmup`.*swapped"),
    (lambda: s.step_decay(30, 0.1), ValueError, "`every`.*swapped"),
    (lambda: s.exponential_decay(0.1, 1000, 0.9), ValueError, r"`rate`.*\(?.*1000"),
    (lambda: s.cosine_restarts(100, 0.1), ValueError, "`first_period`.*swapped"),
    (lambda: s.cyclical(0.1, 0.01, 10), ValueError, "low <= high.*0.1.*0.01.*swapped"),
    # rates
    (lambda: s.constant(-0.1), ValueError, "`value`.*>= 0.*-0.1"),
    (lambda: s.constant(float("nan")), ValueError, "`value`.*finite.*nan"),
    (lambda: s.constant(True), TypeError, "`value`.*flag"),
    (lambda: s.constant("0.1"), TypeError, "`value`.*str"),
    (lambda: s.constant(jnp.ones(3)), ValueError, r"`value`.*\(3,\)"),
    (lambda: s.constant(s.constant(0.1)), TypeError, "`value`.*schedule.*number"),
    (lambda: s.linear(-1.0, 0.1, 10), ValueError, "`start`.*-1.0"),
    (lambda: s.linear(1.0, float("inf"), 10), ValueError, "`end`.*finite.*inf"),
    (lambda: s.warmup_cosine(None, 10), TypeError, "`peak`.*None"),
    (lambda: s.warmup_cosine(0.1, 10, start=-1), ValueError, "`start`.*-1"),
    (lambda: s.inverse_sqrt(jnp.float32(-0.5), 10), ValueError, "`peak`.*-0.5"),
    # steps
    (lambda: s.warmup_cosine(0.1, 0), ValueError, "`total_steps`.*>= 1.*0"),
    (lambda: s.warmup_cosine(0.1, 2**31), ValueError, "`total_steps`.*<= 2147483647"),
    (lambda: s.warmup_cosine(0.1, "10"), TypeError, "`total_steps`.*str"),
    (lambda: s.linear(0.1, 0.0, 10, begin=10), ValueError, r"`begin`.*< total_steps"),
    (lambda: s.exponential_decay(0.1, 0.5, 0), ValueError, "`decay_steps`.*>= 1"),
    (lambda: s.exponential_decay(0.1, 0.5, 9, begin=-1), ValueError, "`begin`.*>= 0"),
    (lambda: s.cyclical(0.1, 0.2, 2.5), ValueError, "`half_period`.*2.5"),
    (lambda: s.cosine_restarts(0.1, 0), ValueError, "`first_period`.*>= 1"),
    (
        lambda: s.cosine_restarts(0.1, 9, multiplier=1.5),
        ValueError,
        "`multiplier`.*1.5",
    ),
    (lambda: s.inverse_sqrt(0.1, 0), ValueError, "`warmup`.*>= 1"),
    # warm-up and decay
    (
        lambda: s.warmup_cosine(0.1, 10, 10),
        ValueError,
        r"`warmup`.*< total_steps \(10\)",
    ),
    (
        lambda: s.warmup_cosine(0.1, 10, 0.99),
        ValueError,
        r"`warmup`.*0.99 \(10 steps\)",
    ),
    (lambda: s.warmup_linear(0.1, 10, 2.5), ValueError, r"`warmup`.*2.5.*int"),
    (
        lambda: s.warmup_linear(0.1, 10, 1.0),
        ValueError,
        r"`warmup`.*\[0, 1\).*1.0.*int",
    ),
    (lambda: s.warmup_linear(0.1, 10, -0.1), ValueError, "`warmup`.*-0.1"),
    (lambda: s.warmup_linear(0.1, 10, float("nan")), ValueError, "`warmup`.*nan"),
    (lambda: s.warmup_linear(0.1, 10, float("inf")), ValueError, "`warmup`.*inf"),
    (lambda: s.warmup_linear(0.1, 10, -1), ValueError, "`warmup`.*>= 0.*-1"),
    (lambda: s.warmup_linear(0.1, 10, True), TypeError, "`warmup`.*True"),
    (lambda: s.warmup_linear(0.1, 10, None), TypeError, "`warmup`.*None"),
    (lambda: s.one_cycle(0.1, 10, warmup=11), ValueError, "`warmup`.*< total_steps"),
    (lambda: s.warmup_stable_decay(1, 10, decay=0), ValueError, "`decay`.*>= 1 step"),
    (lambda: s.warmup_stable_decay(1, 10, decay=1.5), ValueError, "`decay`.*1.5.*int"),
    (lambda: s.warmup_stable_decay(1, 10, 5, 6), ValueError, "warmup.*decay.*5 [+] 6"),
    (lambda: s.warmup_stable_decay(1, 10, shape="exp"), ValueError, "`shape`.*'sqrt'"),
    # factors, modes, flags
    (lambda: s.step_decay(0.1), ValueError, "one of `every` and `boundaries`"),
    (lambda: s.step_decay(0.1, 3, boundaries=[1]), ValueError, "`every` and `boundar"),
    (lambda: s.step_decay(0.1, boundaries=[3, 3]), ValueError, "`boundaries`.*rising"),
    (lambda: s.step_decay(0.1, boundaries=[]), ValueError, "`boundaries`.*rising"),
    (lambda: s.step_decay(0.1, boundaries=[1.5]), ValueError, "`boundaries`.*1.5"),
    (lambda: s.step_decay(0.1, boundaries={3: 0.1}), TypeError, "`boundaries`.*dict"),
    (lambda: s.step_decay(0.1, 3, 10.0), ValueError, r"`factor`.*\[0, 1\].*10.0"),
    (lambda: s.step_decay(0.1, 3, 0.0), ValueError, "`factor`.*> 0"),
    (lambda: s.exponential_decay(0.1, -0.5, 9), ValueError, "`rate`.*> 0.*-0.5"),
    (
        lambda: s.exponential_decay(0.1, 0.5, 9, end=1),
        ValueError,
        "end <= value.*end=1",
    ),
    (
        lambda: s.exponential_decay(0.1, 0.5, 9, staircase=1),
        TypeError,
        "`staircase`.*True or False",
    ),
    (lambda: s.cyclical(0.1, 1, 9, mode="sine"), ValueError, "`mode`.*'triangular2'"),
    (lambda: s.cyclical(0.1, 1, 9, gamma=0.9), ValueError, "`gamma`.*exp_range"),
    (
        lambda: s.cyclical(0.1, 1, 9, mode="exp_range", gamma=2),
        ValueError,
        "`gamma`.*2",
    ),
    (lambda: s.one_cycle(0.1, 9, shape="sqrt"), ValueError, "`shape`.*'cosine'"),
    (lambda: s.one_cycle(0.1, 9, start_factor=0.5), ValueError, "`start_factor`.*0.5"),
    (lambda: s.one_cycle(0.1, 9, end_factor=0), ValueError, "`end_factor`.*0"),
    (lambda: s.cosine_restarts(0.1, 9, end=0.2), ValueError, "end <= peak.*end=0.2"),
    (lambda: s.cosine_restarts(0.1, 9, decay=1.1), ValueError, "`decay`.*1.1"),
    (lambda: s.plot(0.1, 10), TypeError, "`schedule`.*function.*0.1"),
    (lambda: s.plot(s.constant(0.1), 0), ValueError, "`total_steps`.*>= 1"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_a_bad_argument_is_named(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert re.search(r"\bgot\b", str(caught.value))


def test_a_traced_step_count_is_named():
    with pytest.raises(TypeError, match=r"`total_steps`.*traced"):
        jax.jit(lambda n: s.warmup_cosine(0.1, n)(1))(10)
    with pytest.raises(TypeError, match=r"`warmup`.*traced"):
        jax.jit(lambda n: s.warmup_cosine(0.1, 10, n)(1))(0.1)


# ------------------------------------------------------------------------------ plot


@pytest.fixture
def plt():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_plot_draws_the_schedule(plt):
    schedule = s.warmup_cosine(0.1, 10**9, 0.1)
    ax = s.plot(schedule, 10**9, label="cosine")
    (line,) = ax.lines
    steps, rates = line.get_data()
    assert 900 <= len(steps) <= 1100
    assert (steps[0], steps[-1]) == (0, 10**9)
    np.testing.assert_array_equal(rates, schedule(np.asarray(steps)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "learning rate")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cosine"]

    assert s.plot(s.constant(0.5), 10**9, ax=ax) is ax
    assert len(ax.lines) == 2
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 0.5


def test_plot_shows_each_step_of_a_short_run_of_any_schedule(plt):
    ax = s.plot(optax.constant_schedule(0.1), 7)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(8))
    assert ax.get_legend() is None


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=re.escape("pip install 'adamx[plots]'")):
        s.plot(s.constant(0.1), 10)
