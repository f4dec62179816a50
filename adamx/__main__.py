"""The `adamx` command: `optimizers`, `recipes`, `report`, `plan`, `convert`."""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

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
    run = commands.add_parser(
        "report", help="one HTML page about a run, or the same in the terminal"
    )
    run.add_argument("history", metavar="RUN.jsonl", help="what adamx.History wrote")
    run.add_argument(
        "--out", metavar="RUN.html", help="the page; default: beside the history"
    )
    run.add_argument("--title", help="of the page; default: the name of the file")
    run.add_argument(
        "--terminal",
        action="store_true",
        help="print the report; writes a page only with --out",
    )
    _add_plan(commands)
    _add_convert(commands)
    options, status = parser.parse_args(arguments), 0
    try:
        if options.command == "recipes":
            _print_recipes(options.markdown)
        elif options.command == "report":
            status = _report(options)
        elif options.command == "plan":
            status = _plan(options)
        elif options.command == "convert":
            status = _convert(options)
        elif options.markdown:
            print(catalogue.markdown())
        else:
            _print_table()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


PLANNED = ("adamw", "adamw-bf16", "adamw-int8", "lion", "adam_mini")


def _add_plan(commands: Any) -> None:
    planner = commands.add_parser(
        "plan", help="bytes per device and bytes moved, for a mesh that is not here"
    )
    what = planner.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="gpt2-small ... gpt2-xl, llama-7b, -70b, -405b")
    what.add_argument(
        "--shapes", metavar="FILE.json", help='{"dense": {"kernel": [8, 4]}}'
    )
    planner.add_argument(
        "--mesh", required=True, metavar="AXIS=SIZE,...", help="e.g. data=64,model=4"
    )
    planner.add_argument(
        "--optimizer",
        nargs="+",
        metavar="NAME[-CODEC]",
        default=list(PLANNED),
        help="of `optimizers`, with moments in bf16, int8, int4 or fp8: adamw-int8; "
        "of sophia_h and sophia_g the curvature's backward pass is not in the plan",
    )
    planner.add_argument(
        "--zero1",
        nargs="?",
        const="data",
        metavar="AXES",
        help="axes that divide the state further; default where given: data",
    )
    planner.add_argument("--batch-axes", metavar="AXES", help="of the batch: data")
    planner.add_argument("--dtype", help="of the parameters: float32, bfloat16")
    planner.add_argument("--grad-dtype", help="of the gradients; default: the same")
    planner.add_argument(
        "--master-weights",
        action="store_true",
        help="parameters of 16 bits with float32 masters in the state",
    )


def _plan(options: argparse.Namespace) -> int:
    """2 where nothing can be planned, with the reason on stderr."""
    import jax

    from adamx.compose import master_weights
    from adamx.sharding import plans

    # No accelerator is wanted, nor its memory.
    if not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    try:
        txs = {name: catalogue.transformation(name) for name in options.optimizer}
        if options.master_weights:
            txs = {f"{name}, masters": master_weights(tx) for name, tx in txs.items()}
        table = plans(
            txs,
            options.model or pathlib.Path(options.shapes),
            _mesh(options.mesh),
            zero1=_names(options.zero1),
            dtype=options.dtype,
            grad_dtype=options.grad_dtype,
            batch_axes=_names(options.batch_axes),
            # Sophia's curvature is a backward pass, which no plan has.
            extra_args={"hessian_fn": lambda params, key: params},
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table if len(table.plans) > 1 else table.plans[0])
    return 0


def _add_convert(commands: Any) -> None:
    converter = commands.add_parser(
        "convert", help="a checkpoint of PyTorch as one of ours, and what went where"
    )
    converter.add_argument(
        "checkpoint", metavar="CHECKPOINT.pt", help="or weights in .safetensors"
    )
    converter.add_argument("out", metavar="OUT/", help="folder of checkpoints")
    converter.add_argument(
        "--map",
        metavar="MAP.json",
        help='{"regex": "replacement"}: {"^fc": "dense", "weight$": "kernel"}; '
        "[replacement, [1, 0]] with axes; null leaves out",
    )
    converter.add_argument(
        "--names",
        metavar="NAMES.json",
        help="the optimizer's parameters in its order, one list for each group",
    )
    converter.add_argument(
        "--shapes",
        metavar="FILE.json",
        help='the tree to fit: {"dense": {"kernel": [8, 4]}}; default: of the names',
    )
    converter.add_argument("--optimizer", help="the class, where the file does not say")
    converter.add_argument("--freeze", action="store_true", help="what is not trained")
    converter.add_argument("--step", type=int, help="steps taken, for SGD")


def _convert(options: argparse.Namespace) -> int:
    """2 where nothing was written, with the reason on stderr."""
    import jax

    from adamx import interop

    if not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    try:
        run = interop.convert_torch(
            interop.load_torch(options.checkpoint),
            None if options.shapes is None else _shapes(_json(options.shapes)),
            None if options.map is None else _json(options.map),
            names=None if options.names is None else _json(options.names),
            optimizer=options.optimizer,
            untrained="freeze" if options.freeze else "error",
            step=options.step,
        )
        tree = {} if run.params is None else {"params": run.params}
        if run.tx is not None:
            tree["state"] = interop.to_flat(run.state)
        folder = interop.save(options.out, run.step, tree)
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(run)
    print(f"{folder}: {', '.join(tree)}")
    return 0


def _json(path: str) -> Any:
    import json

    try:
        return json.loads(pathlib.Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' must be JSON: {error}.") from None


def _shapes(tree: Any) -> Any:
    """Nested dicts of lists of ints as float32 shapes."""
    import jax

    if isinstance(tree, dict):
        return {name: _shapes(child) for name, child in tree.items()}
    return jax.ShapeDtypeStruct(tuple(tree), "float32")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(text.split(","))


def _mesh(text: str) -> dict[str, int]:
    """{'data': 64, 'model': 4} for data=64,model=4."""
    found: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not (axis.isidentifier() and size.isdecimal()):
            raise ValueError(
                f"--mesh must be axes and their sizes, such as data=64,model=4, got "
                f"{part!r} in {text!r}; write each as NAME=SIZE, with commas between."
            )
        if axis in found:
            raise ValueError(
                f"--mesh must name each axis once, got {axis!r} twice in {text!r}; "
                f"give one size: {axis}={size}."
            )
        found[axis] = int(size)
    return found


def _report(options: argparse.Namespace) -> int:
    """2 where there is nothing to report on, with the reason on stderr."""
    import warnings

    from adamx.diagnostics import History, print_report, report

    path = pathlib.Path(options.history)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = History.load(path)
        for warning in caught:
            print(f"warning: {warning.message}", file=sys.stderr)
        if not len(history):
            raise ValueError(f"'{path}' has no records yet; nothing was written.")
        if options.out is not None or not options.terminal:
            out = pathlib.Path(options.out or path.with_suffix(".html"))
            if out.resolve() == path.resolve():
                raise ValueError(
                    f"the page would replace the history '{path}'; name another file: "
                    "--out run.html"
                )
            written = report(history, out, title=options.title or path.name)
            print(f"{written} ({written.stat().st_size / 1e6:.2f} MB)")
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.terminal:
        print_report(history)
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
