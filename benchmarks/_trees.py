"""Trees of parameters, as lists of shapes: few large leaves, many small ones, both."""

from collections.abc import Callable

Shapes = list[tuple[int, ...]]


def gpt2_shapes(
    width: int = 768, layers: int = 12, vocabulary: int = 50257, context: int = 1024
) -> Shapes:
    """The 148 parameter shapes of GPT-2 small, 124M elements; or of a smaller one."""
    block = [
        *((width,), (width,), (width, 3 * width), (3 * width,)),
        *((width, width), (width,), (width,), (width,)),
        *((width, 4 * width), (4 * width,), (4 * width, width), (width,)),
    ]
    ends = [(vocabulary, width), (context, width), (width,), (width,)]
    return ends[:2] + block * layers + ends[2:]


def experts_shapes(
    width: int = 256,
    hidden: int = 32,
    layers: int = 28,
    experts: int = 32,
    vocabulary: int = 50257,
) -> Shapes:
    """A mixture of many small experts, each matrix a leaf: 3,000 leaves, 43M elements.

    One leaf of 12.9M (the embedding), one of 262,144 (positions), 112 of 65,536
    (attention), 28 of 8,192 (routers), 2,688 of 8,192 (three matrices for each of 32
    gated experts in 28 layers), 170 vectors of 256 and 32.
    """
    block: Shapes = [
        *((width,), (width,)),  # normalisation: scale, bias
        *((width, width),) * 4,  # queries, keys, values, output
        (width,),  # bias of the output
        *((width,), (width,)),  # normalisation
        *((width, experts), (experts,)),  # router
        *((width, hidden), (width, hidden), (hidden, width)) * experts,
    ]
    return [(vocabulary, width), (1024, width), *block * layers, (width,), (width,)]


TREES: dict[str, Callable[[], Shapes]] = {
    "one": lambda: [(64 * 2**20,)],
    "gpt2": gpt2_shapes,
    "many": lambda: [(2048,)] * 500,
    "many2000": lambda: [(2048,)] * 2000,
    "experts": experts_shapes,
}
QUICK_TREES: dict[str, Callable[[], Shapes]] = {
    "one": lambda: [(512,)],
    "gpt2": lambda: gpt2_shapes(64, 1, 512, 64),
    "many": lambda: [(32,)] * 4,
    "many2000": lambda: [(32,)] * 8,
    "experts": lambda: experts_shapes(16, 4, 1, 2, 64),
}


def by_parameters(sizes: list[int], leaves: int = 16) -> dict[int, Shapes]:
    """By number of parameters: so many leaves of the same size."""
    return {size: [(size // leaves,)] * leaves for size in sizes}


def by_leaves(counts: list[int], size: int = 2048) -> dict[int, Shapes]:
    """By number of leaves: so many of one size."""
    return {count: [(size,)] * count for count in counts}
