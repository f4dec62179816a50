"""How the tests compile: most of their time goes into it, not into what is compiled.

The quick run compiles by QUICKLY, in a third of the time: each loop is made directly
instead of by way of MLIR, in one piece, and not optimised by LLVM. The HLO passes are
the same. What is not: vectorised loops and fused multiply-adds. So tests of what
depends on these (errors against float64, one device and eight to the bit, temporaries
of a donated step) are compiled with AS_USERS, the defaults, in every run.
ADAMX_TEST_COMPILE=full compiles everything as users do; the exhaustive runs are made so
(CONTRIBUTING.md).
"""

import os

import pytest

QUICKLY = (
    "--xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_llvm_disable_expensive_passes=true"
)
# For jax.jit(f, compiler_options=AS_USERS) and lowered.compile(AS_USERS).
AS_USERS: dict[str, bool | int | str] = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_parallel_codegen_split_count": 32,
    "xla_cpu_use_fusion_emitters": True,
    "xla_llvm_disable_expensive_passes": False,
}
# Above a test: everything that it gives to jax.jit.
as_users = pytest.mark.usefixtures("compiled_as_users")


def flags(quickly: bool | None = None, there: str | None = None) -> str:
    """XLA_FLAGS: what is there (the environment's), and what the quick run adds."""
    if quickly is None:
        quickly = os.environ.get("ADAMX_TEST_COMPILE") != "full"
    if there is None:
        there = os.environ.get("XLA_FLAGS", "")
    return f"{there} {QUICKLY}" if quickly and QUICKLY not in there else there
