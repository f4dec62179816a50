"""HISTORY -> PAGE: a run as one HTML file that loads nothing."""

import base64
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from adamx import _checks
from adamx.diagnostics import _facts, _report_html, _report_layers
from adamx.diagnostics._chart import escape
from adamx.diagnostics._health import not_judged
from adamx.diagnostics._history import History


def report(
    history: History,
    path: str | os.PathLike[str],
    *,
    findings: Iterable[Any] | None = None,
    title: str | None = None,
) -> pathlib.Path:
    """Writes one self-contained HTML page about a run.

    Findings with advice; losses with the rate; a layer x time heat map of the median r
    (and of other numbers); percentile bands and update/parameter ratios of each layer,
    with the 1e-3 line; norms and skipped steps; a table of all layers' last values.

    The page loads nothing, and reads without a script (which adds values under the
    pointer and a choice of layers), in light and dark, on a desktop and a phone. Time
    is drawn in at most 400 columns (100 in the layers' small charts): each is the
    median of the consecutive measurements in it, and for the loss and the gradient norm
    their mean, with the least and the greatest behind it. 200 layers x 1,000 readings
    make less than 5 MB.

    Args:
      history: with at least one record.
      path: the file to write; an older one is replaced once the new one is complete.
      findings: what to put on top: objects with `layer`, `symptom`, `evidence` (text,
        or a dict of numbers), `likely_causes`, `what_to_try`, `severity`. None: those
        of `adamx.health(history)`; (): none.
      title: of the page; None: the name of the history's file.

    Returns:
      The path that was written.

    Raises:
      TypeError, ValueError: no History, one without records, no findings.
      FileNotFoundError, IsADirectoryError: nothing can be written at `path`.

    >>> import adamx, jax.numpy as jnp, pathlib, tempfile
    >>> tx = adamx.adamw(1e-3)
    >>> history, state = adamx.History(), tx.init({"w": jnp.ones(4)})
    >>> history.append(adamx.read(state), loss=1.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = report(history, pathlib.Path(folder) / "run.html")
    ...     page.read_text()[:15]
    '<!doctype html>'
    """
    target = _check(history, path)
    if title is None:
        title = history.path.name if history.path else "Training run"
    text = page(history, _facts.find(history, findings), str(title))
    _write(target, text.encode())
    return target


def page(history: History, findings: Sequence[_facts.Advice], title: str) -> str:
    """The whole page as text."""
    folder = resources.files("adamx.diagnostics")
    style = folder.joinpath("_report.css").read_text(encoding="utf-8")
    script = folder.joinpath("_report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{style}</style></head>"
    )
    sections = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>{body}'
        "</section>"
        for name, heading, body in _sections(history, findings)
    )
    return (
        f"{head}<body><header><h1>{escape(title)}</h1>{_report_html.tiles(history)}"
        f"</header><main>{sections}</main>{_footer(history)}"
        f'<div id="tip" role="status" hidden></div><script>{script}</script>'
        "</body></html>\n"
    )


def _sections(
    history: History, findings: Sequence[_facts.Advice]
) -> list[tuple[str, str, str]]:
    """Id, heading and body of each."""
    layers = _report_layers.gather(history)
    loss = ("loss", "Loss and learning rate", _report_html.losses(history))
    norms = ("norms", "Norms and skipped steps", _report_html.norms(history))
    body = _report_html.findings(findings, not_judged(history), layers.ids)
    top = ("findings", "Findings", body)
    if not layers.names:
        body = (
            "<p>No layer was measured. Wrap the optimizer: "
            "<code>adamx.diagnose(tx, every=100)</code>.</p>"
        )
        return [top, loss, ("layers", "Layers", body), norms]
    bands = _facts.percentiles(history)
    middle = _facts.middle(history)
    named = [one.layer for one in findings]
    start = _facts.common_start(layers.names)
    note = f"<p>All names begin with <code>{escape(start)}</code>.</p>" if start else ""
    cards = _cards_note(bands, len(layers.names))
    body = cards + _report_layers.cards(layers, bands, named)
    sections = [
        top,
        loss,
        ("maps", "Layers over time", note + _report_layers.heat_maps(layers, middle)),
        ("ratios", "Update/parameter ratios", _report_layers.ratios(layers)),
        ("cards", "Effective steps, layer by layer", body),
        norms,
    ]
    if history.is_recorded("val_loss").any() and bands:
        found = history.relate()
        intro = (
            "<p>Rank correlation of r with the change of the validation loss that "
            "follows; the drift of both with time taken out. A place to look at, not a "
            "cause.</p>"
        )
        body = intro + _report_layers.relations(found, layers)
        heading = "Layers that move with the validation loss"
        sections.append(("relations", heading, body))
    body = "<details><summary>Last values of every layer</summary>"
    body += _report_layers.table(layers, bands) + "</details>"
    return [*sections, ("table", "Table of layers", body)]


def _cards_note(bands: Sequence[tuple[float, str]], count: int) -> str:
    if not bands:
        return ""
    names = ", ".join(f"p{percent:g}" for percent, _ in bands)
    text = f"<p>r = |m̂| / (√v̂ + eps), the step in units of the rate: {names}"
    text += "; shaded from the lowest to the highest. Below it, where measured, the "
    text += "update ratio with the 1e-3 line dashed. All charts share their scales; "
    text += "values beyond them are drawn at the edge."
    if count > _report_layers.CARDS_SHOWN:
        text += (
            f" Shown: layers with findings, then those with the smallest r at the end; "
            f"{_report_layers.CARDS_SHOWN} in all."
        )
    options = '<p class="scripted"><label>Layers whose name has <input type="search" '
    options += 'id="filter" autocomplete="off"></label></p>'
    return text + "</p>" + options


def _footer(history: History) -> str:
    drawn = (
        f"Drawn in at most {_report_layers.COLUMNS} columns of time "
        f"({_report_layers.CARD_COLUMNS} in small charts): a column is the median of "
        "the consecutive measurements in it; for losses and norms the mean."
    )
    broken = ""
    if history.broken:
        lines = ", ".join(str(line.number) for line in history.broken[:20])
        broken = (
            f" {len(history.broken)} broken lines of the file were left out: {lines}."
        )
    return f"<footer><p>{drawn}{broken}</p></footer>"


# --------------------------------------------------------------------- checks, writing


def check_history(history: Any) -> None:
    """A History with something to show."""
    if not isinstance(history, History):
        raise TypeError(
            f"`history` must be an adamx.History, got "
            f"{_checks.describe_value(history)}; load one: adamx.History.load(path)."
        )
    if not len(history):
        raise ValueError(
            "`history` must have records, got an empty one; append readings to it: "
            "history.append(adamx.read(state), loss=loss)."
        )


def _check(history: Any, path: Any) -> pathlib.Path:
    check_history(history)
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"`path` must be a file's path, got {_checks.describe_value(path)}; pass "
            "e.g. 'run.html'."
        )
    target = pathlib.Path(path)
    if target.is_dir():
        raise IsADirectoryError(
            f"`path` must be a file, got the folder '{target}'; pass e.g. "
            f"'{target / 'run.html'}'."
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"`path` must be in a folder that exists, got '{target}'; make "
            f"'{target.parent}' first."
        )
    if history.path is not None and target.resolve() == history.path.resolve():
        raise ValueError(
            f"`path` must be another file than the history's own, got '{target}'; pass "
            f"e.g. '{target.with_suffix('.html')}'."
        )
    return target


def _write(target: pathlib.Path, content: bytes) -> None:
    """All of it or nothing: one may be looking at the older page."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
