"""Tables as Markdown, which reads well in a terminal too."""

from collections.abc import Sequence


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; its first column is text, the others are numbers."""
    print(f"\n**{title}**\n")
    for row in [head, ["---"] + ["---:"] * (len(head) - 1), *rows]:
        print("| " + " | ".join(row) + " |")
