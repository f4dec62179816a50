"""The `adamx` command: `python -m adamx optimizers`, `python -m adamx recipes`."""

import argparse
import os
import sys
from collections.abc import Sequence

from adamx import catalogue


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m adamx", description="The Adam family for JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    table = commands.add_parser(
        "optimizers", help="when to pick which optimizer, bytes of state, source"
    )
    table.add_argument(
        "--markdown", action="store_true", help="print it as README has it"
    )
    recipes = commands.add_parser(
        "recipes", help="what to start from, by task: numbers, sources"
    )
    recipes.add_argument(
        "--markdown", action="store_true", help="print it as README has it"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "recipes":
            _print_recipes(options.markdown)
        elif options.markdown:
            print(catalogue.markdown())
        else:
            _print_table()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title="Optimizers of adamx",
        caption="state: bytes per float32 parameter; decay: the default weight decay",
    )
    table.add_column("optimizer", style="bold", no_wrap=True)
    table.add_column("state", justify="right", no_wrap=True)
    table.add_column("decay", justify="right", no_wrap=True)
    table.add_column("when to pick it", ratio=3)
    is_wide = console.width >= 90
    if is_wide:
        table.add_column("source", ratio=2)
    for *row, source in catalogue.rows():
        table.add_row(*row, *([source] if is_wide else []))
    console.print(table)


def _print_recipes(is_markdown: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if is_markdown:
        print(catalogue.recipes_markdown())
        return
    console = Console()
    table = Table(title="Recipes of adamx", caption="matrices decay; b1 is 0.9")
    table.add_column("adamx.recipes.", style="bold", no_wrap=True)
    table.add_column("when to pick it", ratio=2)
    table.add_column("numbers", ratio=3)
    is_wide = console.width >= 100
    if is_wide:
        table.add_column("source", ratio=2)
    for *row, source in catalogue.RECIPES:
        table.add_row(*row, *([source] if is_wide else []))
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
