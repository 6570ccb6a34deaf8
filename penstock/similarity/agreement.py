"""How far two answers say the same, by their words. It must not know what was asked."""

import re
from collections import Counter

_TOKEN = re.compile(r"\w+")


def agreement(one: str, other: str) -> float:
    """Give the F1 of the words of two texts, from 0 to 1, each word counted as often as the text with fewer has it."""
    first, second = (Counter(_TOKEN.findall(text.casefold())) for text in (one, other))
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0
