"""Writes docs/findings.md: each finding of `health`, explained, with its picture.

    python docs/scripts/findings.py --write      # without: prints it

Symptoms, causes and remedies are those that `health` prints; when a finding is made is
what its rule's docstring says; the plain words are here. So the page cannot say other
things than the library does: a test compares it with what this script prints.
"""

import argparse
import inspect
import re
from pathlib import Path

from adamx.diagnostics import _rules, _rules_data, _rules_run
from adamx.diagnostics._advice import WORDS

PAGE = Path(__file__).parents[1] / "findings.md"
INTRODUCTION = """# Findings

<!-- Written by docs/scripts/findings.py: change the words there. -->

```python
import adamx

history = adamx.History()
for step in range(1, 9):
    still, well = {"r/p50": 2e-4, "still_share": 0.9}, {"r/p50": 0.15}
    layers = {"kernel": still, "bias": well}
    measured = adamx.reading.Diagnostics(1000 * step, layers)
    history.append(adamx.Reading(count=1000 * step, diagnostics=measured))
print(*adamx.health(history), sep="\\n")
```

```text
severe: kernel: the median of r is near zero
  median r 0.0002, share with r below 0.01 0.9, threshold 0.01, measurements 8,
  first step 1000, last step 8000
```

What `adamx.health` can find, one by one. Each picture is of a training run that was
made ill on purpose (digits, three hidden layers; `docs/scripts/finding_pictures.py`
makes them all, and checks that `health` finds what the picture is of). Grey are layers
as they should be.

Numbers of a layer are judged behind step 50 and behind the warmup of the rate, by their
last ten measurements. What "r" is: [Reading your optimizer](reading.md).
"""
# The kind: its rules, and what goes on, in plain words.
FINDINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "nonfinite": (
        ("nonfinite",),
        "Some element of a gradient is NaN or infinite, again and again. One such step "
        "without a guard makes the moments NaN, and they never recover.",
    ),
    "lost_loss": (
        ("lost_loss",),
        "The loss itself is gone. The parameters are most likely lost too: go back to "
        "a checkpoint.",
    ),
    "lost_val_loss": (
        ("lost_val_loss",),
        "Training goes on and its loss is finite; only what is evaluated is not. No "
        "guard of the optimizer can help: look at the evaluation, and at what the "
        "forward pass writes. One NaN batch stays in BatchNorm's running statistics.",
    ),
    "diverging": (
        ("diverging",),
        "The run is worse than at its start. Adam's steps have the size of the rate, "
        "whatever the gradient: too large a rate does not blow up at once, it walks "
        "away.",
    ),
    "burst": (
        ("burst",),
        "The loss went up before it came down. What training starts from is then the "
        "worst place that it has been in, not the initialization.",
    ),
    "stuck": (
        ("stuck",),
        "Nothing is learnt. The optimizer may be at work all the same: look at the "
        "layers' findings, which say where the gradient stops.",
    ),
    "exploding": (
        ("exploding", "exploding_norm"),
        "The gradient is a hundred times what it used to be. Adam forgives one such "
        "step; v then remembers it for 1 / (1 - b2) steps, all of which are short.",
    ),
    "growing": (
        ("exploding",),
        "The parameters double, and double again. What comes next is an overflow.",
    ),
    "dead": (
        ("dead",),
        "The layer gets no gradient at all while others do. In the picture its ReLU "
        "units never fire: what leads to them is dead, and what comes behind.",
    ),
    "ratio_high": (
        ("ratio_high",),
        "A step changes the layer by a tenth of itself or more. Healthy training is at "
        "a thousandth.",
    ),
    "eps_dominates": (
        ("eps_dominates",),
        "The denominator is eps, not the gradient's size. The elements no longer get "
        "steps of the size of the rate, but steps in proportion to their gradients: "
        "SGD at the rate lr / eps.",
    ),
    "tiny_early": (
        ("tiny_early",),
        "The first gradients were so large that v is still full of them. All layers "
        "stand nearly still until v has forgotten.",
    ),
    "near_zero": (
        ("near_zero",),
        "The layer stands still though it has gradients: they are far below what v "
        "remembers, or they cancel from step to step.",
    ),
    "outliers": (
        ("outliers",),
        "Few elements move and the many do not. Typical of rows that are rarely seen.",
    ),
    "oscillation": (
        ("oscillation", "alternating"),
        "Steps go forth and back. The gradient turns against the momentum again and "
        "again, or changes its sign at every step.",
    ),
    "unshuffled": (
        ("unshuffled",),
        "The loss goes up and down with a period: the batches come in an order, and "
        "the optimizer follows it.",
    ),
    "skipped": (
        ("skipped",),
        "A guard does its work too often. A skipped step in a hundred is a sign that "
        "something should be mended, not left out.",
    ),
    "ratio_low": (
        ("ratio_low",),
        "The layer hardly changes: at this pace it takes a hundred thousand steps to "
        "become another one.",
    ),
    "imbalance": (
        ("imbalance",),
        "One layer runs, or stands, while the others walk. One rate does not suit them "
        "all.",
    ),
    "rate_apart": (
        ("rate_apart",),
        "The layer's own rate is a hundred times that of the others: most often a slip "
        "in a rule of `adamx.groups`.",
    ),
    "gap": (
        ("gap",),
        "The training loss falls and the validation loss rises. Not an illness of the "
        "optimizer, but it can help.",
    ),
    "memorised": (
        ("memorised",),
        "Training wins, validation wins much less of it: what is learnt holds for the "
        "training data alone.",
    ),
    "plateau": (
        ("plateau",),
        "The validation loss falls by less than it jumps from one time to the next, at "
        "a rate that has not decayed yet. Often the noise of the steps is all that "
        "holds it up.",
    ),
    "ready_for_sgd": (
        ("ready_for_sgd",),
        "Good news: v no longer changes and m is mostly noise, so that Adam's step is "
        "SGD's with fixed rates. A decay now, or the hand-over.",
    ),
}


def rule_text(name: str) -> str:
    """What a rule's docstring says, as Markdown."""
    rooms = (_rules, _rules_run, _rules_data)
    rule = next(getattr(room, name) for room in rooms if hasattr(room, name))
    text = inspect.getdoc(rule) or ""
    text = text.replace(", see `is_solved`", "")
    parts = text.split("`")
    parts[::2] = [re.sub(r"[*_]", r"\\\g<0>", part) for part in parts[::2]]
    text = "`".join(parts)
    return re.sub(r"^Source:", "*Source*:", text, flags=re.MULTILINE)


def section(kind: str) -> str:
    words, (rules, plain) = WORDS[kind], FINDINGS[kind]
    symptom = words.symptom[0].upper() + words.symptom[1:]
    causes = "\n".join(f"- {_code(line)}" for line in words.causes)
    remedies = "\n".join(f"- {_code(line)}" for line in words.remedies)
    seen = "\n\n".join(rule_text(rule) for rule in rules)
    seen = "\n".join(f"    {line}" if line else "" for line in seen.splitlines())
    return f"""## {symptom}

{plain}

![{symptom}](pictures/findings/{kind}.png)

**Likely causes**

{causes}

**What to try**

{remedies}

??? note "When it is found"

{seen}
"""


def _code(line: str) -> str:
    """Names and calls of adamx and jax as code."""
    call = r"(?:\((?:[^()]|\([^()]*\))*\))?"
    line = re.sub(rf"\b((?:adamx|jax)\.\w+(?:\.\w+)*{call})", r"`\1`", line)
    return re.sub(r"(?<![`\w.(])((?:b[12]|eps) = [\d.e-]*\d)", r"`\1`", line)


def page() -> str:
    assert list(FINDINGS) == [kind for kind in WORDS if kind in FINDINGS]
    missing = set(WORDS) - set(FINDINGS)
    assert not missing, f"findings without plain words: {sorted(missing)}"
    return "\n".join([INTRODUCTION, *(section(kind) for kind in FINDINGS)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="docs/findings.md")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
