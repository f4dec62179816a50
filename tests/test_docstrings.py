"""Docstrings of all public names, in the design's form, and each with its place.

First line, equation where there is one, Args with every argument, Returns, Raises where
something is checked, an example that runs; of classes every field, and every method
with its arguments. And each public name is on exactly one page of the reference.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap

import pytest

import adamx
from tests.helpers import ROOT

# Rooms with public names of their own, beside those at the top.
ROOMS = ("codecs", "schedules", "recipes", "sharding", "interop", "diagnostics")
# Of `reading`, whose other names are for the library.
OF_READING = ("Diagnostics", "Readable", "Reading", "read")
# A picture, and nothing to print.
WITHOUT_EXAMPLE = {"schedules.plot"}


def _is_documented(value):
    return inspect.isclass(value) or inspect.isfunction(value)


def _public_names():
    """What is public, by its shortest name: "adamw", "interop.save"."""
    found = {n: v for n, v in vars(adamx).items() if _is_documented(v)}
    for room in (*ROOMS, "reading"):
        module = importlib.import_module(f"adamx.{room}")
        names = getattr(module, "__all__", None) or vars(module)
        for name in OF_READING if room == "reading" else names:
            value = getattr(module, name)
            is_new = all(value is not other for other in found.values())
            if _is_documented(value) and not name.startswith("_") and is_new:
                found[f"{room}.{name}"] = value
    return found


PUBLIC = _public_names()
FUNCTIONS = {n: v for n, v in PUBLIC.items() if inspect.isfunction(v)}
CLASSES = {n: v for n, v in PUBLIC.items() if inspect.isclass(v)}


def _section(text, title):
    found = re.search(rf"^{title}:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def _entries(section):
    """The names that a section describes: "b1, b2: see ..." has two."""
    found = re.findall(
        r"^  (\S[^:]*?(?:,\n +[^:\n]+)*):(?:\s|$)", section, re.MULTILINE
    )
    return {name.strip().lstrip("*") for names in found for name in names.split(",")}


def _checks_something(function):
    """Whether it raises by itself, or has its arguments checked."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    is_checked = any(re.match(r"_?check", call.split(".")[-1]) for call in calls)
    return is_checked or any(isinstance(n, ast.Raise) for n in ast.walk(tree))


def _missing_of_function(function, has_example=True):
    text = inspect.getdoc(function) or ""
    if not text:
        return ["a docstring"]
    missing = []
    if "\n" in text.split("\n\n")[0]:
        missing.append("a first line that is one line")
    wanted = ["Args:", "Returns:"] + [">>> "] * has_example
    wanted += ["Raises:"] * _checks_something(function)
    missing += [part for part in wanted if part not in text]
    arguments = set(inspect.signature(function).parameters)
    return missing + sorted(arguments - _entries(_section(text, "Args")))


def _fields(cls):
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    else:
        names = list(getattr(cls, "_fields", ()))
    return {name for name in names if not name.startswith("_")}


def _methods(cls):
    """Public methods and properties of its own, as functions."""
    for name, value in vars(cls).items():
        value = value.fget if isinstance(value, property) else value
        value = getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(value):
            yield name, value


def _missing_of_method(method):
    text = inspect.getdoc(method) or ""
    if not text:
        return ["a docstring"]
    arguments = list(inspect.signature(method).parameters)[1:]
    missing = [a for a in arguments if not re.search(rf"\b{a}\b", text)]
    if _checks_something(method) and "Raises" not in text:
        missing.append("Raises")
    return missing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_do(name):
    function = FUNCTIONS[name]
    assert not _missing_of_function(function, name not in WITHOUT_EXAMPLE)
    module = inspect.getdoc(inspect.getmodule(function))
    if ".optimizers." in function.__module__ or "_decay" in function.__module__:
        assert "Source:" in module, "the module names no source"


@pytest.mark.parametrize("name", CLASSES)
def test_classes_describe_fields_and_methods(name):
    cls = CLASSES[name]
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    assert text, "no docstring"
    assert not text.startswith(f"{cls.__name__}("), "the docstring of a dataclass"
    assert "\n" not in text.split("\n\n")[0], "the first line is one line"
    described = _entries(_section(text, "Attributes"))
    assert not _fields(cls) - described, "fields that are not described"
    missing = {method: _missing_of_method(f) for method, f in _methods(cls)}
    assert not {method: parts for method, parts in missing.items() if parts}


def test_the_check_notices():
    def whole(b1, b2):
        """One line.

        Args:
          b1, b2: described.

        Returns:
          Something.

        Raises:
          ValueError: always.

        >>> 1
        1
        """
        raise ValueError(b1, b2)

    assert not _missing_of_function(whole)
    text = whole.__doc__
    for part, missing in [
        ("b1, b2:", ["b2"]),
        ("Returns:", ["Returns:"]),
        ("Raises:", ["Raises:"]),
        (">>> ", [">>> "]),
    ]:
        whole.__doc__ = text.replace(part, "b1:" if missing == ["b2"] else "")
        assert _missing_of_function(whole) == missing
    whole.__doc__ = ""
    assert _missing_of_function(whole) == ["a docstring"]


PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
SHOWN = [
    name
    for page in PAGES
    for name in re.findall(r"^::: adamx\.(\S+)$", page.read_text(), re.MULTILINE)
]


def test_each_public_name_is_on_one_page_of_the_reference():
    rooms = set(ROOMS)
    aliases = {"add_decayed_weights"}  # Optax's name for add_decoupled_weight_decay
    shown = [name for name in SHOWN if name not in rooms]
    assert sorted(shown) == sorted(set(PUBLIC) - aliases)
