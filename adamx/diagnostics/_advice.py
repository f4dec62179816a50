"""SYMPTOM -> WORDS: what it is called, what may cause it, what to try."""

from typing import NamedTuple


class Words(NamedTuple):
    """The text of a kind of finding.

    Attributes:
      symptom: one line.
      causes, remedies: sentences, the likeliest first.
    """

    symptom: str
    causes: tuple[str, ...]
    remedies: tuple[str, ...]


WORDS = {
    "nonfinite": Words(
        "non-finite gradients",
        (
            "The loss or an activation overflows, in 16 bits most of all.",
            "A division by zero, or a logarithm or root of zero, in the model.",
        ),
        (
            "Skip such steps and count them: adamx.guard(tx).",
            "In float16: adamx.loss_scaling(tx). In bfloat16: norms, softmax and loss "
            "in float32.",
            "Find the place: jax.config.update('jax_debug_nans', True).",
        ),
    ),
    "lost_loss": Words(
        "the loss is not finite",
        (
            "The run has diverged: the rate is too large, or has no warmup.",
            "An overflow in the model or the loss.",
        ),
        (
            "Go back to a checkpoint from before, with a third of the rate.",
            "adamx.guard(tx) against single bad batches; adamx.clip_by_global_norm(1).",
        ),
    ),
    "lost_val_loss": Words(
        "the validation loss alone is not finite",
        (
            "The evaluation: log(0) or a division by zero, an empty batch (the mean of "
            "nothing), NaN in the held-out data, labels out of range.",
            "The running statistics of a normalisation hold a NaN: one bad batch in "
            "training is enough, and a skipped step does not mend them.",
            "The evaluation overflows in 16 bits, or has parameters of its own (an "
            "average, a copy) that hold a NaN.",
        ),
        (
            "Find the example: the loss of each held-out example, then its logits.",
            "The cross-entropy from logits (optax.softmax_cross_entropy), never from "
            "log(softmax); means over max(count, 1).",
            "Look for NaN in what is not trained: statistics, averages; set them anew, "
            "and write them in training only where the loss is finite.",
            "Evaluate in float32.",
        ),
    ),
    "diverging": Words(
        "the training loss is above where it began",
        (
            "The rate is too large for the sharpest direction.",
            "There was no warmup: the first steps went where it does not lead down.",
        ),
        (
            "A third of the rate, or less; warmup over 500 to 2,000 steps.",
            "adamx.sharpness(...) compares the curvature with what the rate bears.",
            "adamx.clip_by_global_norm(1.0) before the optimizer.",
        ),
    ),
    "burst": Words(
        "the training loss rose far above where it began",
        (
            "The rate is far too large for the first steps, or there was no warmup.",
            "What the model began with is lost: it starts again from worse parameters.",
        ),
        (
            "A tenth of the rate: adamx.lr_sweep(...) or adamx.lr_range_test(...).",
            "Warmup over 500 to 2,000 steps: adamx.schedules.warmup_cosine.",
            "adamx.clip_by_global_norm(1.0) before the optimizer.",
        ),
    ),
    "stuck": Words(
        "the training loss does not fall",
        (
            "The rate is far too large: the first steps destroyed the parameters.",
            "The rate is far too small, or nothing that matters is trained.",
            "No gradient reaches the layers, or the loss does not depend on them.",
        ),
        (
            "adamx.lr_sweep(...) or adamx.lr_range_test(...) find a rate that works.",
            "See what the layers' findings say; train on one batch until it is learnt.",
        ),
    ),
    "exploding": Words(
        "the gradient explodes",
        (
            "The rate is too large, here or in the layers that feed this one.",
            "Recurrence or depth without normalisation multiplies gradients.",
        ),
        (
            "adamx.clip_by_global_norm(1.0) before the optimizer.",
            "A third of the rate; a longer warmup.",
            "Skip spikes: adamx.guard(tx, spike_zscore=6).",
        ),
    ),
    "growing": Words(
        "the parameters grow without bound",
        (
            "The rate is too large.",
            "Nothing holds the scale: no weight decay in front of a normalisation.",
        ),
        (
            "A smaller rate for this layer: adamx.groups.",
            "Decoupled weight decay: adamx.adamw(..., weight_decay=0.1).",
        ),
    ),
    "dead": Words(
        "no gradient reaches the layer",
        (
            "Its units are dead: a ReLU whose inputs are all negative, for instance "
            "behind steps at too large a rate.",
            "The layer is not used in the loss, or stands behind stop_gradient.",
            "Its gradients are below the range of float16, and read as 0.",
        ),
        (
            "Look at its activations; begin again with a smaller rate or bias, or with "
            "leaky ReLU or GELU.",
            "If it is meant to rest: adamx.freeze() in adamx.groups, which saves its "
            "state.",
            "In float16: adamx.loss_scaling(tx).",
        ),
    ),
    "ratio_high": Words(
        "updates are too large for the parameters",
        (
            "The rate is too large for this layer.",
            "The parameters were initialised too small, or decay shrank them.",
        ),
        (
            "A smaller rate for the layer: adamx.groups([(regex, tx)]).",
            "Warmup; adamx.lamb, whose steps are in units of the parameters.",
        ),
    ),
    "eps_dominates": Words(
        "eps dominates the denominator",
        (
            "Gradients are about as small as eps: large models, losses that are scaled "
            "down, deep layers. Adam is then SGD with the rate lr / eps.",
            "eps was set too large.",
        ),
        (
            "A lower eps, 1e-12 or 1e-15 in float32.",
            "In mixed precision: gradients unscaled and moments in float32, and "
            "eps = 1e-6 at most (1e-8 is 0 in float16).",
            "Do not divide the loss by more than the batch.",
        ),
    ),
    "tiny_early": Words(
        "r is tiny in all layers, early in the run",
        (
            "The first gradients were much larger than those since, and v remembers "
            "them for 1 / (1 - b2) steps.",
            "The training began at the full rate.",
            "The loss has nearly reached its floor: what is left is noise. Then all is "
            "well.",
        ),
        (
            "Warmup over 500 to 2,000 steps: adamx.schedules.warmup_cosine.",
            "b2 = 0.99, which forgets ten times as fast.",
            "adamx.clip_by_global_norm(1.0), against the first gradients.",
            "Wait: behind 2 / (1 - b2) steps it may be gone.",
        ),
    ),
    "near_zero": Words(
        "the median of r is near zero",
        (
            "b2 is too large: v holds gradients of long ago, larger than today's.",
            "The denominator is frozen: v does not fall (AMSGrad, a 16-bit v, one huge "
            "batch).",
            "Gradients cancel from step to step, or are mostly zero: a rare embedding.",
            "The rate is too small for what is left to learn, or the layer is done.",
        ),
        (
            "b2 = 0.99 (or 0.95) for this layer.",
            "Clip or skip single large gradients: adamx.clip_by_global_norm, "
            "adamx.guard.",
            "A larger rate for this layer: adamx.groups.",
            "For embeddings of which few rows are used: adamx.sparse_adam.",
        ),
    ),
    "outliers": Words(
        "few elements take nearly all of the steps",
        (
            "Most elements have gradients seldom, and then large ones: sparse inputs.",
            "Few units dominate the layer.",
        ),
        (
            "A smaller b2 (0.99), so that one outlier is forgotten sooner.",
            "adamx.clip_by_global_norm, or adamx.clip_by_update_rms.",
            "For embeddings: adamx.sparse_adam.",
        ),
    ),
    "oscillation": Words(
        "training oscillates",
        (
            "The rate is at the edge of stability for the sharpest direction.",
            "b1 is too small to average opposite gradients away.",
            "The noise of small batches near the end.",
        ),
        (
            "First adamx.sharpness(...): it tells how far the rate is from its bound. "
            "An edge far below 1 means noise.",
            "A smaller rate (half of it), or a decay from here on.",
            "A larger b1: 0.95 in the place of 0.9, which bears twice the sharpness.",
        ),
    ),
    "unshuffled": Words(
        "the training loss repeats itself: batches come in an order",
        (
            "The data are sorted (by label, source or length), or read in blocks.",
            "Each epoch has the same batches in the same order.",
        ),
        (
            "Shuffle the data anew for each epoch; of a stream, a buffer much larger "
            "than the blocks.",
            "If the order is meant: a larger b1 averages over more of it.",
        ),
    ),
    "skipped": Words(
        "many steps are skipped",
        (
            "Gradients are often not finite, or spike.",
            "The guard's limit is too tight for the noise of small batches.",
        ),
        (
            "Find the batches at fault; lower the rate.",
            "In float16: let adamx.loss_scaling choose the scale, or use bfloat16.",
            "A larger spike_zscore in adamx.guard.",
        ),
    ),
    "ratio_low": Words(
        "updates are too small for the parameters",
        (
            "The rate is too small for this layer.",
            "The parameters were initialised too large.",
        ),
        (
            "A larger rate, of all or of this layer: adamx.groups([(regex, tx)]).",
            "adamx.freeze(), if the layer is meant to rest.",
        ),
    ),
    "imbalance": Words(
        "the layer learns at another pace than the rest",
        (
            "One rate for layers of different scales of parameters.",
            "Its initialisation is far from that of the others.",
        ),
        (
            "A rate of its own: adamx.groups([(regex, tx)]).",
            "adamx.lamb, whose steps are in units of each layer's parameters.",
        ),
    ),
    "rate_apart": Words(
        "the layer's rate is far above that of the others",
        (
            "A wrong number in the rates of adamx.groups, or of a mask.",
            "A rate that is meant for SGD, in a layer with Adam.",
        ),
        (
            "The rate of the other layers for this one, or at most some ten times it.",
            "adamx.describe(tx, params) shows the rate of each group.",
        ),
    ),
    "gap": Words(
        "validation gets worse while training gets better",
        ("The model learns the training data by heart.",),
        (
            "Decay the rate now, or stop at the best validation loss.",
            "More weight decay, more data or augmentation, dropout.",
            "Hand over to SGD for the last 10-30% of the steps: adamx.adam_to_sgd.",
        ),
    ),
    "memorised": Words(
        "validation does not follow what training wins",
        (
            "The model learns the training data by heart: they are few for its size.",
            "Validation data are of another kind than the training data.",
        ),
        (
            "More data or augmentation; then weight decay, dropout, a smaller model.",
            "Stop at the best validation loss.",
            "Compare the two sets: labels, sources, preprocessing.",
        ),
    ),
    "plateau": Words(
        "the validation loss is on a plateau",
        (
            "The rate is too large to go deeper: noise of the steps holds the loss up.",
            "The model has learned what it can from these data.",
            "Each validation is of few examples, or of others: what they differ by "
            "hides that the loss falls.",
        ),
        (
            "Decay the rate: a schedule that ends at 0 (adamx.schedules).",
            "Hand over to SGD for the last 10-30% of the steps: adamx.adam_to_sgd.",
        ),
    ),
    "ready_for_sgd": Words(
        "Adam has settled: ready for the hand-over to SGD",
        (
            "v no longer changes, and m is mostly noise: the step is that of SGD with "
            "fixed rates.",
        ),
        (
            "adamx.adam_to_sgd for the last 10-30% of the steps, with a decay.",
            "Or decay the rate to 0.",
        ),
    ),
}
