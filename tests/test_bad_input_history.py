"""Bad input to `History`, `report` and `python -m adamx report`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx import __main__ as command
from adamx.reading import Diagnostics, Reading
from tests.test_bad_input import _check

READING = Reading(count=1)

# (metric, exception, what the message must contain)
METRICS = {
    "an array": (jnp.ones(3), ValueError, "`loss` scalar (3,) mean"),
    "one number in an array": (np.ones((1,)), ValueError, "`loss` scalar (1,) mean"),
    "text": ("0.5", TypeError, "`loss` scalar '0.5' float(loss)"),
    "complex": (1j, TypeError, "`loss` scalar 1j float(loss)"),
    "a complex array": (
        jnp.ones((), jnp.complex64),
        TypeError,
        "`loss` real complex64",
    ),
    "a dict": ({"a": 1.0}, TypeError, "`loss` scalar dict float(loss)"),
    "a function": (lambda: 1.0, TypeError, "`loss` scalar function float(loss)"),
    "a random key": (jax.random.key(0), TypeError, "`loss` scalar key<"),
    "a huge integer": (10**400, ValueError, "`loss` range float bits"),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name, tmp_path):
    value, exception, expected = METRICS[name]
    history = adamx.History(tmp_path / "run.jsonl")
    _check(lambda: history.append(READING, loss=value), exception, expected)
    own = expected.replace("`loss`", "`accuracy`")
    _check(lambda: history.append(READING, accuracy=value), exception, own)
    assert len(history) == 0
    assert not (tmp_path / "run.jsonl").exists(), "nothing is written"


DEEP = {"x": {"a": {"b": 1.0}}}
HUGE = 10**400


def _measured(count=1, value=1.0, **others):
    return Reading(
        count=5, diagnostics=Diagnostics(count, {"w": {"x": value}}, **others)
    )


# What a line of a file cannot say, or what could not be placed.
UNWRITABLE = {
    "a nested group": (
        Reading(count=1, learning_rate=DEEP["x"]), "'learning_rate/a' number {'b': 1.0}"),
    "a nested group of more": (Reading(count=1, more=DEEP), "'more/x/a' number"),
    "more of none": (Reading(count=1, more=3), "'more' object 3"),
    "a count by group": (Reading(count={"a": 1}), "'count' number {'a': 1}"),
    "half a count": (Reading(count=1.5), "'count' whole 1.5"),
    "a count of NaN": (Reading(count=float("nan")), "'count' whole nan"),
    "a negative count": (Reading(count=-1), f"'count' 0 {2**63 - 1} -1"),
    "a count that is no int64": (Reading(count=2**63), f"'count' 0 got {2**63}"),
    "a count of many digits": (Reading(count=10**300), "'count' more than 30 digits"),
    "a sum that is no int64": (
        Reading(count=2**63 - 1, unseen=5), f"'count with what was skipped' {2**63 + 4}"),
    "negative unseen": (Reading(count=9, unseen=-1), "'unseen' 0 -1"),
    "half unseen": (Reading(count=9, unseen=0.5), "'unseen' whole 0.5"),
    "negative skipped": (Reading(count=1, skipped=-1), "'skipped' 0 or more -1"),
    "negative skipped by group": (
        Reading(count=1, skipped={"a": 1, "b": -2}), "'skipped' 0 or more -2"),
    "a huge number": (Reading(count=1, learning_rate=HUGE), "'learning_rate' range"),
    "a huge number by group": (
        Reading(count=1, more={"x": {"a": -HUGE}}), "'more/x/a' range float"),
    "a huge number in a layer": (_measured(value=HUGE), "'x/w' range float"),
    "diagnostics before the start": (_measured(-2), "'diagnostics/count' 0 -2"),
    "half a count of diagnostics": (_measured(0.5), "'diagnostics/count' whole 0.5"),
    "negative unseen of diagnostics": (
        _measured(unseen=-1), "'diagnostics/unseen' 0 -1"),
    "a sum of diagnostics that is no int64": (
        _measured(2**63 - 1, unseen=1), "'count with what was skipped'"),
    "unseen by group": (Reading(count=9, unseen={"a": 1}), "'unseen' whole {'a': 1}"),
    "negative seen": (_measured(seen=-1), "'seen' 0 -1"),
    "seen of NaN": (_measured(seen=float("nan")), "'seen' whole nan"),
}  # fmt: skip

READINGS = {
    "None": (None, TypeError, "`reading` adamx.Reading None adamx.read(state)"),
    "a state": (
        adamx.adamw(1e-3).init({"w": jnp.ones(2)}),
        TypeError,
        "`reading` adamx.Reading adamx.read(state)",
    ),
    "a dict": ({"count": 1}, TypeError, "`reading` adamx.Reading dict"),
    "batched": (
        Reading(count=np.arange(2)),
        ValueError,
        "`reading` `count` (2,) vmap jax.tree.map",
    ),
    "a batched group": (
        Reading(learning_rate={"a": np.ones(2)}),
        ValueError,
        "`learning_rate/a` (2,) vmap",
    ),
    "batched diagnostics": (
        Reading(count=1, diagnostics=Diagnostics(1, {"w": {"r/p50": np.ones(2)}})),
        ValueError,
        "`r/p50/w` (2,) vmap",
    ),
    "text": (Reading(count=1, grad_norm="1"), TypeError, "`grad_norm` '1' readings()"),
    **{
        name: (value, ValueError, f"`reading` file {expected} readings()")
        for name, (value, expected) in UNWRITABLE.items()
    },
}


@pytest.mark.parametrize("name", READINGS)
def test_readings(name, tmp_path):
    value, exception, expected = READINGS[name]
    history = adamx.History(tmp_path / "run.jsonl")
    _check(lambda: history.append(value), exception, expected)
    assert len(history) == 0
    assert not (tmp_path / "run.jsonl").exists()


def test_what_is_appended_is_loaded_again(tmp_path):
    """The odd ones that are let through; what is None is left out."""
    history = adamx.History(tmp_path / "run.jsonl")
    nan, inf = float("nan"), float("inf")
    none: dict = {"a": None, "b": 1}
    for reading in (
        Reading(count=1.0, unseen=np.float32(0.0), skipped=nan),
        Reading(count=True, more={"x": {}, "y": none}),
        Reading(count=2, learning_rate=none, skipped=none, more={"x": None}),
        Reading(more=None),
        _measured(4.0, nan, seen=5.0),
        _measured(6, -inf, seen=2**63 - 1, unseen=2**63 - 7),
        Reading(count=2**63 - 6, unseen=5, grad_norm=2**70, switch_step=-1),
    ):
        history.append(reading)
    for found in (adamx.History(history.path), adamx.History.load(history.path)):
        assert not found.broken
        assert found.steps.tolist() == history.steps.tolist()
        assert found.measured_steps.tolist() == history.measured_steps.tolist()
        assert repr(found[:]) == repr(history[:])
    assert "None" not in repr([dict(one.reading.more) for one in history])


def test_inside_jit():
    history = adamx.History()
    message = "`loss` traced append outside"
    _check(
        lambda: jax.jit(lambda x: history.append(READING, loss=x))(1.0),
        TypeError,
        message,
    )
    message = "`reading` traced `count` append outside"
    _check(
        lambda: jax.jit(lambda x: history.append(Reading(count=x)))(1),
        TypeError,
        message,
    )
    assert len(history) == 0


@pytest.mark.parametrize("make", [adamx.History, adamx.History.load])
def test_paths(make, tmp_path):
    missing = tmp_path / "no" / "run.jsonl"
    _check(lambda: make(missing), FileNotFoundError, "`path` folder no make")
    _check(lambda: make(tmp_path), IsADirectoryError, "`path` folder run.jsonl")
    _check(lambda: make(3), TypeError, "`path` int 3 'run.jsonl'")
    page = tmp_path / "table.csv"
    page.write_text("step,loss\n1,2.0\n3,4.0\n")
    _check(lambda: make(page), ValueError, "`path` History table.csv line 1 no record")
    assert page.read_text().startswith("step,loss\n1,2.0")


def test_load_of_nothing(tmp_path):
    _check(
        lambda: adamx.History.load(tmp_path / "run.jsonl"),
        FileNotFoundError,
        "`path` run.jsonl does not exist",
    )
    (tmp_path / "run.jsonl").write_text("\n\n")
    assert len(adamx.History.load(tmp_path / "run.jsonl")) == 0


BROKEN = {
    "cut short": '{"count":2,"metr',
    "no JSON": "Traceback (most recent call last):",
    "no object": "[1, 2]",
    "a count of text": '{"count":"2"}',
    "half a count": '{"count":2.5}',
    "a count that is no number": '{"count":"NaN"}',
    "a flag": '{"count":true}',
    "a metric of text": '{"count":2,"metrics":{"loss":"low"}}',
    "metrics of none": '{"count":2,"metrics":3}',
    "more of none": '{"count":2,"more":3}',
    "a list": '{"count":2,"grad_norm":[1]}',
    "diagnostics of text": '{"count":2,"diagnostics":"x"}',
    "a layer with too few numbers": (
        '{"count":2,"diagnostics":{"count":2,"numbers":["a","b"],"layers":{"w":[1]}}}'
    ),
    "ragged layers": (
        '{"count":2,"diagnostics":{"count":2,"numbers":["a"],"layers":{"w":[1],"v":[]}}}'
    ),
    "no numbers": '{"count":2,"diagnostics":{"count":2,"layers":{"w":[1]}}}',
    "text in a layer": (
        '{"count":2,"diagnostics":{"count":2,"numbers":["a"],"layers":{"w":["x"]}}}'
    ),
    "an endless count of diagnostics": (
        '{"count":2,"diagnostics":{"count":1e999,"numbers":["a"],"layers":{"w":[1]}}}'
    ),
    "half a count of diagnostics": (
        '{"count":2,"diagnostics":{"count":1.5,"numbers":["a"],"layers":{"w":[1]}}}'
    ),
    "no count of diagnostics": (
        '{"count":2,"diagnostics":{"count":null,"numbers":["a"],"layers":{"w":[1]}}}'
    ),
    "diagnostics before the start": (
        '{"count":2,"diagnostics":{"count":-2,"numbers":["a"],"layers":{"w":[1]}}}'
    ),
    "numbers of text": (
        '{"count":2,"diagnostics":{"count":2,"numbers":"a","layers":{"w":[1]}}}'
    ),
    "a huge number in a layer": (
        '{"count":2,"diagnostics":{"count":2,"numbers":["a"],"layers":{"w":[%s]}}}'
        % ("9" * 400)
    ),
    "a huge loss": '{"count":2,"metrics":{"loss":%s}}' % ("9" * 400),
    "a huge count": '{"count":%s,"metrics":{"loss":2}}' % ("9" * 400),
    "a count that is no int64": f'{{"count":{2**63}}}',
    "a sum that is no int64": f'{{"count":{2**63 - 1},"unseen":1}}',
    "a nested loss": '{"count":2,"metrics":{"loss":{"a":1}}}',
    "a nested group": '{"count":2,"learning_rate":{"a":{"b":1}}}',
    "a nested group of more": '{"count":2,"more":{"x":{"a":{"b":1}}}}',
    "a count by group": '{"count":{"a":2}}',
    "a negative count": '{"count":-5,"metrics":{"loss":2}}',
    "a negative step": '{"count":2,"step":-1}',
    "a step that is a flag": '{"count":2,"step":true,"metrics":{"loss":2}}',
    "unseen that is a flag": '{"count":2,"unseen":false}',
    "negative unseen": '{"count":2,"unseen":-9,"metrics":{"loss":2}}',
    "negative skipped": '{"count":2,"skipped":{"a":-9},"metrics":{"loss":2}}',
    "no text": b"\xff\xfe\x00\x01",
    "zeros, after a loss of power": b"\x00" * 40,
    "deep": "[" * 100_000,
    "a step alone": '{"step": 2}',
    "nothing that is known": '{"epoch": 2, "stepp": 3}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_good_part_loads_and_the_bad_line_is_named(name, tmp_path):
    line = BROKEN[name]
    line = line if isinstance(line, bytes) else line.encode()
    path = tmp_path / "run.jsonl"
    good = [json.dumps({"count": k, "metrics": {"loss": k}}).encode() for k in (1, 3)]
    path.write_bytes(b"\n".join([good[0], line, good[1]]) + b"\n")
    for make in (adamx.History.load, adamx.History):
        with pytest.warns(UserWarning, match=r"1 broken line.*line 2: ") as warned:
            history = make(path)
        assert [one.filename for one in warned] == [__file__]
        assert history.steps.tolist() == [1, 3]
        assert history.column("loss").tolist() == [1, 3]
        (broken,) = history.broken
        assert broken.number == 2
        assert broken.reason
        assert line[:10].decode(errors="replace").strip() in broken.text


def test_access():
    history = adamx.History()
    history.append(
        Reading(count=1, diagnostics=Diagnostics(1, {"w": {"r/p50": 0.5}})), loss=1.0
    )
    _check(
        lambda: history.column("los"), ValueError, "`name` 'loss' 'los' series(layer"
    )
    _check(lambda: history.series("v", "r/p50"), ValueError, "`layer` 'w' 'v' diagnose")
    _check(lambda: history.series("w", "r/p5"), ValueError, "`number` 'r/p50' 'r/p5'")
    _check(lambda: history.matrix("r"), ValueError, "`number` 'r/p50' 'r' diagnose")
    empty = adamx.History()
    _check(lambda: empty.column("loss"), ValueError, "`name` 'loss' (none yet)"[:13])
    _check(
        lambda: empty.relate(), ValueError, "`history` diagnostics adamx.diagnose(tx)"
    )


@pytest.mark.parametrize(
    ("arguments", "exception", "expected"),
    [
        ({"metric": "val_loss"}, ValueError, "`metric` 'loss' 'val_loss' append"),
        ({"ahead": 0}, ValueError, "`ahead` >= 1 0 records"),
        ({"ahead": 1.5}, ValueError, "`ahead` whole 1.5"),
        ({"min_pairs": 2}, ValueError, "`min_pairs` >= 5 2"),
        ({"numbers": ["r/p51"]}, ValueError, "`numbers` 'r/p50' 'r/p51'"),
        ({"numbers": "r/p50"}, ValueError, "`numbers` 'r/p50' 'r'"),
    ],
)
def test_relate(arguments, exception, expected):
    history = adamx.History()
    history.append(
        Reading(count=1, diagnostics=Diagnostics(1, {"w": {"r/p50": 0.5}})), loss=1.0
    )
    _check(
        lambda: history.relate(**{"metric": "loss"} | arguments), exception, expected
    )


# ----------------------------------------------------------------------------- report


@pytest.fixture
def saved(tmp_path):
    history = adamx.History(tmp_path / "run.jsonl")
    history.append(READING, loss=2.0)
    return history


def test_report(saved, tmp_path):
    page = tmp_path / "run.html"
    _check(
        lambda: adamx.report([], page), TypeError, "`history` History list load(path)"
    )
    _check(lambda: adamx.report("x", page), TypeError, "`history` History 'x'")
    empty = adamx.History()
    _check(lambda: adamx.report(empty, page), ValueError, "`history` records append")
    _check(lambda: adamx.print_report(empty), ValueError, "`history` records append")
    _check(lambda: adamx.report(saved, 3), TypeError, "`path` 3 'run.html'")
    _check(lambda: adamx.report(saved, tmp_path), IsADirectoryError, "`path` folder")
    far = tmp_path / "no" / "x.html"
    _check(lambda: adamx.report(saved, far), FileNotFoundError, "`path` folder no make")
    _check(
        lambda: adamx.report(saved, saved.path), ValueError, "`path` another run.html"
    )
    _check(
        lambda: adamx.report(saved, page, findings=["sick"]),
        TypeError,
        "`findings` 'sick' layer symptom severity health(history)",
    )
    assert list(tmp_path.iterdir()) == [saved.path], "nothing is written"
    assert len(adamx.History.load(saved.path)) == 1


COMMANDS = {
    "missing": (["no.jsonl"], "no.jsonl does not exist"),
    "empty": (["empty.jsonl"], "empty.jsonl no records nothing was written"),
    "a folder": (["."], "`path` folder"),
    "another file": (["other.txt"], "other.txt line 1 no record"),
    "onto itself": (["run.jsonl", "--out", "run.jsonl"], "replace run.jsonl --out"),
    "a page": (["run.html"], "run.html line no record"),
    "no folder": (["run.jsonl", "--out", "no/x.html"], "`path` folder no/x.html"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command(name, saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.txt").write_text("hello\nthere\n")
    (tmp_path / "run.html").write_text("<!doctype html>\n<p>old")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    arguments, expected = COMMANDS[name]
    assert command.main(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert not [part for part in expected.split() if part not in err], err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_command_names_broken_lines(saved, capsys):
    saved.path.write_text(saved.path.read_text() + "{oops\n")
    assert command.main(["report", str(saved.path)]) == 0
    out, err = capsys.readouterr()
    assert "warning:" in err
    assert "line 2" in err
    assert "run.html" in out


@pytest.mark.parametrize("step", [-1, 1.5, "3", jnp.ones(2), 2**63])
def test_steps(step, tmp_path):
    history = adamx.History(tmp_path / "run.jsonl")
    kinds = (ValueError, TypeError)
    with pytest.raises(kinds, match="`step` must be"):
        history.append(READING, step=step)
    assert not len(history)


@pytest.mark.parametrize("name", ["step", "unseen", "seen"])
def test_a_step_in_a_file_that_is_no_number(tmp_path, name):
    path = tmp_path / "run.jsonl"
    path.write_text(f'{{"count": 1}}\n{{"count": 2, "{name}": "x"}}\n')
    with pytest.warns(UserWarning, match=f"line 2: '{name}' must be a whole number"):
        assert adamx.History(path).steps.tolist() == [1]
