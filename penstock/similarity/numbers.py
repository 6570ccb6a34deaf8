"""Numbers in one form: digits, words, money, per cent, ordinals, dates. It must not know what is counted.

"$120,000", "120k dollars" and "USD 120,000" are one number, "$12,000" is another. What can be read in two ways, such as
"1.000" or "4/5/2017", stays as it is written, and so equals nothing else.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from penstock.similarity.tokens import PAUSE
from penstock.similarity.words import listed

UNITS = {
    word: number
    for number, word in enumerate(
        listed(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
            " seventeen eighteen nineteen"
        )
    )
}
TENS = {
    word: 10 * number for number, word in enumerate(listed("twenty thirty forty fifty sixty seventy eighty ninety"), 2)
}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
SHORT_SCALES = {"k": 1000, "m": 10**6, "mn": 10**6, "bn": 10**9, **SCALES}
ORDINALS = {
    word: number
    for number, word in enumerate(
        listed("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"), 1
    )
}
ORDINAL_ENDS = {"st", "nd", "rd", "th"}
CURRENCIES = {
    "$": "usd", "usd": "usd", "dollar": "usd", "dollars": "usd",
    "\u20ac": "eur", "eur": "eur", "euro": "eur", "euros": "eur",
    "\u00a3": "gbp", "gbp": "gbp", "pound": "gbp", "pounds": "gbp",
}  # fmt: skip
MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug",
            "september sep sept", "october oct", "november nov", "december dec",
        ),
        1,
    )
    for name in names.split()
}  # fmt: skip
MARK = "="
"""What a number in normal form begins with."""

_DAY_AND_MONTH = 2
_GROUPED = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")
_DAY = re.compile(r"0?([1-9]|[12]\d|3[01])")
_YEAR = re.compile(r"[12]\d{3}")


def fold_numbers(words: Sequence[str]) -> list[str]:
    """Put every number of a text in lower case into its normal form; other words stay where they are."""
    folded: list[str] = []
    place = 0
    while place < len(words):
        number, used = _date(words[place:]) or _amount(words[place:]) or ("", 0)
        folded.append(MARK + number if used else words[place])
        place += used or 1
    return folded


def is_number(word: str) -> bool:
    """Tell whether a word is a number in normal form."""
    return word.startswith(MARK)


def _date(words: Sequence[str]) -> tuple[str, int] | None:
    """Read a day, a month by its name and, if there is one, a year."""
    pair = tuple(words[:_DAY_AND_MONTH])
    for day, month in (pair, pair[::-1]) if len(pair) == _DAY_AND_MONTH else ():
        found = _DAY.fullmatch(day)
        if found is None or month not in MONTHS:
            continue
        used = _DAY_AND_MONTH + any(word in ORDINAL_ENDS for word in words[_DAY_AND_MONTH : _DAY_AND_MONTH + 1])
        behind = [word for word in words[used : used + 2] if word != PAUSE][:1]
        if behind and _YEAR.fullmatch(behind[0]):
            return f"{behind[0]}-{MONTHS[month]:02}-{int(found[1]):02}", list(words).index(behind[0], used) + 1
        return f"any-{MONTHS[month]:02}-{int(found[1]):02}", used
    return None


def _amount(words: Sequence[str]) -> tuple[str, int] | None:
    """Read an ordinal, or a number with its currency, scale or per cent."""
    if words[0] in ORDINALS:
        return f"#{ORDINALS[words[0]]}", 1
    currency = CURRENCIES.get(words[0], "")
    start = 1 if currency else 0
    read = _plain(words[start:])
    if read is None:
        return None
    number, used = read
    rest = words[start + used :]
    if rest and rest[0] in ORDINAL_ENDS and not currency:
        return f"#{number}", used + 1
    if rest and rest[0] in SHORT_SCALES and (scaled := _scaled(number, SHORT_SCALES[rest[0]])):
        number, used, rest = scaled, used + 1, rest[1:]
    if not currency and rest and rest[0] in CURRENCIES:
        currency, used = CURRENCIES[rest[0]], used + 1
    elif rest and rest[0] in {"%", "percent"}:
        number, used = number + "%", used + 1
    elif list(rest[:2]) == ["per", "cent"]:
        number, used = number + "%", used + 2
    return (f"{currency}:{number}" if currency else number), start + used


def _plain(words: Sequence[str]) -> tuple[str, int] | None:
    """Read digits, or a number in words such as "one hundred twenty thousand"."""
    if words and re.fullmatch(r"-?\d[\d.,]*", words[0]):
        return (words[0].replace(",", "") if _GROUPED.fullmatch(words[0]) else words[0]), 1
    total = current = used = 0
    for word in words:
        if _is_small(word):
            current += UNITS.get(word, 0) or TENS.get(word, 0)
        elif used and word == "hundred":
            current *= SCALES[word]
        elif used and word in SCALES:
            total, current = total + current * SCALES[word], 0
        elif word == "and" and words[used - 1] in SCALES and words[used + 1 : used + 2] and _is_small(words[used + 1]):
            pass
        else:
            break
        used += 1
    return (str(total + current), used) if used else None


def _is_small(word: str) -> bool:
    return word in UNITS or word in TENS


def _scaled(number: str, scale: int) -> str | None:
    """Multiply a number that can be read in one way only."""
    if not re.fullmatch(r"-?\d+(\.\d{1,2})?", number):
        return None
    return format((Decimal(number) * scale).normalize(), "f")
