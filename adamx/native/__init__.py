"""TRACED FUNCTIONS -> PASSES OVER MEMORY: compiled C for what is done to each element.

An optimizer's step does little arithmetic and reads and writes much. What XLA makes of
it on a CPU is several loops for each leaf, and some arrays are read again in each. Here
the traced step is taken apart: all that happens between an element's gradient, moments
and parameter and what they become is one loop in C, compiled by the system's compiler
on first use and kept in the user's cache folder, and called through XLA's foreign
function interface. It knows no optimizer: any chain whose operations act on single
elements, sums over whole leaves included, is taken apart so.
"""

from adamx.native._run import in_passes

__all__ = ["in_passes"]
