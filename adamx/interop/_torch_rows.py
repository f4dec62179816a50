"""The shortest regular expressions that tell groups of paths apart, for `groups`.

(^|/)(bias|scale)$      by what the parameters are called, where that suffices
^(embed|head)/          by where they are
^(a/b|c/d/e)$           else each of them
"""

import re
from collections.abc import Sequence

_MOST = 6  # names in an expression by last or first parts


def rules_for(sets: Sequence[Sequence[str]]) -> list[str]:
    """For each set of paths a regular expression that is found in no other set.

    Args:
      sets: disjoint lists of paths.
    """
    return [
        _rule(own, [p for j, other in enumerate(sets) if j != i for p in other])
        for i, own in enumerate(sets)
    ]


def _rule(own: Sequence[str], others: Sequence[str]) -> str:
    last = list(dict.fromkeys(path.rpartition("/")[2] for path in own))
    if len(last) <= _MOST:
        rule = f"(^|/){_any(last)}$"
        if _is_apart(rule, others):
            return rule
    deepest = max(path.count("/") for path in own)
    for depth in range(1, deepest + 1):
        heads = list(dict.fromkeys("/".join(p.split("/")[:depth]) for p in own))
        if len(heads) > _MOST:
            break
        rule = f"^{_any(heads)}(/|$)"
        if _is_apart(rule, others):
            return rule
    return f"^{_any(own)}$"


def _any(words: Sequence[str]) -> str:
    quoted = [re.escape(word).replace(r"\-", "-") for word in words]
    return quoted[0] if len(quoted) == 1 else f"({'|'.join(quoted)})"


def _is_apart(rule: str, others: Sequence[str]) -> bool:
    return not any(re.search(rule, path) for path in others)
