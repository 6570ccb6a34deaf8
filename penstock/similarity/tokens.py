"""An instruction as tokens: words, numbers, identifiers, quotations. It must not know what any of them means."""

import re
import unicodedata
from dataclasses import dataclass

_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00a0": " "})
_TOKEN = re.compile(
    r"""(?P<quotation>"[^"]+"|(?<!\w)'[^']+'(?!\w))
    |(?P<identifier>(?=[\w./\#-]*[\d_])[^\W\d]\w*(?:[-./\#]\w+)*|\d+(?:[-/]\d+){2,})
    |(?P<number>-?\.?\d+(?:[.,]\d+)*)
    |(?P<word>[^\W\d_]+(?:'[^\W\d_]+)*)
    |(?P<stop>[.!?:;\n])
    |(?P<sign>[^\s\w,()*'"\u2010-\u2015\u2022-])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    """A piece of a text as it was written. `is_first` says that a sentence begins with it."""

    kind: str
    text: str
    is_first: bool = False


def split(text: str) -> list[Token]:
    """Split a text into tokens; what is left out are spaces, commas, brackets, dashes and stops."""
    found: list[Token] = []
    is_first = True
    for match in _TOKEN.finditer(unicodedata.normalize("NFKC", text).translate(_STRAIGHT)):
        kind = str(match.lastgroup)
        if kind != "stop":
            found.append(Token(kind, match[0], is_first))
        is_first = kind == "stop"
    return found
