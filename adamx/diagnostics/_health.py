"""HISTORY -> ADVICE: rules of the literature, applied to what was measured.

The rules are small functions in `_rules` (of a layer), `_rules_run` (of the run) and
`_rules_data` (of the data); each has its source and its thresholds, named constants
beside it. Rules and thresholds were committed before any run that tests them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adamx import _checks
from adamx.diagnostics import _rules, _rules_data, _rules_run
from adamx.diagnostics._advice import WORDS
from adamx.diagnostics._evidence import LEAST, START, Rule, Run, Sign, percentiles
from adamx.diagnostics._history import History
from adamx.reading import Reading

LOSSES = 10  # records of a loss: what the rules of the run take at least
SEVERITIES = ("severe", "warning", "info")
RULES: tuple[Rule, ...] = (
    _rules.nonfinite,
    _rules.dead,
    _rules.exploding,
    _rules.eps_dominates,
    _rules.tiny_early,
    _rules.near_zero,
    _rules.outliers,
    _rules.ratio_high,
    _rules.ratio_low,
    _rules.oscillation,
    _rules.imbalance,
    _rules.rate_apart,
    _rules_run.lost_loss,
    _rules_run.lost_val_loss,
    _rules_run.diverging,
    _rules_run.burst,
    _rules_run.stuck,
    _rules_run.exploding_norm,
    _rules_run.skipped,
    _rules_run.alternating,
    _rules_data.unshuffled,
    _rules_run.gap,
    _rules_data.memorised,
    _rules_run.plateau,
    _rules_run.ready_for_sgd,
)
# What rules look at by the percentile of r near to a number.
_BY_PERCENTILE = {
    50: "small r, layers that are dead, ratios that are low or apart, the hand-over",
    90: "few elements with all of the steps, gradients that alternate",
}
# What another finding about the same layer, or about the whole run, already says.
_IMPLIED = {
    "near_zero": {"dead", "eps_dominates", "tiny_early", "nonfinite"},
    "outliers": {"dead", "eps_dominates", "nonfinite"},
    "tiny_early": {"eps_dominates"},
    "ratio_low": {"dead", "near_zero", "eps_dominates", "tiny_early", "skipped"},
    "oscillation": {"skipped"},
    "imbalance": {
        *("near_zero", "eps_dominates", "tiny_early", "ratio_low", "ratio_high"),
        *("outliers", "exploding", "growing", "nonfinite", "rate_apart"),
    },
    "plateau": {
        *("gap", "memorised", "diverging", "lost_loss", "stuck", "lost_val_loss"),
        *("near_zero", "eps_dominates"),
    },
    "ready_for_sgd": {
        *("gap", "memorised", "diverging", "lost_loss", "stuck", "burst", "skipped"),
        *("tiny_early", "exploding", "oscillation", "unshuffled", "lost_val_loss"),
    },
    "memorised": {"gap", "diverging", "lost_loss"},
    "burst": {"diverging", "lost_loss"},
    "diverging": {"lost_loss"},
    "stuck": {"diverging", "lost_loss"},
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing; `print` shows it in two lines.

    Attributes:
      layer: its name; None: the whole run, or all layers (`evidence` has their number).
      symptom: one line.
      evidence: the numbers by name (medians over the measurements that were looked at),
        the threshold, and the steps that they come from.
      likely_causes, what_to_try: sentences, the likeliest first.
      severity: "severe", "warning" or "info".
    """

    layer: str | None
    symptom: str
    evidence: Mapping[str, Any]
    likely_causes: tuple[str, ...]
    what_to_try: tuple[str, ...]
    severity: str

    def __str__(self) -> str:
        """Severity, layer and symptom; below them the evidence."""
        where = "" if self.layer is None else f"{self.layer}: "
        title = f"{self.severity}: {where}{self.symptom}"
        # Not as reports show numbers: plain ASCII goes into every log.
        pairs = [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.evidence.items()
        ]
        return f"{title}\n  {', '.join(pairs)}" if pairs else title


class Findings(list[Finding]):
    """A list of `Finding`; `print` shows them all, and what was not judged.

    Attributes:
      looked_at: "40 records of 6 layers".
      not_judged: what no finding says nothing about, each with the reason in brackets;
        () where all was judged.
    """

    def __init__(
        self,
        findings: Iterable[Finding] = (),
        looked_at: str = "0 records",
        not_judged: Sequence[str] = (),
    ):
        super().__init__(findings)
        self.looked_at = looked_at
        self.not_judged = tuple(not_judged)

    def __str__(self) -> str:
        """Each finding as its own text has it, or that there are none."""
        lines = [str(finding) for finding in self]
        lines = lines or [f"no findings in {self.looked_at}"]
        if self.not_judged:
            lines.append(f"not judged: {'; '.join(self.not_judged)}")
        return "\n".join(lines)


def health(history: History | Reading) -> Findings:
    """What is wrong with a run, layer by layer, and what to try.

    Looks for: non-finite gradients, losses and skipped steps; exploding gradients and
    growing parameters; layers without a gradient; eps as the larger part of the
    denominator; medians of r near zero, everywhere early or in a layer; few elements
    with all of the steps; update/parameter ratios far from 1e-3, layers far from
    the others, in their ratios or in their rates; oscillation; batches in an order; a
    loss above where it began, now or in the first steps, or that does not fall;
    validation that gets worse, does not follow or stands still; Adam ready for the
    hand-over to SGD.
    Thresholds and their sources: `adamx/diagnostics/_rules.py`, `_rules_run.py` and
    `_rules_data.py`.

    Numbers of layers are judged behind step 50 and behind the warmup of the rate, by
    their last 10 measurements: at least 5 must be known, and 8 of 10 must show the
    symptom (the rules say where it is otherwise). A finding thus goes some three
    measurements after its cause.

    What cannot be judged gives no finding: layers without `adamx.diagnose`, or with
    fewer than 5 measurements behind the warmup; losses that were not recorded; layers
    without moments (frozen, or behind a switch to SGD). An empty list is no proof:
    printed, it says how much was looked at and what was not judged.

    Args:
      history: of a run; it may be incomplete. Or one Reading, whose layers are judged
        by this one measurement: a hint, so that all findings are "info".

    Returns:
      `Findings`, a list: the severest first, then those of the whole run, then by
      layer. One symptom in all layers is one finding, with layer None.

    Raises:
      TypeError: neither a History nor a Reading.
      ValueError: a batched Reading (vmap).

    >>> import adamx
    >>> history = adamx.History()
    >>> for step in range(1, 9):
    ...     layers = {"w": {"r/p50": 2e-4}, "b": {"r/p50": 0.1}}
    ...     measured = adamx.reading.Diagnostics(1000 * step, layers)
    ...     history.append(adamx.Reading(count=1000 * step, diagnostics=measured))
    >>> for finding in health(history):
    ...     print(str(finding).splitlines()[0])
    severe: w: the median of r is near zero
    >>> print(health(adamx.History()))  # doctest: +ELLIPSIS
    no findings in 0 records
    not judged: layers (not measured: adamx.diagnose measures them); training loss ...
    """
    is_single = isinstance(history, Reading)
    if isinstance(history, Reading):
        reading, history = history, History()
        history.append(reading)
    if not isinstance(history, History):
        raise TypeError(
            "`history` must be an adamx.History or an adamx.Reading, got "
            f"{_checks.describe_value(history)}; pass the history of a run, or "
            "adamx.read(state)."
        )
    run = Run(history, 1 if is_single else LEAST)
    looked_at = _looked_at(run, is_single)
    rest = _not_judged(run, is_single)
    if not len(history):
        return Findings((), looked_at, rest)
    with np.errstate(all="ignore"):
        signs = [sign for rule in RULES for sign in rule(run)]
    if is_single:
        signs = [sign._replace(severity="info") for sign in signs]
    found = _merged(_without_implied(signs), run)
    place = {layer: i for i, layer in enumerate(run.layers)}
    found.sort(
        key=lambda sign: (
            SEVERITIES.index(sign.severity),
            -1 if sign.layer is None else place[sign.layer],
        )
    )
    return Findings(map(_finding, found), looked_at, rest)


def not_judged(history: History) -> tuple[str, ...]:
    """What an empty list of findings says nothing about, for a report."""
    return _not_judged(Run(history, LEAST))


def _not_judged(run: Run, is_single: bool = False) -> tuple[str, ...]:
    found = []
    settled, history = int(run.settled.sum()), run.history
    if not run.layers:
        found.append("layers (not measured: adamx.diagnose measures them)")
    elif settled < run.least:
        found.append(
            f"layers ({settled} measurements behind step {START} and the warmup, of "
            f"{run.least} that it takes)"
        )
    if run.layers:
        found += _not_measured(run)
    if is_single:
        return (*found, "losses (a Reading has none: pass a History)")
    for name, text in (("loss", "training loss"), ("val_loss", "validation loss")):
        count = int(history.is_recorded(name).sum())
        if not count:
            found.append(f"{text} (not recorded)")
        elif count < LOSSES:
            found.append(f"{text} ({count} records, of {LOSSES} that it takes)")
    if _rules_data.has_cyclic_rate(run):
        found.append("the order of the batches (the rate goes up and down, too)")
    return tuple(found)


def _not_measured(run: Run) -> list[str]:
    """What the rules about r say nothing about, for want of a percentile."""
    measured = ", ".join(f"{q:g}" for q, _ in percentiles(run.history, "r")) or "none"
    return [
        f"{what} (percentiles of r: {measured}, of which none is within 10 of {near}: "
        "adamx.diagnose(tx, percentiles=(10, 50, 90)))"
        for near, what in _BY_PERCENTILE.items()
        if run.percentile("r", near) is None
    ]


def _looked_at(run: Run, is_single: bool) -> str:
    """How much there is: "40 records of 6 layers"."""
    count, layers = len(run.history), len(run.layers)
    what = "1 reading" if is_single else f"{count} record{'s' * (count != 1)}"
    return f"{what} of {layers} layer{'s' * (layers != 1)}" if layers else what


def _without_implied(signs: Sequence[Sign]) -> list[Sign]:
    seen = {(sign.kind, sign.layer) for sign in signs}

    def is_implied(sign: Sign) -> bool:
        others = _IMPLIED.get(sign.kind, ())
        return any((k, at) in seen for k in others for at in (sign.layer, None))

    return [sign for sign in signs if not is_implied(sign)]


def _merged(signs: Sequence[Sign], run: Run) -> list[Sign]:
    """One symptom in all layers that have moments: one sign, with the worst of them."""
    has_moments = np.isfinite(run.number(run.percentile("r", 50))).any(axis=1)
    layers = {n for n, has in zip(run.layers, has_moments, strict=True) if has}
    layers = layers or set(run.layers)
    by_kind: dict[str, list[Sign]] = {}
    for sign in signs:
        by_kind.setdefault(sign.kind, []).append(sign)
    found = []
    for own in by_kind.values():
        named = {sign.layer for sign in own}
        if len(layers) > 1 and layers <= named and None not in named:
            worst = min(own, key=lambda sign: SEVERITIES.index(sign.severity))
            evidence = {"layers": len(own), "shown": worst.layer, **worst.evidence}
            own = [worst._replace(layer=None, evidence=evidence)]
        found += own
    return found


def _finding(sign: Sign) -> Finding:
    words = WORDS[sign.kind]
    return Finding(
        layer=sign.layer,
        symptom=words.symptom,
        evidence=sign.evidence,
        likely_causes=words.causes,
        what_to_try=words.remedies,
        severity=sign.severity,
    )
