"""The question: what does it cost to choose what a step does.

    python benchmarks/control.py [--parts guard accumulate] [--quick]

Times of donated steps on the shapes of GPT-2 small, in turns with the step or sum they
are compared with: medians, and the median of the ratios round by round. Temporaries:
bytes beside parameters and state, over the bytes of the parameters. What the parts
compare is said in the file of each (`_control_....py`).
"""

import argparse
import time

import _control_guard
import step_time

PARTS = {
    "guard": _control_guard,
    "accumulate": _control_guard,
}
QUICK_SHAPES = (64, 1, 512, 64)


def show(title: str, head: list[str], lines: list[list[str]]) -> None:
    print(f"\n**{title}**\n")
    for line in [head, ["---"] + ["---:"] * (len(head) - 1), *lines]:
        print("| " + " | ".join(line) + " |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    options = parser.parse_args(arguments)
    shapes, rounds = step_time.gpt2_shapes(layers=options.layers), options.rounds
    if options.quick:
        shapes, rounds = step_time.gpt2_shapes(*QUICK_SHAPES), 2
    print(f"{step_time.device_name()}; {step_time.versions()}")
    for part in options.parts:
        began = time.perf_counter()
        lines = PARTS[part].table(part, shapes, rounds)
        show(f"{part}, {len(shapes)} leaves", PARTS[part].HEAD, lines)
        print(f"\n{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
