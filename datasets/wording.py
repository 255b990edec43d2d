"""How things that somebody else has named are told in a sentence."""

from collections.abc import Iterable
from itertools import islice

_LONGEST_NAME = 80
_MOST_NAMES = 40


def listed(names: Iterable[str], *, nothing: str = "none") -> str:
    """Names in one line, whatever they are; "…" stands for what is too long, or too many.

    Args:
        names: of columns, cameras or files.
        nothing: what to say where there are none.
    """
    told = [_printable(name) for name in islice(names, _MOST_NAMES + 1)]
    if len(told) > _MOST_NAMES:
        told[-1] = "…"
    return ", ".join(told) or nothing


def _printable(name: str) -> str:
    plain = name if name.isprintable() else ascii(name)
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[:_LONGEST_NAME]}…"
