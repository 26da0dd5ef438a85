"""How the driver words things: the four parts of an error, ranks by name, what is not there.

Used by `errors.py`, which gives them on, and by whoever raises.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["explain", "name_ranks", "no_engine", "too_late"]


def explain(where: str, *, expected: str, received: str, mend: str) -> str:
    """Word a user's mistake in the four parts that every such error has.

    Args:
        where: dotted path, `file:line` or call; may be empty when the caller puts it in front.
        expected: what stands there in a correct input.
        received: what stood there.
        mend: what to do instead.

    Returns:
        `WHERE: expected EXPECTED, received RECEIVED; MEND`.

    Example:
        >>> explain("train.max_epochs", expected="a whole number", received="'ten' (str)", mend="write 10")
        "train.max_epochs: expected a whole number, received 'ten' (str); write 10"
    """
    return (f"{where}: " if where else "") + f"expected {expected}, received {received}; {mend}"


def name_ranks(ranks: Iterable[int]) -> str:
    """Name ranks in words.

    Args:
        ranks: at least one, in any order.

    Example:
        >>> name_ranks([3]), name_ranks([5, 0, 2, 1])
        ('rank 3', 'ranks 0-2, 5')
    """
    spans: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    several = len(words) > 1 or any("-" in word for word in words)
    return ("ranks " if several else "rank ") + ", ".join(words)


def no_engine(where: str, name: str, known: Iterable[str]) -> str:
    """Word the name of an engine that the program does not have.

    Args:
        where: the call that named it.
        name: the engine that was named.
        known: those that there are.

    Example:
        >>> no_engine("evaluate", "test", ["trainer"])
        "evaluate: expected an engine of the program ('trainer'), received 'test'; name one of them"
    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    mend = f"did you mean {near[0]!r}?" if near else "name one of them"
    expected = f"an engine of the program ({', '.join(map(repr, names))})"
    return explain(where, expected=expected, received=repr(name), mend=mend)


def too_late(where: str, what: str) -> str:
    """Word a registration after the ranks have been told what to report; `what` they do with it now, in words."""
    return explain(
        where,
        expected="handlers to be registered before the run starts",
        received=f"one in a started run, whose ranks {what}",
        mend="register it before run()",
    )
