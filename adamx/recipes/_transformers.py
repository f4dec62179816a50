"""Transformers of language: pretraining and fine-tuning."""

from typing import Any

import jax.numpy as jnp

from adamx import _checks, schedules
from adamx._types import (
    GradientTransformationExtraArgs,
    Mask,
    ScalarOrSchedule,
    scalar_dtype,
)
from adamx.optimizers.adamw import adamw
from adamx.recipes._arguments import Num, Span, checked_peak, decayed
from adamx.transforms import clip_by_global_norm, wide_chain


def finetune_transformer(
    learning_rate: Num = 2e-5,
    *,
    total_steps: int,
    weight_decay: ScalarOrSchedule = 0.01,
    warmup: Span = 0.1,
    max_norm: Any = 1.0,
    eps: Any = 1e-6,
    mask: Mask = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """AdamW, a long warm-up to a small rate, a straight line down to 0.

        optax.chain(clip_by_global_norm(1.0),
                    adamw(warmup_linear(2e-5, total_steps, 0.1), eps=1e-6,
                          weight_decay=0.01, mask=decay_mask()))

    The recipe of BERT with what made it stable: the bias correction, which BERT's code
    left out (Zhang et al., 2021, section 4), and more steps (Mosbach et al.: 20 epochs
    of a small data set, not 3). Numbers without a name beside them are those of the
    configurations published with Mosbach et al. (2021).

    Args:
      learning_rate: the peak, see `schedules.warmup_linear`. 2e-5; to be chosen from
        {5e-5, 3e-5, 2e-5} (Devlin et al., 2019, appendix A.3), or {1e-5, 2e-5, 3e-5}.
      total_steps: steps of the run, warm-up included.
      weight_decay: see `add_decoupled_weight_decay`. 0.01, also Devlin et al., appendix
        A.2.
      warmup: steps, or a share of total_steps. 0.1.
      max_norm: see `clip_by_global_norm`. 1.0.
      eps: see `scale_by_adam`. 1e-6, also in the code published with BERT.
      mask: which parameters decay; None: `decay_mask()`, not biases and normalisation
        scales, as in the code published with BERT.
      mu_dtype, nu_dtype: how moments are stored, see `scale_by_adam`.

    Returns:
      The transformation. State: those of `clip_by_global_norm` and `adamw`.

    Raises:
      ValueError, TypeError: the argument is named; a schedule in the place of the peak.

    >>> import adamx, jax.numpy as jnp
    >>> tx = adamx.recipes.finetune_transformer(total_steps=100)
    >>> _, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1))
    >>> float(adamx.read(state).learning_rate)
    0.0

    Source: Devlin et al., "BERT" (2019), appendix A; Mosbach, Andriushchenko & Klakow,
    "On the Stability of Fine-tuning BERT" (2021); Zhang, Wu, Katiyar, Weinberger &
    Artzi, "Revisiting Few-sample BERT Fine-tuning" (2021). b1 0.9, b2 0.999: all of
    them.
    """
    peak = checked_peak(learning_rate)
    return wide_chain(
        clip_by_global_norm(max_norm),
        adamw(
            schedules.warmup_linear(peak, total_steps, warmup),
            eps=eps,
            mu_dtype=mu_dtype,
            weight_decay=weight_decay,
            mask=decayed(mask),
            nu_dtype=nu_dtype,
        ),
    )


def pretrain_llm(
    learning_rate: Num = 3e-4,
    *,
    total_steps: int,
    weight_decay: ScalarOrSchedule = 0.1,
    warmup: Span = 0.01,
    end_share: Num = 0.1,
    max_norm: Any = 1.0,
    b2: Any = 0.95,
    eps: Any = 1e-8,
    mask: Mask = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """AdamW with a short memory of squares, a cosine down to a tenth of the peak.

        optax.chain(clip_by_global_norm(1.0),
                    adamw(warmup_cosine(3e-4, total_steps, 0.01, end=3e-5),
                          b2=0.95, weight_decay=0.1, mask=decay_mask()))

    Args:
      learning_rate: the peak, see `schedules.warmup_cosine`. 3e-4: LLaMA, table 2, for
        7B and 13B parameters at batches of 4M tokens; 1.5e-4 for 33B and 65B. Smaller
        models take more: 6e-4 for 125M at 0.5M tokens (GPT-3, table 2.1).
      total_steps: steps of the run, warm-up included.
      weight_decay: see `add_decoupled_weight_decay`. 0.1: GPT-3, appendix B; LLaMA,
        section 2.2.
      warmup: steps, or a share of total_steps. 0.01: our choice, near LLaMA's 2,000
        steps (section 2.2) of about 250,000 in the run of 7B. In a short run rather
        500 to 2,000 steps, as an int.
      end_share: last rate over the peak, in [0, 1]. 0.1: GPT-3, appendix B; LLaMA,
        section 2.2.
      max_norm: see `clip_by_global_norm`. 1.0: GPT-3, appendix B; LLaMA, section 2.2.
      b2: see `scale_by_adam`. 0.95: GPT-3, appendix B; LLaMA, section 2.2. A memory of
        20 steps forgets a spike soon; small batches want more.
      eps: see `scale_by_adam`. 1e-8: GPT-3, appendix B.
      mask: which parameters decay; None: `decay_mask()`. Embeddings are matrices:
        `decay_mask(exclude="embed")` leaves them out; where layers are scanned,
        `decay_mask(stacked="layers")`. Leaving out biases and scales: our choice.
      mu_dtype, nu_dtype: how moments are stored, see `scale_by_adam`.

    Returns:
      The transformation. State: those of `clip_by_global_norm` and `adamw`.

    Raises:
      ValueError, TypeError: the argument is named; a schedule in the place of the peak.

    >>> import adamx, jax.numpy as jnp
    >>> tx = adamx.recipes.pretrain_llm(6e-4, total_steps=10_000, warmup=500)
    >>> tx = adamx.guard(tx, spike_zscore=6.0)  # loss spikes: leave the step out
    >>> adamx.read(tx.init(jnp.ones((2, 2)))).skipped
    0

    Source: Brown et al., "Language Models are Few-Shot Learners" (GPT-3, 2020), table
    2.1 and appendix B; Touvron et al., "LLaMA" (2023), section 2.2 and table 2. b1 0.9:
    both.
    """
    peak = checked_peak(learning_rate)
    remedy = "It is the last rate over the peak: use 0.1, or 0 to decay to 0."
    _checks.check_in_interval("end_share", end_share, 0, 1, remedy)
    if not _checks.is_constant(peak):  # a traced 16-bit peak would round the product
        peak = jnp.asarray(peak, scalar_dtype())
    rate = schedules.warmup_cosine(peak, total_steps, warmup, end=peak * end_share)
    return wide_chain(
        clip_by_global_norm(max_norm),
        adamw(
            rate,
            b2=b2,
            eps=eps,
            mu_dtype=mu_dtype,
            weight_decay=weight_decay,
            mask=decayed(mask),
            nu_dtype=nu_dtype,
        ),
    )
