"""Splits a text into sentences and words. It must not know which of them matter."""

import re
from collections.abc import Iterator
from itertools import islice

_ABBREVIATIONS = frozenset(
    {
        *("mr", "mrs", "ms", "dr", "prof", "rev", "gen", "col", "lt", "sgt", "capt", "hon", "gov"),
        *("sen", "rep", "pres", "messrs", "st", "ave", "blvd", "rd", "mt", "ft", "no", "nos", "vol"),
        *("ch", "sec", "secs", "art", "pt", "par", "para", "fig", "figs", "eq", "ref", "refs", "app"),
        *("pub", "stat", "fed", "reg", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept"),
        *("oct", "nov", "dec", "vs", "cf", "al", "approx", "dept", "est", "seq", "inc", "ltd", "co"),
        *("corp", "jr", "sr"),
    }
)
_ABBREVIATION_CHARACTERS = 24
_CJK = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# What people count as a word; an ideograph is one, and endless runs are cut so that no text is a single word.
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]{{1,100}}")
_FENCED_CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_BEGINS_ALONE = re.compile(r"#{1,6}\s|[>|]|[*+-]\s|\d{1,3}[.)]\s")
_LAST_WORD = re.compile(r"[^\W\d_]+(?:\.[^\W\d_])*$")
_PROSE_ENDS = tuple(".!?\u3002\uff01\uff1f\"')\u2019\u201d\u300d\u300f")
_CLOSERS = "\"')\\]\u2019\u201d\u300d\u300f"
_OPENERS = "\"'(\\[\u2018\u201c*_"
_SENTENCE_END = re.compile(
    rf"(?P<mark>[.!?]{{1,9}})[{_CLOSERS}]{{0,3}}\s(?=[{_OPENERS}]{{0,3}}[^\W_a-z])"
    rf"|[\u3002\uff01\uff1f][{_CLOSERS}]{{0,3}}"
)

TERM = rf"[{_CJK}]|[^\W_{_CJK}]{{1,100}}"
"""The pattern of a term to compare sentences by: like a word, without its punctuation."""


def without_code(text: str) -> str:
    """Leave out fenced code blocks."""
    return _FENCED_CODE.sub("\n\n", text)


def split_sentences(text: str) -> list[str]:
    """Split into sentences with single spaces; headings, list items and paragraphs end one too."""
    return [sentence for paragraph in _paragraphs(text) for sentence in _sentences(paragraph) if sentence]


def begins_alone(line: str) -> bool:
    """Tell a heading, a quotation or an item of a list from other lines."""
    return _BEGINS_ALONE.match(line) is not None


def is_prose(sentence: str) -> bool:
    """Tell a sentence from a heading, a label or a fragment, by its end."""
    return sentence.endswith(_PROSE_ENDS)


def count_words(text: str, *, stop_at: int | None = None) -> int:
    """Count words, no further than `stop_at`."""
    return sum(1 for _ in islice(_WORD.finditer(text), stop_at))


def cut(text: str, max_words: int) -> str:
    """Give the first `max_words` words of `text`."""
    words = list(islice(_WORD.finditer(text), max_words))
    return text[: words[-1].end()] if words else ""


def _paragraphs(text: str) -> Iterator[str]:
    """Join hard-wrapped lines, but not across a blank line, a heading, a list item or a label."""
    lines: list[str] = []
    for raw_line in text.splitlines():
        line = " ".join(raw_line.split())
        if not line or _BEGINS_ALONE.match(line):
            yield " ".join(lines)
            lines = []
        lines.append(line)
        if line.startswith("#") or line.endswith((":", ";")):
            yield " ".join(lines)
            lines = []
    yield " ".join(lines)


def _sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        before = paragraph[max(start, end.start() - _ABBREVIATION_CHARACTERS) : end.start()]
        if end["mark"] != "." or not _is_abbreviation(before):
            yield paragraph[start : end.end()].strip()
            start = end.end()
    yield paragraph[start:].strip()


def _is_abbreviation(before: str) -> bool:
    """Tell whether a full stop after `before` belongs to an abbreviation or an initial rather than a sentence."""
    word = _LAST_WORD.search(before)
    return word is not None and (len(word[0]) == 1 or "." in word[0] or word[0].lower() in _ABBREVIATIONS)
