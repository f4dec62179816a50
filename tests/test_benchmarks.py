"""The comparisons run, and the tables that are quick to make say what they must."""

import importlib
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import adamx
from tests.helpers import TEMPORARIES, some

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
MODULES = (
    "_problems",
    "_tasks",
    "_tables",
    "_patients",
    "_causes",
    "step_time",
    "family",
)
MODULES += ("paper_tables", "memory", "codes", "control", "diagnostics", "sweep")
MODULES += ("sharding", "illnesses", "plan", "resume")
MODULES += ("_trees", "_machine", "_contestants", "_bounds", "_subjects", "_norms")
MODULES += ("_growth", "repeated")


@pytest.fixture(scope="module")
def modules():
    """The scripts as modules; their folder is importable only meanwhile."""
    mpl.use("Agg")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name)


def table(modules, name, out):
    return next(iter(modules["paper_tables"].TABLES[name](out)))[2]


def test_adam_does_not_converge_where_amsgrad_does(modules, tmp_path):
    rows = table(modules, "counterexample", tmp_path)
    assert [row[-1] for row in rows] == ["+1.000", "-1.000"]


def test_rectification_is_that_of_the_paper(modules, tmp_path):
    for _, _, exact, stated, here in table(modules, "rectification", tmp_path)[1:]:
        assert here == exact == stated


def test_only_adamw_is_blind_to_the_scale_of_the_loss(modules, tmp_path):
    rows = table(modules, "invariance", tmp_path)
    assert float(rows[0][-1]) == 0.0
    assert float(rows[1][-1]) > 1e-2


def test_the_switch_is_that_of_float64(modules, tmp_path):
    step, rate = table(modules, "switch", tmp_path)
    assert step[1] == step[2]
    assert float(rate[2].split()[0]) == pytest.approx(float(rate[1]), rel=1e-4)


def test_lion_steps_by_the_rate(modules, tmp_path):
    assert table(modules, "lion", tmp_path)[0][-1] == "0, 0.001"


@pytest.mark.slow
def test_the_family_is_compared_and_drawn(modules, tmp_path):
    family, tasks = modules["family"], modules["_tasks"]
    task = tasks.digits()
    results = {}
    for name in ("adam", "sophia_g", "schedule_free_adamw"):
        make_tx = family.makers()[name]
        results[name] = {"digits": family.compare(make_tx, task, 3)}
        results[name]["characters"] = results[name]["digits"][:1]
        results[name]["saddle"] = family.escape(make_tx)
    assert len(family.rows(results)) == 3
    assert all(np.isfinite(r["digits"][0]["mean"]) for r in results.values())
    family.draw(results, tmp_path / "family.png")
    assert (tmp_path / "family.png").stat().st_size > 10_000


def test_everybody_is_compared(modules):
    assert set(modules["family"].makers()) >= {
        entry.name for entry in adamx.catalogue.OPTIMIZERS
    }


@pytest.mark.slow
def test_what_is_stored_takes_the_bytes_it_should(modules):
    memory = modules["memory"]
    shapes = [(64, 64), (64,), (128, 64)]  # of 12,352 elements 64 are in a small leaf
    rows = {row.name: row for row in memory.rows()}

    def state(name):
        return float(memory.bytes_of(rows[name], shapes)[2])

    assert state("float32") == pytest.approx(8.0, abs=0.02)
    assert state("mu bfloat16") == pytest.approx(6.0, abs=0.02)
    assert state("bfloat16, stochastic") == pytest.approx(4.0, abs=0.06)
    assert 2.0 < state("fp8") < 2.5
    assert 2.0 < state("int8") < 2.5
    assert 1.0 < state("int4") < 1.5
    split, master = (
        state(f"weights bfloat16, {x}") for x in ("split master", "master")
    )
    assert master - split == pytest.approx(2.0, abs=0.02)


def test_bits_of_a_dtype(modules):
    bits_of = modules["memory"].bits_of
    names = ("bool", "int4", "uint8", "bfloat16", "float8_e4m3fn", "float32", "int32")
    assert [bits_of(jnp.dtype(n)) for n in names] == [8, 4, 8, 16, 8, 32, 32]


def test_the_interval_is_that_of_student(modules):
    mean, half_width = modules["memory"].interval(np.arange(10.0))
    assert mean == 4.5
    assert half_width == pytest.approx(2.262157 * 3.0276503540974917 / 10**0.5)


@pytest.mark.slow
def test_plain_bfloat16_weights_freeze(modules):
    memory, task = modules["memory"], modules["_tasks"].digits()
    rows = {row.name: row for row in memory.rows()}
    loss = {
        name: memory.train(rows[name], task, 100, [3e-4], [0]).loss[0]
        for name in ("float32", "weights bfloat16, nearest")
    }
    assert loss["weights bfloat16, nearest"] > loss["float32"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ("bytes",),
        ("time", "digits"),
        ("characters", "rates"),
    ],
    ids="-".join,
)
def test_storage_is_compared(modules, capsys, parts):
    memory = modules["memory"]
    memory.main(["--quick", "--parts", *parts])
    printed = capsys.readouterr().out
    assert all((f"\n{part}: " in printed) == (part in parts) for part in memory.PARTS)
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    # bytes: a table more, of one array.
    tables = len(parts) + ("bytes" in parts)
    assert sum("| float32 | " in line for line in lines) == tables
    if "characters" not in parts:
        assert sum(memory.QUICK_ROWS[0] in line for line in lines) == len(parts)
    assert "nan" not in printed


def test_the_dynamic_code_is_that_of_the_paper(modules):
    signed, unsigned = map(modules["codes"].dynamic_numbers, (True, False))
    assert len(set(signed)) == len(set(unsigned)) == 256
    assert np.array_equal(np.sort(-signed[:-1]), signed[:-1])  # but 1, without a -1
    assert signed[-1] == unsigned[-1] == 1
    for numbers, first in ((signed, 1), (unsigned, 2)):
        edges = 10.0 ** np.arange(-7, 1)
        counts = np.histogram(numbers[numbers > 0][:-1], edges)[0]
        assert list(counts) == [first * 2**decade for decade in range(7)]
    assert signed[128] == pytest.approx(5.5e-7)  # the middle of the lowest decade


@pytest.mark.parametrize("is_signed", some([True, False], True))
def test_codes_are_of_the_nearest_number(modules, is_signed):
    x = jnp.asarray(np.random.default_rng(0).uniform(-is_signed, 1, 1000), jnp.float32)
    for name, make in modules["codes"].CODES.items():
        code = make(8, is_signed)
        many = jnp.linspace(-is_signed, 1, 2**16)
        every = np.unique(code.decode(code.encode(many)))
        read = code.decode(code.encode(x))
        assert np.array_equal(code.decode(code.encode(read)), read), name
        gap = np.abs(every[:, None] - np.asarray(x)).min(0)
        # sqrt, fourth and log are nearest in their own measure, not in x; to float8,
        # older versions of XLA round by way of float16.
        slack = 1.0 if name == "linear" or "dynamic" in name else 1.1
        assert (np.abs(read - x) <= slack * gap + 1e-6).all(), name


def test_the_codes_compared_are_those_of_the_library(modules):
    codes = modules["codes"]
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.standard_normal((5, 64, 64)), jnp.float32)
    for bits, pair in ((8, ("sqrt", "sqrt")), (4, ("linear", "sqrt"))):
        ends = []
        for tx in (
            codes.coded(bits, *pair),
            codes.adamw(*codes.made(f"int{bits}: rank1")),
        ):
            start = jnp.zeros((64, 64))
            carry = codes.follower(tx)((start, tx.init(start)), gradients)
            ends.append(np.asarray(carry[0]))
        # A number between two codes may go either way.
        assert np.mean(np.abs(ends[0] - ends[1])) < 1e-3 * np.mean(np.abs(ends[0]))


def test_what_is_measured_is_there(modules):
    codes = modules["codes"]
    init, gradient = codes.make_problem()
    key = jax.random.key(0)
    params = jax.eval_shape(init, key)
    found = codes.measured(jax.eval_shape(gradient, params, key))
    assert found["embedding"][0].shape == (2048, 64)
    assert found["head"][0].shape == (64, 2048)
    assert {len(leaves) for leaves in found.values()} == {1, 2, 4}
    assert all(x.size >= codes.MIN_SIZE for x in jax.tree.leaves(found))


@pytest.mark.slow
def test_codes_and_layouts_are_compared(modules, capsys):
    codes = modules["codes"]
    codes.main(["--quick", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    names = [row[0] for row in rows if len(row) > 1]
    assert names.count(codes.MOVED) == 2
    error = {row[0]: float(row[2].split(" / ")[1]) for row in rows if "/" in row[2]}
    assert 0 < error["int8: rank1"] < error["4 bits: linear, sqrt"] < 0.2


def test_the_trees_are_what_they_are_said_to_be(modules):
    trees = {name: make() for name, make in modules["_trees"].TREES.items()}
    sizes = {n: sorted(map(np.prod, shapes)) for n, shapes in trees.items()}
    counts = {"one": 1, "gpt2": 148, "many": 500, "many2000": 2000, "experts": 3000}
    assert {name: len(found) for name, found in sizes.items()} == counts
    assert sum(sizes["gpt2"]) == 124_439_808
    experts = np.unique(sizes["experts"], return_counts=True)
    assert {int(size): int(n) for size, n in zip(*experts, strict=True)} == {
        **{32: 28, 256: 142, 8192: 2688 + 28, 65_536: 112, 262_144: 1},
        50257 * 256: 1,
    }


def test_groups_are_measured_with_all_references(modules):
    contestants, calls = modules["_contestants"], []

    def entry(name, is_reference):
        def make():
            calls.append(f"make {name}")
            step, wait = (lambda: calls.append(name)), (lambda: calls.append("wait"))
            return contestants.Contestant(name, step, None if is_reference else wait)

        return contestants.Entry(make, is_reference)

    names = {"a": False, "b": True, "c": False, "d": True, "e": False}
    results = contestants.compare([entry(*x) for x in names.items()], 2, 2)
    assert [r.name for r in results] == ["b", "d", "a", "c", "e"]
    assert all(set(r.ratios) == {"b", "d"} for r in results)
    assert results[0].ratios["b"] == results[1].ratios["d"] == 1.0
    assert [r.dispatch is None for r in results] == [True, True, False, False, False]
    rounds = 2 + 3  # with those to warm up, in each of two groups
    assert [calls.count(x) for x in "abcde"] == [rounds, 2 * rounds] * 2 + [rounds]
    assert calls.index("make e") > max(i for i, x in enumerate(calls) if x in "ac")
    assert calls.count("wait") == 3 * rounds


TIMES = {"one": [1.0, 2.0, 3.0, 6.0, 20.0], "other": [1.0, 1.0, 1.0, 2.0, 4.0]}


def test_a_ratio_is_the_median_of_the_rounds(modules):
    contestants = modules["_contestants"]
    one, other = (contestants.Contestant(n, None, times=t) for n, t in TIMES.items())
    found = contestants.result(one, [one, other])
    assert found.ratios == {"one": 1.0, "other": 3.0}
    assert found.times == (2.0, 3.0, 6.0)


def test_a_bound_goes_over_all_elements(modules, monkeypatch):
    bounds = modules["_bounds"]
    loops = bounds.library()
    if loops is None:
        pytest.skip("there is no C compiler here")
    x = np.arange(1000, dtype=np.float32)
    assert loops.read(bounds.pointer(x), x.size) == x.sum()
    p, m, v, g = (np.full(1003, k, np.float32) for k in range(1, 5))
    bounds.in_threads(
        lambda *pieces: loops.stream(*map(bounds.pointer, pieces), pieces[0].size),
        *(p, m, v, g),
    )()
    np.testing.assert_allclose(m, 2.2, rtol=1e-6)
    np.testing.assert_allclose(v, 3.013, rtol=1e-6)
    np.testing.assert_allclose(p, 1 - 0.0022 * 3.013, rtol=1e-6)
    assert bounds.make_stream(64).name == "stream, 7 accesses (C)"
    monkeypatch.setattr(bounds, "library", lambda: None)
    for made in (bounds.make_stream(64, 5), bounds.make_read(64)):
        made.step()
        assert made.name.endswith("(NumPy)")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for made in (bounds.make_stream(64), bounds.make_read(64)):
        made.step()
        assert made.name.endswith("(XLA)")


def test_exponents_are_of_the_larger_half(modules):
    sizes = [1, 2, 4, 8, 16, 32]
    values = [7.0, 7.0, 7.0] + [3 * n**1.5 for n in sizes[3:]]
    assert modules["_growth"].exponent(sizes, values) == pytest.approx(1.5)
    assert np.isnan(modules["_growth"].exponent([1], [2.0]))


def table_rows(printed):
    """By title and name: the cells of printed Markdown tables, by their heads."""
    found, title, head = {}, "", []
    for line in printed.splitlines():
        if line.startswith("**"):
            title, head = line.strip("*"), []
        elif line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if head and not cells[0].startswith("---"):
                found[title, cells[0]] = dict(zip(head, cells, strict=True))
            head = head or cells
    return found


@pytest.fixture
def run_step_time(modules, capsys, monkeypatch, tmp_path):
    """The tables that step_time.py prints; what it compiles, it compiles anew."""
    monkeypatch.setenv("ADAMX_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        modules["step_time"].main(["--quick", *arguments])
        return table_rows(capsys.readouterr().out)

    return run


def test_steps_are_timed(modules, run_step_time):
    names = ["stream", "identity", "optax", "torch_fused", "adamx", "native"]
    choice = ["--trees", "many", "--subjects", "lion", "--contestants", *names]
    rows = run_step_time(*choice, "--skip", "many:li*:adamx", "--memory", "0")
    title = "many (4 leaves, 0.000128M elements), Lion"
    kept = ["identity of p, state, g", "identity of p, g", "optax"]
    kept += ["adamx native"]
    timed = [name for where, name in rows if where == title]
    assert [x for x in timed if not x.startswith("stream, 5 accesses")] == kept
    assert rows[title, "optax"]["to optax"] == "1.00"
    built = {name: cells for (where, name), cells in rows.items() if where != title}
    assert list(built) == kept
    assert built["optax"]["to optax"] == "1.00"
    has_compiler = modules["_machine"].compiler() is not None
    assert int(built["adamx native"]["calls"]) == has_compiler
    assert (float(built["adamx native"]["C s"]) > 0) == has_compiler
    assert (built["optax"]["calls"], built["optax"]["C s"]) == ("0", "0.00")


def test_the_norm_is_timed(modules, run_step_time):
    rows = run_step_time("--norm", "--trees", "many")
    built = {
        name: cells for (where, name), cells in rows.items() if "compiled" in where
    }
    assert list(built) == ["a sum for each leaf", "adamx", "adamx native"]
    calls = modules["_machine"].compiler() is not None
    assert [int(cells["calls"]) for cells in built.values()] == [0, 0, calls]


@pytest.mark.slow
def test_growth_is_timed_and_drawn(run_step_time, tmp_path):
    path = tmp_path / "growth.png"
    chosen = ["--subjects", "lion", "--contestants", "stream", "adamx"]
    left_out = ["--skip", "leaves4:*:adamx"]
    rows = run_step_time("--growth", "--plot", str(path), *chosen, *left_out)
    assert len(rows) == 2 * 2 + 2  # no compiling of a bound
    row = rows["Lion, leaves of 32: a step, ms, by leaves", "adamx"]
    assert row["2"] != "" == row["4"]
    assert path.stat().st_size > 10_000


@pytest.mark.slow
def test_every_tree_is_timed(modules, run_step_time):
    trees = modules["_trees"].TREES
    assert set(trees) == set(modules["_trees"].QUICK_TREES)
    choice = ["--subjects", "lion", "--contestants", "native"]
    rows = run_step_time("--trees", *trees, *choice)
    assert [where.split()[0] for where, _ in rows] == [x for x in trees for _ in "12"]


@pytest.mark.slow
def test_every_subject_is_timed(modules, run_step_time):
    subjects = modules["_subjects"].SUBJECTS
    rows = run_step_time("--trees", "many", "--subjects", *subjects)
    names = [name for where, name in rows if not where.endswith("compiled")]
    for name in ("adamx", "adamx fused", "adamx native"):
        assert names.count(name) == len(subjects)
    assert sum(name.startswith("optax") for name in names) == len(subjects)
    assert names.count("adamx native, float32") == 1


def test_processes_are_put_together(modules, monkeypatch, capsys):
    def output(ours, ratio):
        rows = f"| optax | 9.00 | 8-{ours} | 1.00 |\n"
        rows += f"| adamx | {ours} | 1-{ours} | {ratio} |\n"
        head = "|  | median ms | quartiles | to optax |\n| --- | ---: | ---: | ---: |\n"
        return f"a device\n\n**AdamW**\n\n{head}{rows}"

    texts = [output("4.00", "0.40"), output("6.00", "0.60"), output("4.50", "0.50")]
    repeated, asked = modules["repeated"], []
    monkeypatch.setattr(repeated, "outputs", lambda *x: asked.append(x) or texts)
    repeated.main(["-n", "3", "step_time.py", "--trees", "gpt2"])
    assert asked == [("step_time.py", ["--trees", "gpt2"], 3)]
    assert capsys.readouterr().out == (
        "a device, in 3 processes\n\n**AdamW**\n\n"
        "|  | median ms | to optax |\n| --- | ---: | ---: |\n"
        "| optax | 9.00 | 1.00 |\n"
        "| adamx | 4.50 (4.00-6.00) | 0.50 (0.40-0.60) |\n"
    )


def test_a_script_is_run_in_processes_of_its_own(modules, tmp_path, monkeypatch):
    (tmp_path / "say.py").write_text(
        "import os, sys; print(os.getpid(), *sys.argv[1:])"
    )
    monkeypatch.setattr(modules["repeated"], "FOLDER", tmp_path)
    said = [x.split() for x in modules["repeated"].outputs("say.py", ["a"], 2)]
    assert [words[1:] for words in said] == [["a"], ["a"]]
    assert said[0][0] != said[1][0]


def test_inputs_of_a_program_are_not_shared(modules):
    """Nobody donates what others read."""
    gradients = modules["_subjects"].random_gradients([(8,), (3, 2)])
    subject = modules["_subjects"].SUBJECTS["lion"]
    for entry in modules["_subjects"].entries(subject, gradients, ["identity"]):
        made = entry.make()
        made.step()
        made.step()
        made.wait()
    assert not any(g.is_deleted() for g in gradients)


CONTROL = {
    "groups": ("adamw", "protocol: four groups", "four groups"),
    "stages": ("adamw", "adam_to_sgd, given: before", "stages: behind"),
    "guard": ("adamw", "guard", "protocol: guard"),
    "accumulate": ("adamw", "sum", "between", "last"),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", CONTROL)
def test_control_is_timed(modules, part):
    """Through `fused` without temporaries; a guard through the protocol with a tree."""
    control = modules["control"]
    gradients = control.gradients_by_path(modules["step_time"].gpt2_shapes(512, 1, 512))
    chosen = [e for e in control.PARTS[part]() if e.name in CONTROL[part]]
    lines = control.table(chosen, gradients, 2)
    assert [line[0] for line in lines] == list(CONTROL[part])
    assert all(float(line[1]) > 0 and float(line[4]) > 0 for line in lines)
    temporaries = {line[0]: float(line[-2]) for line in lines}
    assert temporaries.pop("protocol: guard", 1.0) > 0.9
    assert max(temporaries.values()) <= TEMPORARIES


@pytest.mark.slow
def test_seeing_into_a_step_is_timed(modules, capsys):
    modules["diagnostics"].main(["--quick"])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(modules["diagnostics"].entries()) + 4  # building
    assert "A measurement: " in printed


@pytest.mark.slow
def test_a_planted_illness_is_found_and_clears(modules, tmp_path):
    path = tmp_path / "tables.md"
    given = ["--model", "hidden", "--only", "eps", "--quick", "--write", str(path)]
    modules["illnesses"].main(given)
    rows = [r for r in path.read_text().splitlines() if r.startswith("| eps")]
    sick = "eps_dominates: hidden_1/kernel"
    cells = [cell.strip() for cell in rows[0].split("|")[1:-1]]
    harm = cells.pop(3)
    assert cells == ["eps of a layer", "0.1", "hidden", "yes", sick, "yes", "none"]
    assert re.fullmatch(r"\(?[+-]\d+ %\)?", harm)
    assert rows[1] == "| eps | 1 of 1 | **1** |"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eps", "growing"])  # goes on; begins again
def test_kept_histories_are_judged_again_without_training(
    modules, monkeypatch, tmp_path, name
):
    illnesses, tables = modules["illnesses"], [tmp_path / "kept.md", tmp_path / "again"]
    given = ["--model", "hidden", "--only", name, "--quick", "--write"]
    illnesses.main([*given, str(tables[0]), "--keep", str(tmp_path / "runs")])
    kept = sorted(path.name for path in (tmp_path / "runs").iterdir())
    own = [n.rsplit("-", 1)[1] for n in kept if not n.startswith("reference")]
    assert own == ["cured.jsonl", "ill.jsonl"]
    assert len(kept) == 2 + illnesses.SEEDS
    monkeypatch.setattr(illnesses, "train", None)  # whoever trains fails
    illnesses.main([*given, str(tables[1]), "--again", str(tmp_path / "runs")])
    assert tables[0].read_text() == tables[1].read_text()
    monkeypatch.setattr(illnesses.adamx, "health", lambda history: [])
    illnesses.main([*given, str(tables[1]), "--again", str(tmp_path / "runs")])
    assert "| **no** |" in tables[1].read_text()  # judged by today's rules


@pytest.mark.slow
def test_a_sweep_is_compared_with_single_runs(modules, monkeypatch):
    sweep, task = modules["sweep"], modules["_tasks"].digits(8, 1)
    monkeypatch.setattr(sweep, "TURNS", 1)
    whole, apart, *_, difference = sweep.speed(task, steps=5, rounds=1, count=2)
    assert (whole[-1], apart[-1]) == ("1", "2")  # programs
    assert 0 <= float(difference[1]) < 1e-4


def test_a_run_that_is_cut_off_ends_with_the_same_bits(
    modules, tmp_path, capsys, monkeypatch
):
    """Four steps of the run that is killed; here an exception ends it in a save."""
    from adamx import interop

    resume, save = modules["resume"], interop.save
    before = {name: getattr(jax.config, name) for name in resume.CONFIG}
    monkeypatch.setattr(resume, "STEPS", 4)
    tx = adamx.guard(adamx.sgd(1e-2, 0.9), spike_zscore=6.0)  # quick to compile
    assert adamx.read(resume.transformation().init(jnp.ones(8))).diagnostics
    monkeypatch.setattr(resume, "transformation", lambda: tx)

    def cut_off(directory, step, run, **kwargs):
        save(directory, step, run, **kwargs)
        if step == 3:
            (pathlib.Path(directory) / "3" / "manifest.json").unlink()
            raise KeyboardInterrupt

    try:
        resume.train(str(tmp_path / "whole"))
        with monkeypatch.context() as patch:
            patch.setattr(interop, "save", cut_off)
            with pytest.raises(KeyboardInterrupt):
                resume.train(str(tmp_path / "cut"))
        assert resume._in_a_save(tmp_path / "cut", 0.0)
        assert resume._last(tmp_path / "cut") == 2
        resume.train(str(tmp_path / "cut"))
        assert not resume._in_a_save(tmp_path / "cut", 0.0)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    whole, end, cut, again, same = capsys.readouterr().out.splitlines()
    assert (whole, cut, again) == ("begun at 0", "begun at 0", "begun at 2")
    assert end == same
    other = {"params": jnp.ones(2), "key": jax.random.key(0), "step": 4}
    digests = {resume._digest(other | {"step": step}) for step in (4, 5)}
    assert len(digests | {end.split()[1]}) == 3


def test_zero1_keeps_an_eighth_of_the_state(modules, capsys):
    modules["sharding"].main(["--quick", "--step"])
    row = next(
        x for x in capsys.readouterr().out.splitlines() if "adamw" in x and "|" in x
    )
    cells = [cell.strip() for cell in row.split("|")]
    assert float(cells[4]) <= 0.13
    assert cells[4] == cells[5]
    assert cells[7] == "16 of 16"
