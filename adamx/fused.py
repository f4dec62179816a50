"""GRADIENTS -> PARAMETERS: the fast lane of any transformation.

p, state <- step(g, state, p)        with the results of update and apply_updates
"""

from typing import Any, NamedTuple

import jax

from adamx import _checks, _steps, _tree, native
from adamx._traced import traced_for_passes
from adamx._types import GradientTransformation, PyTree


class Fused(NamedTuple):
    """What `fused` returns.

    Attributes:
      init: `init(params) -> state`, that of the transformation.
      step: `step(grads, state, params, **extra_args) -> (params, state)`.
    """

    init: Any
    step: Any

    @property
    def update(self) -> Any:
        """Not there: Raises AttributeError, which tells a client what to do."""
        raise AttributeError(
            "fused(tx) has no update: it is no transformation, but its init and step. "
            "Give the client tx itself, or call step(grads, state, params)."
        )


def fused(tx: GradientTransformation, *, kernel: str = "xla") -> Fused:
    """A training step's last lines in one: parameters in, parameters out.

        init, step = fused(tx)
        params, state = step(grads, state, params)

    The results are those of `tx.update` and `apply_updates`. What differs is what has
    to be kept meanwhile: a wrapper that chooses between old and new (`guard`,
    `accumulate`, `stages`, `loss_scaling`) chooses once around parameters and state,
    not around a tree of updates and again around the state. `master_weights` and
    `compensated` write the parameters themselves: no target is missed. A moment that is
    stored in 16 bits or less is written behind the parameter that is computed from the
    old one, of which XLA for CPUs keeps a copy otherwise. (For that the step is traced
    apart: a stage hands on nothing but what it returns.)

    Jit a function that takes parameters and state in the order in which it returns
    them, and donate both; it then needs next to no temporary memory. (JAX pairs donated
    buffers with results by shape and order: with `jax.jit(step, donate_argnums=(1, 2))`
    the parameters would be written over a moment, and two trees be copied.)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def train_step(params, state, batch):
            grads = jax.grad(loss_fn)(params, batch)
            return step(grads, state, params)

    Equal is bit for bit as written. A compiler may round p + a * b once where it fuses
    both, and does so in one of the two ways and not in the other: then they differ in
    the last place; so may derivatives through a step with such moments. With 16-bit
    parameters, a wrapper that hands on float32 gradients
    (`accumulate`, `loss_scaling`) emits updates rounded to 16 bits, as the protocol has
    it; here they are added first.

    The wrappers nest: guard(accumulate(tx, 4)) is one choice inside another. A stage of
    another library, and `optax.chain` around a wrapper, run as they are: through
    `update` and `apply_updates`, inside whatever stands around them.

    With `kernel="native"` all that is done to an element of a leaf, whatever stages do
    it, is one pass over memory in compiled C, clipping's sum of squares another. On a
    CPU, AdamW takes a half to two thirds of the time that XLA's loops take, with
    clipping three fifths to three quarters, and trees of very many leaves compile
    several times as fast. A program is compiled on first use, by the system's C
    compiler (`CC`, cc, gcc or clang), and kept in `ADAMX_CACHE` or else in adamx in the
    user's cache folder. Codes of `adamx.codecs` are read and written in the same pass,
    exact scales found in one before it (with `int4` a fourteenth of the time of XLA,
    which writes 4 bits one by one: benchmarks/README.md). Complex leaves, codes with
    scales for parts of a row (`layout="block"`, vectors), means by row (`adam_mini`),
    other devices than CPUs and programs for several devices, outside `shard_map`, are
    left to XLA; without a compiler everything is, with a warning. Products are rounded
    before they are added, where XLA may round once: results differ in the last place.

    Args:
      tx: any transformation.
      kernel: "xla", or "native" for passes in compiled C on CPUs.

    Returns:
      `init` and `step`. The state is that of `tx`: one may change between the two ways,
      and between kernels, at any step.

    Raises:
      TypeError: `tx` is not a transformation.
      ValueError: another `kernel`; gradients of another structure or shape than the
        parameters.

    >>> import adamx, jax, jax.numpy as jnp
    >>> init, step = fused(adamx.sgd(0.5))
    >>> params = jnp.ones(2)
    >>> grads = jnp.array([1.0, -1.0])
    >>> params, state = jax.jit(step)(grads, init(params), params)
    >>> params.tolist()
    [0.5, 1.5]
    """
    _checks.check_transformation("tx", tx)
    _checks.check_choice("kernel", kernel, ("xla", "native"))
    inner = _steps.step_of(tx)

    def step(
        grads: PyTree, state: Any, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        _checks.check_has_params(params, "they are what a step returns")
        _tree.check_like_params(grads, params)
        if kernel == "xla":
            return inner(grads, state, params, **extra_args)
        return _in_passes(inner, grads, state, params, **extra_args)

    return Fused(tx.init, step)


def _in_passes(
    step: _steps.Step, grads: PyTree, state: Any, params: PyTree, **extra_args: Any
) -> tuple[PyTree, Any]:
    """A step with its element-wise parts as passes; parameters and state in place."""
    held = jax.tree.leaves((params, state))
    arrays = (*held, *jax.tree.leaves(grads))
    if not any(isinstance(x, jax.core.Tracer) for x in arrays):
        return step(grads, state, params, **extra_args)  # nothing is compiled

    def run(params: PyTree, state: Any, grads: PyTree) -> tuple[PyTree, Any]:
        with traced_for_passes():
            return step(grads, state, params, **extra_args)

    return native.in_passes(run, params, state, grads, results=range(len(held)))
