"""A battery for random bits: each statistic as a number of standard deviations.

`battery(words)` looks at one sequence of uint32. Sequences to look at are what a
counter generator is asked for: elements of one array, one element over steps, streams
or keys, and the XOR of two arrays whose step, stream or key are neighbours.
"""

import statistics
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

# A normal deviate exceeds it once in 5e8 draws; a battery draws some 10,000.
LIMIT = 6.0
LAGS = (1, 2, 3, 8, 64, 255, 1024)

Bits = Callable[..., jax.Array]  # (key, step, stream, shape) -> uint32


def _signs(words: np.ndarray) -> np.ndarray:
    """(n, 32) of +-1, the lowest bit first."""
    octets = np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(-1, 4)
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    return bits.astype(np.float32) * 2 - 1


def _chi_square(values: np.ndarray, cells: int) -> float:
    counts = np.bincount(values, minlength=cells)
    expected = values.size / cells
    return float(
        (np.sum((counts - expected) ** 2) / expected - cells) / (2 * cells) ** 0.5
    )


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of products of +-1 over their standard deviation, every bit with every."""
    total = np.zeros((a.shape[1], b.shape[1]))
    for start in range(0, len(a), 1 << 16):  # exact: integers below 2^24 in float32
        total += a[start : start + (1 << 16)].T @ b[start : start + (1 << 16)]
    return total / len(a) ** 0.5


def _largest_of_exponentials(values: np.ndarray) -> float:
    """The largest of many with mean 1, as the normal deviate that is as rare."""
    p = -np.expm1(values.size * np.log1p(-np.exp(-min(values.max(), 700.0))))
    return float(statistics.NormalDist().inv_cdf(min(max(1 - p, 1e-12), 1 - 1e-12)))


def battery(words: np.ndarray) -> dict[str, float]:
    """The largest |z| of each kind of statistic of a sequence of uint32."""
    words = np.asarray(words, np.uint32).ravel()
    n = words.size
    signs = _signs(words)
    worst = {
        "bit means": float(np.max(np.abs(signs.sum(0, dtype=np.float64)))) / n**0.5
    }
    pairs = _products(signs, signs)
    worst["pairs of bits"] = float(np.max(np.abs(pairs - np.diag(np.diag(pairs)))))
    lagged = [_products(signs[:-lag], signs[lag:]) for lag in LAGS if lag < n // 4]
    worst["serial correlation"] = float(np.max(np.abs(lagged)))
    runs = np.sum(signs[1:] != signs[:-1], axis=0)
    worst["runs"] = float(np.max(np.abs(runs - (n - 1) / 2)) / ((n - 1) / 4) ** 0.5)
    octets = [_chi_square((words >> s) & 255, 256) for s in (0, 8, 16, 24)]
    worst["bytes"] = max(map(abs, octets))
    joined = ((words[1:] >> 24) << 8) | (words[:-1] >> 24)  # two neighbours' high bytes
    halves = (words >> 16, words & 0xFFFF, joined)
    worst["16 bits"] = max(abs(_chi_square(half, 1 << 16)) for half in halves)
    spectrum = [np.abs(np.fft.rfft(signs[:, bit])[1:-1]) ** 2 for bit in (0, 16, 31)]
    worst["spectrum"] = _largest_of_exponentials(np.concatenate(spectrum) / n)
    return worst


def sequences(bits: Bits, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """What a generator is asked for, `size` words of each."""
    key = jnp.array([0x3C6EF372, 0xA54FF53A], jnp.uint32)
    one = jax.jit(lambda key, step, stream: bits(key, step, stream, (size,)))
    base = np.asarray(one(key, 0, 0))
    yield "elements", base
    yield "elements of key 0", np.asarray(one(jnp.zeros(2, jnp.uint32), 0, 0))
    yield "neighbouring steps", base ^ np.asarray(one(key, 1, 0))
    yield "distant steps", base ^ np.asarray(one(key, 1 << 16, 0))
    yield "neighbouring streams", base ^ np.asarray(one(key, 0, 1))
    yield "step for stream", np.asarray(one(key, 0, 3)) ^ np.asarray(one(key, 3, 0))
    for i in range(2):
        other = key.at[i].add(1)
        yield f"neighbouring keys, word {i}", base ^ np.asarray(one(other, 0, 0))
    every = jnp.arange(size, dtype=jnp.uint32)
    first = lambda key, step, stream: bits(key, step, stream, (1,))[0]  # noqa: E731
    last = lambda key, step, stream: bits(key, step, stream, (3, 5))[2, 4]  # noqa: E731
    keys = jnp.stack([jnp.zeros_like(every), every], axis=1)
    for name, f in (("the first element", first), ("another element", last)):
        runs = {
            "steps": jax.vmap(f, (None, 0, None))(key, every, 0),
            "streams": jax.vmap(f, (None, None, 0))(key, 0, every),
            "keys": jax.vmap(f, (0, None, None))(keys, 0, 0),
        }
        for over, words in runs.items():
            yield f"{name} over {over}", np.asarray(words)
    rows = size // 64
    few = lambda step: bits(key, step, 0, (64,))  # noqa: E731
    yield "elements by steps", np.asarray(jax.vmap(few)(every[:rows])).ravel()
    yield "steps by elements", np.asarray(jax.vmap(few)(every[:rows])).T.ravel()


def judge(bits: Bits, size: int) -> dict[tuple[str, str], float]:
    """All statistics of all sequences."""
    return {
        (name, kind): z
        for name, words in sequences(bits, size)
        for kind, z in battery(words).items()
    }


def avalanche(bits: Bits, size: int = 1 << 14) -> float:
    """The largest |z| of how often an output bit turns with an input bit: every 2nd."""
    one = lambda words: bits(words[:2], words[2], words[3], (1,))[0]  # noqa: E731
    run = jax.jit(jax.vmap(one))
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 1 << 32, (size, 4), dtype=np.uint32)
    base = np.asarray(run(inputs))
    worst = 0.0
    for word in range(4):
        for bit in range(32):
            turned = inputs.copy()
            turned[:, word] ^= np.uint32(1 << bit)
            change = _signs(base ^ np.asarray(run(turned))).sum(0, dtype=np.float64)
            worst = max(worst, float(np.max(np.abs(change))) / size**0.5)
    return worst
