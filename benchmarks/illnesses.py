"""The question: does `adamx.health` find what is wrong, and nothing where all is well.

Each illness is planted at three strengths into real training runs of models that were
used for no threshold: in one layer, or in all. Behind 500 steps the cause is taken
away, and the run goes on for 500 more: the finding must be gone. Then runs of sound
optimizers, which must have none.

    python benchmarks/illnesses.py --jobs 2             # three quarters of an hour
    python benchmarks/illnesses.py --only settled       # 6,000 steps each: an hour more
    python benchmarks/illnesses.py --model hidden       # the one for setting it up
    python benchmarks/illnesses.py --only dead eps --write benchmarks/ILLNESSES.md
    python benchmarks/illnesses.py --jobs 2 --keep FOLDER   # every run's history, too
    python benchmarks/illnesses.py --again FOLDER       # judged anew, nothing trained
"""

import argparse
import concurrent.futures
import dataclasses
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import step_time
from _causes import EARLY, ILLNESSES, LATE, NO, RARE, SOUND, Illness
from _patients import PATIENTS, Patient
from _shelf import Shelf

import adamx
from adamx.diagnostics._advice import WORDS

EVERY = 10
PHASE = 500
SEEDS = 5
MOST_PHASES = 4  # what lasts longer is run where it is asked for
KIND = {words.symptom: kind for kind, words in WORDS.items()}
ABOUT = """# What health finds

Printed by `python benchmarks/illnesses.py --write benchmarks/ILLNESSES.md`. An illness
is planted in a run of 500 steps; then its cause is taken away and the run goes on for
500 (or begins again, where the parameters were lost). "Found": a finding that says what
is wrong (of which it is the likeliest cause), in the layer where it is. "Clears": it is
gone at the end. Bold in the second
table: the kinds that say what is wrong. "Harm": how much higher than in five sound
runs of other seeds the validation loss is while ill, against their median; in brackets
where one of the five is as high. Where the cure is a decay of the rate, or SGD for the
last 1,000 steps: against the loss behind it."""


class Run(NamedTuple):
    """A training run that goes on: its compiled step, and what it carries."""

    patient: Patient
    step: Callable[..., Any]
    validate: Callable[..., Any]
    init: Callable[..., Any]


def make_tx(patient: Patient, plant: dict[str, Any]) -> Any:
    rate = patient.rate * plant["rate"]
    sick = adamx.adamw(
        rate * plant["layer_rate"],
        b2=plant["b2"],
        eps=plant["layer_eps"],
        weight_decay=plant["layer_decay"],
    )
    rest = adamx.adamw(rate, b2=plant["b2"], weight_decay=0.01)
    by_layer = adamx.groups([(f"^{patient.sick}$", sick)], default=rest)
    return adamx.diagnose(adamx.guard(by_layer), every=EVERY)


def make_switching(patient: Patient, plant: dict[str, Any]) -> Any:
    """One for all layers: AdamW, and SGD behind step `switch`."""
    tx = adamx.adam_to_sgd(
        patient.rate * plant["rate"],
        switch_step=plant["switch"].astype(jnp.int32),
        weight_decay=0.01,
    )
    return adamx.diagnose(adamx.guard(tx), every=EVERY)


def ill_gradients(patient: Patient, grads: Any, plant: Any, step: Any) -> Any:
    """Gradients as the illness has them."""

    def change(path: Any, g: jax.Array) -> jax.Array:
        g = g * jnp.where(step < EARLY, plant["early"], 1.0)
        g = g * jnp.where(step >= LATE, plant["late"], 1.0)
        if "/".join(entry.key for entry in path) != patient.sick:
            return g
        g = g * jnp.where(step < EARLY, plant["layer_early"], 1.0)
        g = g * jnp.where(step >= LATE, plant["layer_late"], 1.0)
        is_rare = jnp.arange(g.shape[-1]) < plant["rare"] * g.shape[-1]
        g = jnp.where(is_rare & (step % RARE != 0), 0.0, g)
        is_nan = (step + 1) % plant["layer_nan"] == 0
        return g.at[(0,) * g.ndim].multiply(jnp.where(is_nan, jnp.nan, 1.0))

    return jax.tree_util.tree_map_with_path(change, grads)


def batch_of(patient: Patient, key: Any, plant: Any, step: Any) -> Any:
    total = len(jax.tree.leaves(patient.train)[0])
    among = jnp.minimum(plant["examples"], total)
    key = jax.random.fold_in(key, jnp.where(plant["fixed"] > 0, 0, step))
    place = jax.random.uniform(key, (patient.batch,))
    parts = jnp.maximum(plant["sorted"], 1.0)
    place = (place + step % parts) / parts
    at = (place * among).astype(jnp.int32)
    at = at * (total // among).astype(jnp.int32)  # few examples: of all kinds
    batch = jax.tree.map(lambda x: jnp.asarray(x)[at], patient.train)
    changed = patient.augment(jax.random.fold_in(key, 1), batch)
    is_plain = (plant["fixed"] > 0) | (plant["examples"] < NO)
    return jax.tree.map(lambda a, b: jnp.where(is_plain, a, b), batch, changed)


def prepared(patient: Patient, make_tx: Callable[..., Any] = make_tx) -> Run:
    """Compiled: a step with a plant, and the loss of what is held out."""

    @jax.jit
    def step(params: Any, state: Any, number: Any, plant: Any, key: Any) -> Any:
        batch = batch_of(patient, key, plant, number)
        left = jnp.clip((plant["decayed"] - number) / PHASE, 0.0, 1.0)
        plant = {**plant, "rate": plant["rate"] * left}

        def loss_fn(p: Any) -> jax.Array:
            losses = patient.losses(p, batch)
            counts = jnp.arange(len(losses)) < plant["batch"]
            loss = jnp.where(counts, losses, 0.0).sum() / counts.sum()
            is_nan = (number + 1) % plant["batch_nan"] == 0
            is_nan |= number >= plant["nan_from"]
            return loss * jnp.where(is_nan, jnp.nan, 1.0)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        grads = ill_gradients(patient, grads, plant, number)
        updates, state = make_tx(patient, plant).update(grads, state, params)
        return adamx.apply_updates(params, updates), state, loss

    @jax.jit
    def init(key: Any) -> Any:
        params = patient.init(key)
        plant = {k: jnp.float32(v) for k, v in SOUND.items()}
        return params, make_tx(patient, plant).init(params)

    @jax.jit
    def validate(params: Any, plant: Any) -> jax.Array:
        losses = patient.losses(params, patient.held_out)
        is_nan = jnp.arange(len(losses)) < plant["val_nan"]
        return jnp.where(is_nan, jnp.nan, losses).mean()

    return Run(patient, step, validate, init)


def shifted(params: Any, layer: str, by: float) -> Any:
    return {**params, layer: {**params[layer], "bias": params[layer]["bias"] + by}}


def train(
    run: Run,
    carry: Any,
    plant: Any,
    seed: int,
    start: int,
    history: adamx.History,
    is_blind: bool = False,
    phases: int = 1,
) -> Any:
    """Some phases; appends to the history every `EVERY` steps, losses of all steps."""
    key = jax.random.key(seed)
    plant = {k: jnp.float32(v) for k, v in {**SOUND, **plant}.items()}
    for at in range(start, start + phases * PHASE, EVERY):
        params, state = carry
        losses = []
        for number in range(at, at + EVERY):
            params, state, loss = run.step(
                params, state, jnp.float32(number), plant, key
            )
            losses.append(loss)
        carry = params, state
        val_loss = run.validate(params, plant)
        for k, loss in enumerate(losses[:-1]):
            history.append(adamx.Reading(), loss=loss, step=at + 1 + k)
        reading = adamx.read(state)
        if is_blind:
            reading = dataclasses.replace(reading, diagnostics=None)
        history.append(reading, loss=losses[-1], val_loss=val_loss, step=at + EVERY)
    return carry


def optimizers(rate: float) -> dict[str, Any]:
    """Sound ones, for runs of 2 * PHASE steps."""
    total, int8 = 2 * PHASE, adamx.codecs.int8(min_size=0)
    cosine = adamx.schedules.warmup_cosine(2 * rate, total, warmup=0.05)
    clip = adamx.clip_by_global_norm(1.0)
    return {
        "adamw": adamx.adamw(rate, weight_decay=0.01),
        "adamw, warmup-cosine, clip": optax.chain(
            clip, adamx.adamw(cosine, b2=0.95, weight_decay=0.1)
        ),
        "adam, b2 = 0.99": adamx.adam(rate, b2=0.99),
        "adamw, int8": adamx.adamw(rate, mu_dtype=int8, nu_dtype=int8),
        "nadamw": adamx.nadamw(rate),
        "radam": adamx.radam(rate),
        "amsgrad": adamx.amsgrad(rate),
        "lamb": adamx.lamb(5 * rate, weight_decay=0.01),
        "rmsprop": adamx.rmsprop(rate / 2, decay=0.99),
        "stable_adamw": adamx.stable_adamw(rate),
        "adamax": adamx.adamax(rate),
        "ademamix": adamx.ademamix(rate),
    }


def be_well(name: str, run: Run, seed: int, shelf: Shelf) -> set[tuple[str, str]]:
    """What health says of a sound run."""
    at = "sound", name, model_name(run)
    if shelf.is_read:
        return findings(shelf.load(*at))
    patient, history = run.patient, shelf.new(*at)
    tx = adamx.diagnose(optimizers(patient.rate)[name], every=EVERY)
    own = prepared(patient, lambda patient, plant: tx)
    carry = own.init(jax.random.key(seed))
    for start in (0, PHASE):
        carry = train(own, carry, {}, seed, start, history)
    return findings(history)


def findings(history: adamx.History) -> set[tuple[str, str]]:
    return {(KIND[f.symptom], f.layer or "all") for f in adamx.health(history)}


class Harm(NamedTuple):
    """What an illness does to the validation loss.

    Attributes:
      ill: medians of the last 5 while ill.
      sound: those of sound runs of as many steps, with other seeds; of a run that the
        decay of the rate or the hand-over to SGD cures, its own at the end.
    """

    ill: float
    sound: tuple[float, ...]

    def __str__(self) -> str:
        """By how much it is higher than the median sound one."""
        if not math.isfinite(self.ill):
            return "lost"
        times = self.ill / float(np.median(self.sound))
        text = f"{100 * (times - 1):+.0f} %" if times < 10 else f"{times:.0f} times"
        is_within = self.ill <= max(self.sound) and len(self.sound) > 1
        return f"({text})" if is_within else text


class Outcome(NamedTuple):
    """What health said of one run: while ill, and behind the cure."""

    illness: str
    strength: float
    model: str
    ill: set[tuple[str, str]]
    cured: set[tuple[str, str]]
    right: set[tuple[str, str]]
    harm: Harm


def last_validation(history: adamx.History) -> float:
    """The median of the last 5."""
    values = history.column("val_loss")[history.is_recorded("val_loss")]
    return float(np.median(values[-5:]))


def sound_losses(run: Run, shelf: Shelf) -> tuple[float, ...]:
    """The last validation losses of `SEEDS` sound runs of a phase."""
    found = []
    for k in range(SEEDS):
        at = "reference", f"seed {k}", model_name(run)
        history = shelf.load(*at) if shelf.is_read else shelf.new(*at)
        if not shelf.is_read:
            seed = 20 + SEEDS * run.patient.seed + k
            train(run, run.init(jax.random.key(seed)), {}, seed, 0, history)
        found.append(last_validation(history))
    return tuple(found)


def right_findings(illness: Illness, patient: Patient) -> set[tuple[str, str]]:
    """The kinds that say what is wrong, with the layers that have it."""
    params = jax.eval_shape(patient.init, jax.random.key(0))
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = ["/".join(entry.key for entry in path) for path in paths]
    layers = {
        "layer": [patient.sick],
        "relu": [f"{patient.relu}/kernel", f"{patient.relu}/bias"],
        "all": ["all", *names],
    }
    return {(k, layer) for k in illness.found for layer in layers[illness.where]}


def fall_ill(
    name: str, strength: float, run: Run, sound: tuple[float, ...], shelf: Shelf
) -> Outcome:
    """What health says of a run made ill, and behind the cure."""
    at = name, float(strength), model_name(run)
    if shelf.is_read:
        course_: Any = (shelf.load(*at, phase) for phase in ("ill", "cured"))
    else:
        course_ = course(name, strength, run, shelf)
    # One after the other: without a folder the second goes on in the first.
    said = [(findings(history), last_validation(history)) for history in course_]
    (ill, ill_loss), (cured, cured_loss) = said
    is_own = ILLNESSES[name].decays or ILLNESSES[name].hands_over
    harm = Harm(ill_loss, (cured_loss,) if is_own else sound)
    right = right_findings(ILLNESSES[name], run.patient)
    return Outcome(*at, ill, cured, right, harm)


def course(
    name: str, strength: float, run: Run, shelf: Shelf
) -> Iterator[adamx.History]:
    """Trains: the history while ill, and then that behind the cure."""
    illness, patient = ILLNESSES[name], run.patient
    seed = patient.seed
    at = name, float(strength), model_name(run)
    history = shelf.new(*at, "ill")
    carry = run.init(jax.random.key(seed))
    if illness.bias:
        carry = (shifted(carry[0], patient.relu, strength), carry[1])
    plant, is_blind = dict(illness.plant(strength)), illness.is_blind
    if "too_fast" in plant:
        plant["rate"] = plant.pop("too_fast") * patient.too_fast
    steps = illness.phases * PHASE
    carry = train(run, carry, plant, seed, 0, history, is_blind, illness.phases)
    yield history
    if illness.bias:
        carry = (shifted(carry[0], patient.relu, -strength), carry[1])
    if illness.restart:
        carry = run.init(jax.random.key(seed))
    history = shelf.new(*at, "cured", after=None if illness.restart else history)
    start = 0 if illness.restart else steps
    cure, phases = illness.cure, 1
    if illness.decays:
        cure = {**plant, "decayed": steps + PHASE}
    if illness.hands_over:
        cure, phases = {**plant, "switch": steps, "decayed": steps + 2 * PHASE}, 2
    train(run, carry, cure, seed, start, history, is_blind, phases)
    yield history


def model_name(run: Run) -> str:
    return run.patient.init.__qualname__.split(".")[0]


def text(found: Sequence[tuple[str, str]]) -> str:
    by_kind: dict[str, list[str]] = {}
    for kind, layer in sorted(found):
        by_kind.setdefault(kind, []).append(layer)
    return "; ".join(f"{k}: {', '.join(v)}" for k, v in by_kind.items()) or "none"


def row(outcome: Outcome) -> list[str]:
    found = outcome.ill & outcome.right
    still = outcome.cured & outcome.right
    return [
        ILLNESSES[outcome.illness].cause,
        f"{outcome.strength:g}",
        outcome.model,
        str(outcome.harm),
        "yes" if found else "**no**",
        text(sorted(outcome.ill)),
        "**no**" if still else "yes",
        text(sorted(outcome.cured)),
    ]


HEAD = ["cause", "strength", "model", "harm", "found", "findings", "clears", "then"]


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |"]
    lines.append("|" + " --- |" * len(head))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def confusion(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """In how many runs of each illness each kind was found, in any layer."""
    kinds = [k for k in WORDS if any(k in {a for a, _ in o.ill} for o in outcomes)]
    lines = []
    for name, illness in ILLNESSES.items():
        own = [o for o in outcomes if o.illness == name]
        if own:
            found = [sum(k in {a for a, _ in o.ill} for o in own) for k in kinds]
            right = sum(bool(o.ill & o.right) for o in own)
            cells = [
                f"**{n}**" if k in illness.found and n else str(n or "")
                for k, n in zip(kinds, found, strict=True)
            ]
            lines.append([name, f"{right} of {len(own)}", *cells])
    return ["planted", "found", *kinds], lines


def judge_model(
    model: str, chosen: Sequence[str], is_quick: bool, shelf: Shelf
) -> tuple[list[Outcome], list[list[str]]]:
    """All runs of one model: outcomes, and rows of sound runs."""
    run = prepared(PATIENTS[model]())
    switching = prepared(run.patient, make_switching)
    outcomes, well = [], []
    ill = [name for name in chosen if name != "well"]
    sound = sound_losses(run, shelf) if ill else ()
    for name in ill:
        strengths = ILLNESSES[name].strengths
        for strength in strengths[:1] if is_quick else strengths:
            own = switching if ILLNESSES[name].hands_over else run
            outcomes.append(fall_ill(name, strength, own, sound, shelf))
            print(" | ".join(row(outcomes[-1])), flush=True)
    if "well" in chosen:
        names = list(optimizers(1.0))
        for name in names[:1] if is_quick else names:
            found = be_well(name, run, 10 + run.patient.seed, shelf)
            well.append([name, model_name(run), text(sorted(found))])
            print(" | ".join(well[-1]), flush=True)
    return outcomes, well


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=PATIENTS, default=None)
    parser.add_argument("--only", nargs="+", choices=[*ILLNESSES, "well"], default=None)
    parser.add_argument("--quick", action="store_true", help="one strength")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--write", type=Path, help="a file for the tables")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--keep", type=Path, help="a folder for the histories")
    kept.add_argument("--again", type=Path, help="a folder of --keep: judged anew")
    options = parser.parse_args(arguments)
    shelf = Shelf(options.again or options.keep, is_read=bool(options.again))
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    models = options.model or [name for name in PATIENTS if name != "hidden"]
    short = [name for name, own in ILLNESSES.items() if own.phases <= MOST_PHASES]
    chosen = options.only or [*short, "well"]
    jobs = [(m, chosen, options.quick, shelf) for m in models]
    columns = list(zip(*jobs, strict=True))
    if options.jobs > 1:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(options.jobs, spawn) as pool:
            found = list(pool.map(judge_model, *columns))
    else:
        found = list(map(judge_model, *columns))
    # By cause and strength, one model beside the other.
    by_model = [outcomes for outcomes, _ in found]
    outcomes = [o for group in zip(*by_model, strict=True) for o in group]
    well = [line for _, lines in found for line in lines]
    tables = [f"{step_time.device_name()}; {step_time.versions()}"]
    if outcomes:
        tables.append(show("Planted illnesses", HEAD, [row(o) for o in outcomes]))
        tables.append(show("Confusion", *confusion(outcomes)))
    if well:
        tables.append(show("Sound runs", ["optimizer", "model", "findings"], well))
    print("\n" + "\n\n".join(tables))
    if options.write:
        options.write.write_text("\n\n".join([ABOUT, *tables]) + "\n")


if __name__ == "__main__":
    main()
