"""NumPy transliteration of the ways to keep what 16-bit parameters do not hold.

Every step in the precision that the definition states; bit for bit where it is float32.
"""

import ml_dtypes
import numpy as np

F32 = np.float32


def run(kind, p, updates, dtype=ml_dtypes.bfloat16):
    """Parameters, masters, what is stored, and misses after each of the updates.

    Args:
      kind: "float32", "split" or "rest".
      p: the parameters, in `dtype`.
      updates: float32, one row for each step.
      dtype: of the parameters.

    Yields:
      parameter, new master, stored, which elements miss their target.
    """
    p = np.asarray(p, dtype)
    stored = p.astype(F32) if kind == "float32" else np.zeros(p.shape)
    for u in updates:
        new = (_load(kind, p, stored) + u).astype(F32)
        target = new.astype(dtype)
        move = (target.astype(F32) - p.astype(F32)).astype(F32)
        p = (p.astype(F32) + move).astype(dtype)
        stored = _store(kind, new, target)
        yield p, new, stored, p != target


def _load(kind, p, stored):
    if kind == "float32":
        return stored
    if kind == "rest":
        return p.astype(F32) + stored.astype(F32)
    bits = p.astype(F32).view(np.int32).astype(np.int64) + stored.astype(np.int64)
    master = bits.astype(np.uint64).astype(np.uint32).view(F32)
    return np.where(p == 0, F32(0), master)


def _store(kind, new, target):
    if kind == "float32":
        return new
    if kind == "rest":
        exact = new - target.astype(F32)
        rest = exact.astype(ml_dtypes.bfloat16)
        # Not up to a power of two, which may be half a unit of p.
        is_power = np.frexp(np.abs(rest.astype(F32)))[0] == 0.5
        is_up = is_power & (np.abs(rest.astype(F32)) > np.abs(exact))
        below = np.nextafter(rest, ml_dtypes.bfloat16(0))
        return np.where(is_up, below, rest)
    whole = new.view(np.int32).astype(np.int64)
    low = whole - target.astype(F32).view(np.int32).astype(np.int64)
    assert np.all(np.abs(low[target != 0]) <= 2**15)
    return np.where(target == 0, 0, np.minimum(low, 2**15 - 1)).astype(np.int16)


def wild_updates(p, steps, largest, seed=0):
    """Updates of sizes from 1e-12 to `largest`; some undo all but 1e-3 to 1e-9 of p."""
    rng = np.random.default_rng(seed)
    master, updates = p.astype(F32), []
    for _ in range(steps):
        u = rng.standard_normal(p.shape) * 10.0 ** rng.uniform(-8, 0, p.shape) * largest
        u = np.where(np.abs(master + u) > largest, -master / 2, u)
        rest = 10.0 ** -rng.uniform(3, 9, p.shape)
        u = np.where(rng.random(p.shape) < 0.02, -master * (1 - rest), u).astype(F32)
        master = (master + u).astype(F32)
        updates.append(u)
    return np.stack(updates)
