"""The table of optimizers: complete, true, and the one in README."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

import adamx
from adamx import __main__, catalogue
from tests.optimizers_table import ROWS

README = pathlib.Path(adamx.__file__).parent.parent / "README.md"
NAMES = [entry.name for entry in catalogue.OPTIMIZERS]


def test_every_optimizer_is_in_the_table_once():
    assert sorted(NAMES) == sorted({row.name for row in ROWS})


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_are_those_of_a_real_state(name):
    params = {"kernel": jnp.ones((256, 1024))}
    state = getattr(adamx, name)(1e-3).init(params)
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / params["kernel"].size
    # Scalars, and one number for each row or column where a state has those.
    assert catalogue.state_bytes(name) == pytest.approx(size, abs=0.05)


@pytest.mark.parametrize("table", ["optimizers", "recipes"])
def test_readme_has_the_printed_table(capsys, table):
    assert __main__.main([table, "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in README.read_text()


def test_the_command_prints_a_table_for_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert __main__.main(["optimizers"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)


def test_an_unknown_command_is_answered(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["optimisers"])
    assert "optimizers" in capsys.readouterr().err
