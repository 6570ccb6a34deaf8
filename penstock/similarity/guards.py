"""What must be equal in two instructions before one answer may serve both. It must not know distances or thresholds.

Each instruction is brought to a canonical form: numbers, negations and a few classes of words in one spelling, idle
words left out. The forms must be equal, word by word in order. Each guard looks at its own part of them first, so that
a refusal says what differs.

The lists are English. Two texts of which one is not surely English must be the same text.
"""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import pairwise

from penstock.similarity.numbers import CURRENCIES, fold_numbers, is_number
from penstock.similarity.tokens import PAUSE, Token, split
from penstock.similarity.words import (
    DIRECTIONS,
    ENGLISH,
    FOREIGN,
    IDLE,
    NEGATIONS,
    PHRASES,
    POLITE,
    SETS_APART,
    SYNONYMS,
)

LEAST_ENGLISH_SHARE = 0.25
LONGEST_PHRASE = max(map(len, PHRASES))
_CONTRACTIONS = (
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\b(?:can't|cannot)\b"), "can not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"'s\b"), ""),
    (re.compile(r"'(?=\s|$)"), ""),
)


class Guard(StrEnum):
    """What kept two instructions apart."""

    LANGUAGE = "language"
    NUMBERS = "numbers"
    NEGATION = "negation"
    NAMES = "names"
    DIRECTION = "direction"
    WORDS = "words"


def refusal(one: str, other: str) -> Guard | None:
    """Name the guard that forbids one answer for both instructions; None where each lets them pass."""
    if _plain(one) == _plain(other):
        return None
    if not (is_english(one) and is_english(other)):
        return Guard.LANGUAGE
    first, second = canonical(one), canonical(other)
    for guard, part in _PARTS:
        if part(first) != part(second):
            return guard
    if not _same_names(split(one), split(other)):
        return Guard.NAMES
    return Guard.WORDS if first != second else None


def is_english(text: str) -> bool:
    """Tell whether the lists of words hold for a text: plain letters, English words, none of another language."""
    words = _words([token for token in split(text) if token.kind == "word"])
    known = sum(word in ENGLISH for word in words)
    return (
        bool(known)
        and known >= LEAST_ENGLISH_SHARE * len(words)
        and not any(word in FOREIGN or not word.isascii() for word in words)
    )


def canonical(text: str) -> list[str]:
    """Give the words of an English instruction in canonical form."""
    words = _phrases(_without_politeness(fold_numbers(_words(split(text)))))
    named = [SYNONYMS.get(word, word) for word in words]
    return _without_all(_phrases([word for word in _paused(named) if word not in IDLE]))


def _plain(text: str) -> str:
    """Give a text without what never means anything: space at its ends, double space, the last stop."""
    bare = " ".join(text.split()).rstrip(" .!")
    return bare[:1].lower() + bare[1:]


def _words(tokens: Sequence[Token]) -> list[str]:
    """Give words in lower case and British spelling, contractions in full; identifiers and quotations as they are."""
    words: list[str] = []
    for token in tokens:
        if token.kind != "word":
            words.append("and" if token.text == "&" else token.text)
            continue
        word = token.text.casefold()
        for pattern, replacement in _CONTRACTIONS:
            word = pattern.sub(replacement, word)
        words += [re.sub(r"iz(e|es|ed|ing|ation|ations)$", r"is\1", part) for part in word.split()]
    return words


def _without_politeness(words: list[str]) -> list[str]:
    while words and words[0] in {"please", "kindly"}:
        words = words[1:]
    opening = next((phrase for phrase in POLITE if tuple(words[: len(phrase)]) == phrase), ())
    return words[len(opening) :]


def _paused(words: Sequence[str]) -> list[str]:
    """Leave out pauses where one more or less says nothing: before a word that itself sets apart what follows."""
    return [word for word, after in pairwise([*words, ""]) if word != PAUSE or after not in SETS_APART]


def _without_all(words: list[str]) -> list[str]:
    """Leave out "all" and "every" behind "list", but not where something is denied: "not all" is less than "not"."""
    if any(word in NEGATIONS for word in words):
        return words
    return [word for before, word in pairwise(["", *words]) if before != "list" or word not in {"all", "every"}]


def _phrases(words: Sequence[str]) -> list[str]:
    """Put what stands for several words in their place, the longest phrase first."""
    replaced: list[str] = []
    place = 0
    while place < len(words):
        for length in range(min(LONGEST_PHRASE, len(words) - place), 0, -1):
            phrase = tuple(words[place : place + length])
            if phrase in PHRASES:
                replaced += filter(None, [PHRASES[phrase]])
                place += length
                break
        else:
            replaced.append(words[place])
            place += 1
    return replaced


def _same_names(one: Sequence[Token], other: Sequence[Token]) -> bool:
    """Tell whether both have the same names in the same order, in the same spelling.

    A name has a capital letter; a sentence's first word is one where it is in capitals, or a name in the other text.
    """
    known = {token.text for tokens in (one, other) for token in tokens if _is_name(token)}
    first, second = ([t.text for t in tokens if _is_name(t) or t.text in known] for tokens in (one, other))
    return first == second


def _is_name(token: Token) -> bool:
    if token.kind != "word":
        return token.kind in {"identifier", "quotation"}
    is_capitalised_first = token.is_first and token.text[1:] == token.text[1:].lower()
    return token.text != token.text.lower() and not is_capitalised_first and token.text.lower() not in CURRENCIES


def _picker(chosen: Callable[[str], bool]) -> Callable[[list[str]], list[str]]:
    return lambda words: [word for word in words if chosen(word)]


_PARTS = (
    (Guard.NUMBERS, _picker(is_number)),
    (Guard.NEGATION, _picker(NEGATIONS.__contains__)),
    (Guard.DIRECTION, _picker(DIRECTIONS.__contains__)),
)
