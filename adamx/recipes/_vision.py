"""Image classifiers."""

from typing import Any, NamedTuple

from adamx import _checks, schedules
from adamx._types import GradientTransformationExtraArgs, Mask, ScalarOrSchedule
from adamx.optimizers.adamw import adamw
from adamx.optimizers.sgd import momentum
from adamx.recipes._arguments import Num, Span, checked_peak, decayed
from adamx.transforms import add_coupled_weight_decay, clip_by_global_norm, wide_chain


class _Vision(NamedTuple):
    """The defaults of one kind of vision model."""

    learning_rate: float
    weight_decay: float
    warmup: float
    max_norm: float | None


_VISION = {
    "vit": _Vision(1e-3, 0.05, 5 / 300, 1.0),
    "resnet": _Vision(0.1, 1e-4, 5 / 120, None),
}


def vision(
    learning_rate: Num | None = None,
    *,
    total_steps: int,
    model: str = "vit",
    weight_decay: ScalarOrSchedule | None = None,
    warmup: Span | None = None,
    max_norm: Any = None,
    mask: Mask = None,
) -> GradientTransformationExtraArgs:
    """Image classifiers from scratch: AdamW for ViTs, Nesterov momentum for ResNets.

        rate = warmup_cosine(peak, total_steps, warmup)
        vit:    optax.chain(clip_by_global_norm(1.0),
                            adamw(rate, weight_decay=0.05, mask=decay_mask()))
        resnet: optax.chain(add_decoupled_weight_decay(1e-4, decay_mask()),
                            momentum(rate, 0.9, nesterov=True))

    In front of the momentum the decay is the gradient of weight_decay |p|^2 / 2, and
    its scale is not that of AdamW's.

    Args:
      learning_rate: the peak, see `schedules.warmup_cosine`; None: that of the model,
        for ViTs 1e-3 at a batch size of 1,024 (DeiT, table 9: 5e-4 * size / 512), for
        ResNets 0.1 at 256, and in proportion to it (Goyal et al., section 5.1).
      total_steps: steps of the run, warm-up included; the rate falls to 0 (He et al.,
        section 5.1; DeiT's code: 1e-5).
      model: "vit", for all transformers and hybrids, or "resnet", for convolutional
        networks with batch normalisation.
      weight_decay: None: 0.05 for ViTs (DeiT, table 9), 1e-4 for ResNets (Goyal et al.,
        section 5.1).
      warmup: steps, or a share of total_steps. None: 5 of 300 epochs for ViTs (DeiT,
        table 9), 5 of 120 for ResNets (He et al., sections 2 and 3.1).
      max_norm: see `clip_by_global_norm`; inf only measures. None: 1.0 for ViTs (the
        configuration published with Beyer et al.; DeiT has none), for ResNets no
        clipping and no norm.
      mask: which parameters decay; None: `decay_mask()`, "no bias decay" of He et al.,
        section 3.1. Position embeddings and class tokens often have two axes or more:
        `decay_mask(exclude="pos_embed|cls")`.

    Returns:
      The transformation. State: those of `clip_by_global_norm` and `adamw`, 8 bytes per
      float32 parameter; of ResNets the decay's and that of `momentum`, 4 bytes.

    Raises:
      ValueError, TypeError: the argument is named; a schedule in the place of the peak.

    >>> import adamx, jax.numpy as jnp
    >>> tx = adamx.recipes.vision(total_steps=90, model="resnet", warmup=0)
    >>> kernel = jnp.ones((1, 1))
    >>> updates, _ = tx.update(jnp.ones((1, 1)), tx.init(kernel), kernel)
    >>> round(float(updates[0, 0]), 6)  # -0.1 * (1 + 0.9) * (1 + 1e-4)
    -0.190019

    Source: Touvron et al., "Training data-efficient image transformers & distillation
    through attention" (DeiT, 2021), table 9; Beyer, Zhai & Kolesnikov, "Better plain
    ViT baselines for ImageNet-1k" (2022); He, Zhang, Zhang, Zhang, Xie & Li, "Bag of
    Tricks for Image Classification with Convolutional Neural Networks" (2019); Goyal et
    al., "Accurate, Large Minibatch SGD" (2017). Momentum 0.9: Goyal et al., section
    5.1; b1 0.9, b2 0.999, eps 1e-8: PyTorch's AdamW, as in DeiT's code.
    """
    _checks.check_choice("model", model, tuple(_VISION))
    usual = _VISION[model]
    peak = usual.learning_rate if learning_rate is None else learning_rate
    decay = usual.weight_decay if weight_decay is None else weight_decay
    share = usual.warmup if warmup is None else warmup
    limit = usual.max_norm if max_norm is None else max_norm
    rate = schedules.warmup_cosine(checked_peak(peak), total_steps, share)
    _checks.check_weight_decay("weight_decay", decay)
    clip = [] if limit is None else [clip_by_global_norm(limit)]
    if model == "vit":
        return wide_chain(*clip, adamw(rate, weight_decay=decay, mask=decayed(mask)))
    return wide_chain(
        *clip,
        # The same sum as add_decoupled_weight_decay; `cautious` must not take what is
        # in front of the momentum for a direction.
        add_coupled_weight_decay(decay, decayed(mask)),
        momentum(rate, 0.9, nesterov=True),
    )
