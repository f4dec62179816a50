"""What differs between processes: the tables of a script, of several runs of it.

    python benchmarks/repeated.py -n 10 step_time.py --trees gpt2 --subjects adamw_clip

Runs a script of this folder in so many fresh processes, one after another, and prints
its tables once: of every number the median over the processes, and from where to where
it went. Where buffers lie in memory is decided once in a process; rounds within one do
not show what that does to a step.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable

from _tables import show

FOLDER = pathlib.Path(__file__).parent
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")
Table = tuple[str, list[list[str]]]


def tables(text: str) -> list[Table]:
    """The Markdown tables of an output, each with its title; the head is a row."""
    found: list[Table] = []
    title, is_open = "", False
    for line in text.splitlines():
        if line.startswith("**"):
            title = line.strip("*")
        if not line.startswith("|"):
            is_open = False
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not is_open:
            found.append((title, []))
        is_open = True
        if not all(set(cell) <= set("-: ") and cell for cell in cells):
            found[-1][1].append(cells)
    return found


def spread(values: Iterable[str]) -> str:
    """The median of numbers, and their ends; a word that is the same in all of them.

    What is neither (quartiles, two numbers in a cell) is left out.
    """
    texts = list(values)
    if not all(NUMBER.fullmatch(text) for text in texts):
        return texts[0] if len(set(texts)) == 1 else ""
    numbers = sorted(map(float, texts))
    digits = max(len(text.partition(".")[2]) for text in texts)
    low, middle, high = numbers[0], statistics.median(numbers), numbers[-1]
    if low == high:
        return texts[0]
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def outputs(script: str, arguments: list[str], count: int) -> list[str]:
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = []
    for i in range(count):
        print(f"process {i + 1} of {count}", file=sys.stderr)
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        done.append(run.stdout)
    return done


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=10, help="processes (10)")
    parser.add_argument("script", help="a script of this folder")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="handed to it")
    options = parser.parse_args(arguments)
    texts = outputs(options.script, options.arguments, options.n)
    print(f"{texts[0].splitlines()[0]}, in {options.n} processes")
    for same in zip(*map(tables, texts), strict=True):
        title, rows = same[0][0], [rows for _, rows in same]
        merged = [
            [spread(cells) for cells in zip(*row, strict=True)]
            for row in zip(*rows, strict=True)
        ]
        kept = [
            i for i, cells in enumerate(zip(*merged[1:], strict=True)) if any(cells)
        ]
        head, *body = [[row[i] for i in kept] for row in merged]
        show(title, head, body)


if __name__ == "__main__":
    main()
