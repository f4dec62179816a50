"""The extension by which mkdocstrings shows docstrings as `docstring_text` does."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))  # it is loaded by its path
from docstring_text import documented, to_markdown


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package when it is loaded."""

    def __init__(self) -> None:
        self.links = documented(Path(__file__).parents[1] / "reference")

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Text to Markdown; States show their fields, not their methods."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, self.links)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """`adamx.adamw` is the function, not the module of that name it comes from."""
        del kwargs
        for name, member in list(pkg.members.items()):
            if member.is_alias and member.is_module and name in member.members:
                target = f"{member.final_target.path}.{name}"
                pkg.set_member(name, griffe.Alias(name, target, parent=pkg))

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """The methods of a State are for the library."""
        del kwargs
        if cls.name.endswith("State"):
            for name in [n for n, m in cls.members.items() if m.is_function]:
                del cls.members[name]
