"""What can be told of a summary from its source alone, and what of it moved. It must not know who wrote the summary.

`check` looks at one summary without a model or a reference, `compare` at those of two versions of a prompt. Texts are
taken as they are: both have to be in one language and in one Unicode form, which is NFC for documents.
"""

import math
import re
import string
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import NormalDist, fmean, median

from penstock.extractive.sentences import TERM, count_words

__all__ = ["ALPHA", "MIN_COVERAGE", "VERBATIM_WORDS", "Moved", "Quality", "check", "compare", "unsupported_numbers"]

MIN_COVERAGE = 0.5
"""Less is poor coverage: 7 to 8 % of what people wrote has it, and 88 % of what they wrote of another document."""
VERBATIM_WORDS = 8
"""As many words in a row that stand in the source are copied, not chosen alike."""
ALPHA = 0.01
"""How often `compare` may flag anything when nothing moved; each of its measures has an equal part (Bonferroni)."""

_SAMPLES = ("words", "ratio", "coverage", "verbatim_share")
_RATES = ("is_empty", "is_poorly_covered", "has_unsupported_numbers", "is_refusal", "is_truncated")
_ALPHA_OF_EACH = ALPHA / (len(_SAMPLES) + len(_RATES))
_CRITICAL_Z = NormalDist().inv_cdf(1 - _ALPHA_OF_EACH / 2)
_CRITICAL_DISTANCE = math.sqrt(-math.log(_ALPHA_OF_EACH / 2) / 2)

_TERM = re.compile(TERM)
_FUNCTION_WORDS = frozenset(
    {
        *("about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because", "been", "before"),
        *("being", "but", "by", "can", "could", "did", "do", "does", "for", "from", "had", "has", "have", "he"),
        *("her", "his", "how", "if", "in", "into", "is", "it", "its", "may", "more", "most", "must", "no", "nor"),
        *("not", "of", "on", "only", "or", "other", "our", "out", "over", "shall", "she", "should", "so", "some"),
        *("such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those"),
        *("through", "to", "under", "until", "up", "upon", "was", "we", "were", "what", "when", "where", "which"),
        *("who", "whom", "whose", "why", "will", "with", "would", "you", "your"),
    }
)

_MARKS = ".,'\u2019\u00a0\u2009\u202f\u066b\u066c"
_DECIMALS = r"[.,\u066b](?P<decimals>\d+)"
_SCALES = {"thousand": 3, "million": 6, "mn": 6, "billion": 9, "bn": 9, "trillion": 12}
_NUMBER = re.compile(rf"(?P<figure>\d+(?:[{_MARKS}]\d+)*)(?:[\s-]?(?P<scale>{'|'.join(_SCALES)})\b)?", re.IGNORECASE)
_GROUPED = re.compile(
    rf"(?P<whole>[1-9]\d{{0,2}}(?P<mark>\D)\d{{3}}(?:(?P=mark)\d{{3}})*)(?:(?!(?P=mark)){_DECIMALS})?"
)
_UNGROUPED = re.compile(rf"(?P<whole>\d+)(?:{_DECIMALS})?")
_LIST_NUMBER = re.compile(r"^[ \t]*\d{1,3}[.)]\s", re.MULTILINE)

_OPENING_CHARACTERS = 300
_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:'m| am) sorry, (?:but )?(?:i|there|the)\b"
    r"|\bi apologi[sz]e, but\b"
    r"|\bi (?:must|have to) (?:respectfully )?decline\b"
    r"|\bi(?:'m| am)? (?:can't|can ?not|unable to|not able to|won't) (?:be able to )?"
    r"(?:access|answer|assist|complete|comply|create|do (?:that|this)|fulfill?|generate|help|open|process|produce"
    r"|provide|read|summari[sz]e|view|write)\b"
    r"|\bplease (?:paste|provide|share|upload) (?:me )?(?:with )?(?:the|your) (?:content|document|file|text)\b",
    re.IGNORECASE,
)
_CUT_SHORT = frozenset({"length", "max_tokens"})
_SENTENCE_ENDS = tuple(".!?\u2026\u3002\uff01\uff1f\u061f\u06d4\u0964\u0965\u0589\u1362\u104b\u17d4\u0f0d")
_CLOSERS = string.whitespace + "\"'*_`)]}\u00bb\u2019\u201d\u300d\u300f\uff09\u3011"


@dataclass(frozen=True)
class Quality:
    """What one summary is like. It holds figures alone and no text, so that it may be logged.

    `coverage` is the share of the summary's different content words that the source has, None if it has no such word.
    `ratio` is its length by the source's, None if that is empty. `verbatim_share` is the share of its runs of
    VERBATIM_WORDS words that stand in the source, None if it is shorter. `unsupported_numbers` counts different ones.
    """

    words: int
    ratio: float | None
    coverage: float | None
    unsupported_numbers: int
    verbatim_share: float | None
    is_refusal: bool
    is_truncated: bool

    @property
    def is_empty(self) -> bool:
        """Tell whether there is not one word."""
        return self.words == 0

    @property
    def is_poorly_covered(self) -> bool:
        """Tell whether the summary may be one of another document."""
        return self.coverage is not None and self.coverage < MIN_COVERAGE

    @property
    def has_unsupported_numbers(self) -> bool:
        """Tell whether a number is not the source's: of use as a rate, since people know numbers of their own, too."""
        return self.unsupported_numbers > 0


@dataclass(frozen=True)
class Moved:
    """A measure that is not what it was: a quantity with its medians, or a rate with the shares of results.

    `statistic` is the Kolmogorov-Smirnov distance of a quantity, or the absolute z of a rate. It is above `threshold`,
    which for a distance depends on how many results there are; z counts them itself.
    """

    name: str
    before: float
    after: float
    statistic: float
    threshold: float


def check(source: str, summary: str, finish_reason: str | None = None) -> Quality:
    """Look at a summary of `source`, in time linear in both; `finish_reason` is what the provider said of its end.

    An ideograph counts as a word. A summary in another language than its source has a coverage near 0.
    """
    words, source_words = count_words(summary), count_words(source)
    terms, source_terms = (_TERM.findall(text.casefold()) for text in (summary, source))
    return Quality(
        words=words,
        ratio=words / source_words if source_words else None,
        coverage=_coverage(source_terms, terms),
        unsupported_numbers=len(unsupported_numbers(source, summary)),
        verbatim_share=_verbatim_share(source_terms, terms),
        is_refusal=_is_refusal(summary),
        is_truncated=_is_truncated(summary, finish_reason),
    )


def unsupported_numbers(source: str, summary: str) -> tuple[str, ...]:
    """Give the numbers of `summary` that `source` lacks, once each, in their order, in the form that is compared.

    That form has no grouping, no scale, no zeros before it and none behind its decimals: 1,000 and 1.000,00 and
    1 thousand are 1000. Three digits behind a mark are a group (1.125 is 1125) unless a zero or more than three digits
    stand before it. Each part of a date, a version or a section is a number. Signs, currencies and per cent are not
    compared, nor numbers in words, nor those that count the items of a list.
    """
    supported = set(chain.from_iterable(_forms(number) for number in _NUMBER.finditer(source)))
    wanted = chain.from_iterable(_scaled(number) for number in _NUMBER.finditer(_LIST_NUMBER.sub("\n", summary)))
    return tuple(number for number in dict.fromkeys(wanted) if number not in supported)


def compare(before: Sequence[Quality], after: Sequence[Quality]) -> list[Moved]:
    """Give what moved between the results of two versions, more than results that are alike do by chance.

    Quantities are compared by the two-sample Kolmogorov-Smirnov distance with Smirnov's bound for large samples (1948),
    sqrt(-ln(alpha / 2) / 2) * sqrt((n + m) / (n * m)); under eight results a side nothing exceeds it. Rates are
    compared by z, the smaller of that with a pooled variance and of Agresti and Caffo's (2000), which adds a hit and a
    miss to each side: the first alone flags one rare event in a small sample, the second alone too many middling ones.
    Among thousands of results small differences are flagged as well: look at how far it moved.
    """
    found = [_compare_samples(name, _known(name, before), _known(name, after)) for name in _SAMPLES]
    found += [_compare_rates(name, _known(name, before), _known(name, after)) for name in _RATES]
    return [moved for moved in found if moved is not None and moved.statistic > moved.threshold]


def _coverage(source_terms: Sequence[str], terms: Sequence[str]) -> float | None:
    content = {term for term in terms if _is_content(term)}
    return len(content.intersection(source_terms)) / len(content) if content else None


def _is_content(term: str) -> bool:
    return term not in _FUNCTION_WORDS and not term.isdigit() and (len(term) > 1 or not term.isascii())


def _verbatim_share(source_terms: Sequence[str], terms: Sequence[str]) -> float | None:
    runs = list(_runs(terms))
    taken = set(runs).intersection(_runs(source_terms))
    return fmean(run in taken for run in runs) if runs else None


def _runs(terms: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(terms[start:] for start in range(VERBATIM_WORDS)), strict=False)


def _is_refusal(summary: str) -> bool:
    """Look for how models refuse, in English, where they say it first; documents say such things later on."""
    return _REFUSAL.search(summary.strip()[:_OPENING_CHARACTERS].replace("\u2019", "'")) is not None


def _is_truncated(summary: str, finish_reason: str | None) -> bool:
    """Tell whether the provider says so, or there is text without an end; Thai and Lao have no mark to end with."""
    if finish_reason is not None and finish_reason.casefold() in _CUT_SHORT:
        return True
    end = summary.rstrip().rstrip(_CLOSERS)[-1:]
    return bool(end) and end not in _SENTENCE_ENDS and not "\u0e00" <= end <= "\u0eff"


def _forms(number: re.Match[str]) -> list[str]:
    """Give what a number of the source supports: 1.5 million is 1500000, and may be told as 1.5 in a table of them."""
    return [*_scaled(number), *(_figures(number["figure"], 0) if number["scale"] else ())]


def _scaled(number: re.Match[str]) -> list[str]:
    return _figures(number["figure"], _SCALES[number["scale"].lower()] if number["scale"] else 0)


def _figures(written: str, zeros: int) -> list[str]:
    """Give the one number that is written, or its parts if the marks between them make no number."""
    number = _GROUPED.fullmatch(written) or _UNGROUPED.fullmatch(written)
    if number is not None:
        return [_figure(number["whole"], number["decimals"] or "", zeros)]
    return [_figure(part, "", 0) for part in re.findall(r"\d+", written)]


def _figure(whole: str, decimals: str, zeros: int) -> str:
    """Join the digits of any script, with the point `zeros` places further right."""
    decimals = _digits(decimals).ljust(zeros, "0")
    whole = (_digits(whole) + decimals[:zeros]).lstrip("0") or "0"
    return f"{whole}.{decimals[zeros:]}".rstrip("0").rstrip(".") if decimals[zeros:] else whole


def _digits(text: str) -> str:
    return "".join(str(unicodedata.decimal(character)) for character in text if character.isdecimal())


def _known(name: str, qualities: Sequence[Quality]) -> list[float]:
    return [value for value in (getattr(quality, name) for quality in qualities) if value is not None]


def _compare_samples(name: str, before: Sequence[float], after: Sequence[float]) -> Moved | None:
    if not before or not after:
        return None
    threshold = _CRITICAL_DISTANCE * math.sqrt(1 / len(before) + 1 / len(after))
    return Moved(name, median(before), median(after), _distance(sorted(before), sorted(after)), threshold)


def _distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Give the largest distance of two empirical distributions, of values in ascending order."""
    return max(
        abs(bisect_right(left, value) / len(left) - bisect_right(right, value) / len(right))
        for value in {*left, *right}
    )


def _compare_rates(name: str, before: Sequence[float], after: Sequence[float]) -> Moved | None:
    if not before or not after:
        return None
    sides = (sum(before), len(before)), (sum(after), len(after))
    statistic = min(_pooled_z(*sides[0], *sides[1]), _agresti_caffo_z(*sides[0], *sides[1]))
    return Moved(name, fmean(before), fmean(after), statistic, _CRITICAL_Z)


def _pooled_z(hits: float, count: int, other_hits: float, other_count: int) -> float:
    pooled = (hits + other_hits) / (count + other_count)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / count + 1 / other_count))
    return abs(hits / count - other_hits / other_count) / deviation if deviation else 0.0


def _agresti_caffo_z(hits: float, count: int, other_hits: float, other_count: int) -> float:
    rate, other_rate = (hits + 1) / (count + 2), (other_hits + 1) / (other_count + 2)
    variance = rate * (1 - rate) / (count + 2) + other_rate * (1 - other_rate) / (other_count + 2)
    return abs(rate - other_rate) / math.sqrt(variance)
