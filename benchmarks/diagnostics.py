"""The question: what does it cost to see into a training step.

Donated AdamW steps on the shapes of GPT-2 small (124M parameters, float32), bare and
under `adamx.diagnose`, in turns: between two measurements, and with one at each step.
What one every 100 steps costs follows from both. Temporaries: bytes beside parameters
and state, over the bytes of the parameters.

    python benchmarks/diagnostics.py [--rounds 20] [--layers 12] [--quick]
"""

import argparse

import control
import optax
import step_time
from _tables import show

import adamx

NEVER = 2**30


def entries() -> list[control.Entry]:
    def of(every: int) -> optax.GradientTransformationExtraArgs:
        return adamx.diagnose(control.ADAMW, every=every)

    return [
        control.entry("adamw", control.ADAMW, control.protocol),
        control.entry("between", of(NEVER), control.protocol),
        control.entry("at each step", of(1), control.protocol),
        control.entry("fused: between", of(NEVER)),
        control.entry("fused: at each step", of(1)),
    ]


def shares(lines: list[list[str]], every: int) -> str:
    """What one measurement in so many steps adds to the bare optimizer's time."""
    ratio = {line[0]: float(line[4]) for line in lines}
    between, at = ratio["between"] - 1.0, ratio["at each step"] - 1.0
    return (
        f"Between: {100 * between:+.0f} % of the bare step. A measurement: {at:+.2f} "
        f"steps, that is {100 * at / every:.1f} % at one in {every}."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    options = parser.parse_args(arguments)
    shapes, rounds = step_time.gpt2_shapes(layers=options.layers), options.rounds
    if options.quick:
        shapes, rounds = step_time.gpt2_shapes(*control.QUICK_SHAPES), 2
    print(f"{step_time.device_name()}; {step_time.versions()}")
    lines = control.table(entries(), control.gradients_by_path(shapes), rounds)
    show(f"diagnose, {len(shapes)} leaves", control.HEAD, lines)
    print(f"\n{shares(lines, 100)}")


if __name__ == "__main__":
    main()
