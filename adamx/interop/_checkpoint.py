"""Checkpoints in files: Orbax writes the arrays, a manifest says what must be there.

    directory/
      120/
        arrays/...        Orbax: the arrays by name, sharded as they are
        manifest.json     written last: every file with its size and SHA-256

Orbax makes a checkpoint appear whole or not at all, and has no checksum over it: a file
that was cut or has a flipped bit afterwards may be restored as other numbers. Here a
folder without a manifest is not a checkpoint, and one whose files are not those of its
manifest is refused.
"""

import os
import pathlib
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks, _tree
from adamx._types import PyTree
from adamx.interop._manifest import (
    ARRAYS,
    MANIFEST,
    CheckpointError,
    steps,
    verify,
    write_manifest,
)
from adamx.interop._names import form

# Orbax refuses to save nothing.
_EMPTY, _NONE = "(nothing)", np.zeros(1, np.int8)


def save(
    directory: str | os.PathLike[str],
    step: int,
    tree: PyTree,
    *,
    keep: int | None = None,
) -> pathlib.Path:
    """Writes a tree of arrays as the checkpoint of a step; whole, or not at all.

        save("run", step, {"params": params, "state": to_flat(state), "step": step})

    What it adds to Orbax, which writes the arrays: checksums of all files, empty arrays
    and random keys. `to_flat` is for a run whose chain may change (`migrate`); the
    state itself will do where it does not.

    Args:
      directory: of all checkpoints of a run; it is made.
      step: >= 0, the checkpoint's name. One that was cut short by a kill is replaced.
      tree: of arrays and numbers; sharded as they are.
      keep: > 0, how many of the last checkpoints stay; None: all.

    Returns:
      The checkpoint's folder. When it returns, all is on disk.

    Raises:
      ImportError: Orbax is not there.
      ValueError: there is a checkpoint of this step; two arrays of one name.
      TypeError, ValueError: an argument out of its range, a leaf that is no array.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     folder = save(directory, 3, {"w": jnp.ones(2)})
    ...     steps(directory), restore(directory, {"w": jnp.zeros(2)})["w"].tolist()
    ([3], [1.0, 1.0])
    """
    step = _checks.check_steps("step", step, minimum=0)
    if keep is not None:
        keep = _checks.check_steps("keep", keep, remedy="Use None to keep all.")
    folder = pathlib.Path(directory).absolute() / str(step)
    if (folder / MANIFEST).exists():
        raise ValueError(
            f"`step` must be one that is not saved yet, got {step}: '{folder}' is a "
            "checkpoint. Delete it first, or go on from steps(directory)[-1] + 1."
        )
    arrays = _by_name(tree)
    is_first = jax.process_index() == 0
    if is_first and folder.exists():
        shutil.rmtree(folder)  # of a run that was killed while it saved
    full = {k: _plain(x) for k, x in arrays.items() if np.size(x)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpointer = _orbax().StandardCheckpointer()
    try:
        checkpointer.save(folder / ARRAYS, full or {_EMPTY: _NONE})
        checkpointer.wait_until_finished()
    finally:
        checkpointer.close()
    if is_first:
        write_manifest(folder, step, {k: form(_plain(x)) for k, x in arrays.items()})
        for old in steps(directory)[: -keep if keep else 0]:
            _delete(folder.parent / str(old))
    return folder


def restore(
    directory: str | os.PathLike[str],
    like: PyTree = None,
    *,
    step: int | None = None,
    fallback: bool = False,
) -> PyTree:
    """Reads a checkpoint, after all of its files were found to be what was written.

        saved = restore("run", {"params": params, "state": state})

    Args:
      directory: see `save`.
      like: tree of arrays, or of `jax.ShapeDtypeStruct`s with shardings: the structure,
        shapes, dtypes and shardings to restore to, which may be of more or fewer
        devices than were saved. None: a flat dict of NumPy arrays by path, for
        `migrate`.
      step: which; None: the last one.
      fallback: whether to take the one before where the files are damaged, and so on;
        it warns. False: raise. A damaged one stays: delete its folder before its step
        is saved again.

    Returns:
      The tree, or the flat dict.

    Raises:
      CheckpointError: a file that is damaged, missing or cut, which it names.
      FileNotFoundError: there is no checkpoint, or none of this step.
      ValueError: `like` is of other arrays than the checkpoint: it lists them.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for step in (1, 2):
    ...         folder = save(directory, step, {"w": jnp.full(2, step)})
    ...     last = restore(directory, {"w": jnp.zeros(2, int)})
    ...     flat = restore(directory)  # by path, as NumPy has them
    ...     last["w"].tolist(), flat["w"].tolist()
    ([2, 2], [2, 2])
    """
    _checks.check_flag("fallback", fallback)
    root, found = pathlib.Path(directory).absolute(), steps(directory)
    if step is not None:
        step = _checks.check_steps("step", step, minimum=0)
        if step not in found:
            raise FileNotFoundError(
                f"`step` must be one of the checkpoints in '{root}', {found or 'none'},"
                f" got {step}. One that was cut short is none; use step=None for the "
                "last one."
            )
        found = [s for s in found if s <= step]
    if not found:
        raise FileNotFoundError(
            f"`directory` must hold a checkpoint, '{root}' holds none that is whole; "
            "begin from the start, or pass another directory."
        )
    errors = []
    for each in reversed(found):
        try:
            body = verify(directory, each)
            break
        except CheckpointError as error:
            errors.append(str(error))
            if not fallback:
                raise
            _warn(errors[-1])
    else:
        raise CheckpointError("no checkpoint is whole: " + " ".join(errors))
    return _read(root / str(each), body, like)


# ------------------------------------------------------------------------- the files


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            "save and restore need orbax-checkpoint: pip install 'adamx[checkpoints]'."
        ) from error
    return ocp


def _by_name(tree: PyTree) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays: dict[str, Any] = {}
    for path, leaf in flat:
        name = _tree.path_name(path)
        if not (
            hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex))
        ):
            raise TypeError(
                f"`tree` at '{name}' must be an array or a number, got "
                f"{_checks.describe_value(leaf)}; save it beside the checkpoint."
            )
        if name in arrays:
            raise ValueError(
                f"`tree` must have one array by path, got two at '{name}': paths must "
                "differ when they are joined by '/'."
            )
        arrays[name] = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return arrays


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(x: Any) -> Any:
    """A random key as its words, or as the shape of them."""
    if not _is_key(x):
        return x
    is_shape = isinstance(x, jax.ShapeDtypeStruct)
    return (jax.eval_shape if is_shape else lambda f, y: f(y))(jax.random.key_data, x)


def _warn(text: str) -> None:
    warnings.warn(f"{text} The one before is tried.", UserWarning, stacklevel=3)


def _delete(folder: pathlib.Path) -> None:
    # First what makes it a checkpoint: a kill in between leaves none that is half.
    (folder / MANIFEST).unlink()
    shutil.rmtree(folder)


def _read(folder: pathlib.Path, body: dict[str, Any], like: PyTree) -> PyTree:
    saved: dict[str, str] = body["arrays"]
    ocp = _orbax()
    wanted = None if like is None else _by_name(like)
    if wanted is not None:
        _check_like(wanted, saved, folder)
    targets = {}
    for name, text in saved.items():
        x = np.empty(*_parsed(text)) if wanted is None else wanted[name]
        if 0 not in x.shape:
            targets[name] = _target(x)
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(
            folder / ARRAYS, targets or {_EMPTY: _target(_NONE)}
        )
    if wanted is None:
        return {k: found.get(k, np.zeros(*_parsed(text))) for k, text in saved.items()}
    leaves = [_as_like(x, found.get(name)) for name, x in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _target(x: Any) -> Any:
    """What Orbax restores to: on the given devices, or on the first one; NumPy's."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np.empty(x.shape, x.dtype)
    sharding = None if _is_key(x) else getattr(x, "sharding", None)
    x = _plain(x)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _as_like(x: Any, found: Any) -> Any:
    if found is None:
        return jnp.zeros(x.shape, x.dtype)
    if _is_key(x):
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(x))
    return found


def _parsed(text: str) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of float32[2,3]."""
    dtype, _, shape = text.removesuffix("]").partition("[")
    return tuple(int(n) for n in shape.split(",") if n), jnp.dtype(dtype)


def _check_like(
    wanted: dict[str, Any], saved: dict[str, str], folder: pathlib.Path
) -> None:
    missing = [name for name in wanted if name not in saved]
    extra = [name for name in saved if name not in wanted]
    unlike = [
        f"'{name}' is {saved[name]}, `like` has {form(_plain(x))}"
        for name, x in wanted.items()
        if name in saved and saved[name] != form(_plain(x))
    ]
    parts = [f"not saved: {_tree.some(missing)}"] if missing else []
    parts += [f"only saved: {_tree.some(extra)}"] if extra else []
    parts += unlike[:3]
    if parts:
        raise ValueError(
            f"`like` must have the arrays of '{folder}'; {'; '.join(parts)}. Pass the "
            "tree that was saved; for another optimizer restore with like=None, and "
            "load it with adamx.interop.migrate."
        )
