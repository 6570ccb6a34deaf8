"""Finds the line that names a text. It must not know what else is said of it.

It is the first heading of a Markdown text, or, of the lines before the first sentence, section or label, the one with
the most terms that the rest of the text takes up again: names of offices and numbers of files are no subject.
"""

import re
from collections.abc import Sequence

from penstock.extractive.sentences import TERM, begins_alone, count_words, is_prose

_MOST_LINES = 20
_WORDS = range(3, 41)
_LEAST_TERMS_AGAIN = 2
_TERM = re.compile(TERM)
_TERM_LETTERS = 4
_HEADING = "# "
_OPENERS = ("[", "(")


def find_title(sentences: Sequence[str]) -> int | None:
    """Give the index of the title among the sentences of a text, or None where there is none."""
    candidates = []
    for end, line in enumerate(sentences[:_MOST_LINES]):
        if line.startswith(_HEADING):
            return end
        words = count_words(line)
        if (
            line.startswith("#")
            or line.endswith(":")
            or (is_prose(line) and words > _WORDS.start)
            or words >= _WORDS.stop
        ):
            break
        if words in _WORDS and not begins_alone(line) and not line.startswith(_OPENERS):
            candidates.append(end)
    else:
        end = _MOST_LINES
    rest = _terms(" ".join(sentences[end:]))
    again = {index: len(_terms(sentences[index]) & rest) for index in candidates}
    best = max(candidates, key=lambda index: (again[index], index), default=None)
    return best if best is not None and again[best] >= _LEAST_TERMS_AGAIN else None


def _terms(text: str) -> set[str]:
    return {term for term in _TERM.findall(text.lower()) if len(term) >= _TERM_LETTERS}
