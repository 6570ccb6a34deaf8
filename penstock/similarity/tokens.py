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
    |(?P<pause>[,()*\u2022\u2014]|(?<!\S)[-\u2010-\u2015]+(?!\S))
    |(?P<sign>[^\s\w'"\u2010-\u2015-])""",
    re.VERBOSE,
)


PAUSE = ","


@dataclass(frozen=True)
class Token:
    """A piece of a text as it was written. `is_first` says that a sentence begins with it."""

    kind: str
    text: str
    is_first: bool = False


def split(text: str) -> list[Token]:
    """Split a text into tokens. Commas, brackets, dashes and stops are pauses, of which several are one.

    A pause is none at the ends; spaces and hyphens are left out.
    """
    found: list[Token] = []
    is_first = True
    for match in _TOKEN.finditer(unicodedata.normalize("NFKC", text).translate(_STRAIGHT)):
        kind = str(match.lastgroup)
        if kind not in {"stop", "pause"}:
            found.append(Token(kind, match[0], is_first))
        elif found and found[-1].kind != "pause":
            found.append(Token("pause", PAUSE))
        is_first = kind == "stop" or (is_first and kind == "pause")
    return found[:-1] if found and found[-1].kind == "pause" else found
