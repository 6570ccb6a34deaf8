"""Cuts a long text into chunks, and finds a quote in it. It must not know models, prompts, nor what a token is."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.extractive.sentences import split_sentences

_LINE = re.compile(r"\S[^\r\n]*")
_WORD = re.compile(r"\S+")
_WORD_START = re.compile(r"(?<=\s)\S")
_FENCE = re.compile(r"```|~~~")
_MARKED = re.compile(r"#{1,6}\s+(?=\S)")
_UNDERLINE = re.compile(r"={3,}|-{3,}")
_NUMBERED = re.compile(
    r"(?i:chapter|book|part|volume|section|article|appendix)\s+(?:\d+|[IVXLC]+|[ivxlc]+|[A-Z])\b"
    r"|(?:\d{1,3}(?:\.\d{1,3}){0,5}\.?|[IVXLC]{1,7}\.|[A-Z]\.|§+\s?[\d.]+)\s+[^\W\d_a-z].*[^\s.,;:]$"
)
_CAPITALS = re.compile(r"[^\W\d_](?:[^\W\d_]|[ ,&()'\u2019\u2013-])*[^\W\d_]:?")
_LEAST_CAPITALS = 4
_MOST_HEADING_CHARACTERS = 120
_ZERO_WIDTH_JOINER = "\u200d"
_SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# How far around a place the rules of sentences look: an abbreviation before it, opening marks after it.
_SENTENCE_CONTEXT = 32
# Tokens are estimated from counts of this many characters or half the bound: in prose, an eighth of a chunk.
_LEAST_BLOCK = 256
# A rest that is this much over the bound by estimate may yet fit.
_ESTIMATES_MISS_BY = 1.1
_FIRST_CUTBACK = 1 / 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a text: `text` is what stands from `start` up to, not including, `end`, in characters.

    Chunks are numbered from 1. `heading` is the last heading that stands at or before `start`, or nothing.
    """

    number: int
    start: int
    end: int
    text: str = field(repr=False)
    heading: str


def chunk(text: str, most_tokens: int, count: Callable[[str], int]) -> list[Chunk]:
    """Cut `text` into chunks of at most `most_tokens` tokens by `count`, which leave out nothing and do not overlap.

    A chunk ends before a heading where it can; else between paragraphs, lines, sentences, words or characters, in
    that order; never inside a CR LF. It is at least half full, and the last two share what is left, as far as
    estimates are right. `count` should grow about evenly with its text: then it sees each character two or three
    times, in about ten calls a chunk. Raises ValueError if `most_tokens` is below 1 or a single character has more.
    """
    if most_tokens < 1:
        raise ValueError(f"most_tokens must be at least 1, not {most_tokens}")
    cutter = _Cutter(text, most_tokens, count, _outline(text), _estimate(text, most_tokens, count))
    chunks: list[Chunk] = []
    start = 0
    while start < len(text):
        end = cutter.end_of_chunk(start)
        chunks.append(Chunk(len(chunks) + 1, start, end, text[start:end], cutter.outline.heading_at(start)))
        start = end
    return chunks


def find_quote(text: str, quote: str) -> tuple[int, int] | None:
    """Give start and end, exclusive, of the first place where `quote` stands in `text`, or None.

    Any run of white space equals any other, and none counts at the ends of `quote`; all else must be the same. Linear.
    """
    flat_text, flat_quote = (" ".join(each.split()) for each in (text, quote))
    at = flat_text.find(flat_quote)
    if at < 0 or not flat_quote:
        return None
    first = at - flat_text.count(" ", 0, at)
    last = first + len(flat_quote) - flat_quote.count(" ") - 1
    start, final = _places(text, (first, last))
    return start, final + 1


def _places(text: str, ranks: Iterable[int]) -> Iterator[int]:
    """Give the offset of the nth character that is not white space, for each n of the ascending `ranks` there is."""
    passed = 0
    words = _WORD.finditer(text)
    word = next(words, None)
    for rank in ranks:
        while word and rank >= passed + word.end() - word.start():
            passed += word.end() - word.start()
            word = next(words, None)
        if word is None:
            return
        yield word.start() + rank - passed


class _Line(NamedTuple):
    """A line that is not blank, without the white space around it; underlined, its underline is no line."""

    begin: int
    words: str
    after_blank: bool
    underlined: bool = False


@dataclass(frozen=True)
class _Outline:
    """Offsets of lines by what they begin, ascending.

    A run-on is held by the line above: by a heading, a colon, fenced code, or a sentence that goes on. So of headings
    in a row, only the first begins a section.
    """

    titles: list[str] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    sections: list[int] = field(default_factory=list)
    paragraphs: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    run_ons: list[int] = field(default_factory=list)

    def heading_at(self, offset: int) -> str:
        """Give the last heading that begins at or before `offset`."""
        known = bisect_right(self.headings, offset)
        return self.titles[known - 1] if known else ""

    def breaks(self, line: _Line, *, is_heading: bool, held_above: bool) -> list[int]:
        """Choose where a line is noted."""
        if held_above or not (is_heading or line.after_blank or not line.words[0].islower()):
            return self.run_ons
        if is_heading:
            return self.sections
        return self.paragraphs if line.after_blank else self.lines


def _outline(text: str) -> _Outline:
    outline = _Outline()
    fence, held_above = "", False
    for line, following in pairwise(chain(_lines(text), (_Line(len(text), "", after_blank=True),))):
        is_short = len(line.words) <= _MOST_HEADING_CHARACTERS
        stands_alone = is_short and line.after_blank and following.after_blank
        is_marked = line.underlined or _MARKED.match(line.words) is not None
        is_heading = not fence and ((is_short and is_marked) or (stands_alone and _is_title(line.words)))
        if is_heading:
            outline.headings.append(line.begin)
            outline.titles.append(_MARKED.sub("", line.words).rstrip("# ") or line.words)
        outline.breaks(line, is_heading=is_heading, held_above=held_above).append(line.begin)
        if (mark := _FENCE.match(line.words)) and fence in {"", mark[0]}:
            fence = "" if fence else mark[0]
        # A short line without a full stop may be a heading of a kind not known here.
        leads_on = line.words[-1] == ":" or (stands_alone and line.words[-1].isalnum())
        held_above = is_heading or leads_on or fence != ""
    return outline


def _lines(text: str) -> Iterator[_Line]:
    line = None
    end = 0
    for match in _LINE.finditer(text):
        gap = text[end : match.start()]
        begin = end + max(gap.rfind("\n"), gap.rfind("\r")) + 1
        after_blank = line is None or gap.count("\n") + gap.count("\r") - gap.count("\r\n") > 1
        words = match[0].rstrip()
        end = match.end()
        if line and line.after_blank and not after_blank and _UNDERLINE.fullmatch(words):
            line = line._replace(underlined=True)
            continue
        if line:
            yield line
        line = _Line(begin, words, after_blank)
    if line:
        yield line


def _is_title(words: str) -> bool:
    """Tell whether a line between blank lines is numbered, or in capitals, as headings are."""
    in_capitals = len(words) >= _LEAST_CAPITALS and words.isupper() and _CAPITALS.fullmatch(words) is not None
    return in_capitals or _NUMBERED.match(words) is not None


@dataclass(frozen=True)
class _Estimate:
    """About how many tokens stand before each offset: counted at some, interpolated between them."""

    offsets: NDArray[np.float64]
    tokens: NDArray[np.float64]

    def before(self, offset: int) -> float:
        return float(np.interp(offset, self.offsets, self.tokens))

    def offset_of(self, tokens: float) -> int:
        return int(np.interp(tokens, self.tokens, self.offsets))


def _estimate(text: str, most_tokens: int, count: Callable[[str], int]) -> _Estimate:
    block = max(_LEAST_BLOCK, most_tokens // 2)
    starts = range(0, len(text), block)
    tokens = accumulate((count(text[start : start + block]) for start in starts), initial=0)
    return _Estimate(np.array([*starts, len(text)], np.float64), np.array([*tokens], np.float64))


@dataclass(frozen=True)
class _Window:
    """Where a chunk may end: after `low`, up to and including `high`, and rather near `ideal`."""

    low: int
    ideal: int
    high: int

    def nearest(self, offsets: Sequence[int]) -> int | None:
        """Choose among ascending `offsets`."""
        after = bisect_right(offsets, self.ideal)
        near = [offset for offset in offsets[max(0, after - 1) : after + 1] if self.low < offset <= self.high]
        return min(near, key=lambda offset: abs(offset - self.ideal), default=None)


@dataclass(frozen=True)
class _Cutter:
    text: str
    most_tokens: int
    count: Callable[[str], int]
    outline: _Outline
    estimate: _Estimate

    def end_of_chunk(self, start: int) -> int:
        """Find where the chunk that begins at `start` ends, so that it fits by count."""
        before = self.estimate.before(start)
        rest = self.estimate.before(len(self.text)) - before
        if rest <= self.most_tokens * _ESTIMATES_MISS_BY and self.count(self.text[start:]) <= self.most_tokens:
            return len(self.text)
        window = self._first_window(start, before, rest)
        cutback = _FIRST_CUTBACK
        while True:
            end = self._best_end(start, window)
            counted = self.count(self.text[start:end])
            if counted <= self.most_tokens:
                return end
            if end <= self._least_end(start):
                raise ValueError(f"the character at {start} has {counted} tokens, most_tokens is {self.most_tokens}")
            # The cutback grows, so that a count which hardly falls with its text still ends in few tries.
            high = start + int((end - start) * min(self.most_tokens / counted, 1 - cutback))
            window = self._window(start, start + (high - start) // 2, high, high)
            cutback = min(2 * cutback, 0.5)

    def _first_window(self, start: int, before: float, rest: float) -> _Window:
        """Aim at equal chunks; take at least half a chunk, and leave at least that, or a third of the last two."""
        low, ideal, high = (
            min(self.most_tokens / 2, rest / 3),
            rest / max(2, ceil(rest / self.most_tokens)),
            min(self.most_tokens, rest * 2 / 3),
        )
        return self._window(start, *(self.estimate.offset_of(before + tokens) for tokens in (low, ideal, high)))

    def _window(self, start: int, low: int, ideal: int, high: int) -> _Window:
        """Make room for at least one character."""
        least = self._least_end(start)
        high = max(least, high)
        return _Window(max(start, min(low, high - 1)), min(max(least, ideal), high), high)

    def _best_end(self, start: int, window: _Window) -> int:
        for offsets in self._boundaries(start, window):
            if (end := window.nearest(offsets)) is not None:
                return end
        low, ideal, high = window.low, window.ideal, window.high
        outwards = chain(range(ideal, low, -1), range(ideal + 1, high + 1), range(low, start, -1))
        if (end := next((offset for offset in outwards if not self._is_inside_character(offset)), None)) is not None:
            return end
        # One endless combining sequence.
        return ideal - self._is_inside_pair(ideal)

    def _boundaries(self, start: int, window: _Window) -> Iterator[Sequence[int]]:
        """Give offsets between ever smaller parts of the text, each found only when it is asked for."""
        outline = self.outline
        yield from (outline.sections, outline.paragraphs, outline.lines)
        yield self._whole(self._sentences(start, window))
        yield outline.run_ons
        yield self._whole(match.start() for match in _WORD_START.finditer(self.text, window.low + 1, window.high + 1))

    def _sentences(self, start: int, window: _Window) -> Iterator[int]:
        """Give where sentences begin that no line above holds: they keep all of a text but its white space."""
        begin = max(start, window.low - _SENTENCE_CONTEXT)
        part = self.text[begin : window.high + _SENTENCE_CONTEXT]
        ranks = accumulate(len(sentence) - sentence.count(" ") for sentence in split_sentences(part))
        run_ons = self.outline.run_ons
        held = {*run_ons[bisect_right(run_ons, window.low) : bisect_right(run_ons, window.high)]}
        places = (self._with_indent(begin + place) for place in _places(part, ranks))
        return (place for place in places if place not in held)

    def _with_indent(self, offset: int) -> int:
        """Give where the line begins, if only white space is before `offset` on it."""
        begin = offset
        while self.text[begin - 1] not in "\r\n" and self.text[begin - 1].isspace():
            begin -= 1
        return begin if self.text[begin - 1] in "\r\n" else offset

    def _whole(self, offsets: Iterable[int]) -> list[int]:
        """Leave out offsets inside what readers take for one character."""
        return [offset for offset in offsets if not self._is_inside_character(offset)]

    def _is_inside_character(self, offset: int) -> bool:
        last, following = self.text[offset - 1 : offset], self.text[offset : offset + 1]
        return following != "" and (
            unicodedata.category(following).startswith("M")
            or _ZERO_WIDTH_JOINER in {last, following}
            or _SKIN_TONES.match(following) is not None
            or self._is_inside_pair(offset)
        )

    def _is_inside_pair(self, offset: int) -> bool:
        pair = self.text[offset - 1 : offset + 1]
        return pair == "\r\n" or _SURROGATE_PAIR.match(pair) is not None

    def _least_end(self, start: int) -> int:
        return start + 1 + self._is_inside_pair(start + 1)
