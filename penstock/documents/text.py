"""Makes any string fit to store, send and compare. It must not know where the string came from."""

import re
import unicodedata
from functools import cache

_LINE_BREAKS = re.compile(r"\r\n?|[\v\f]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_CONTROL_BYTES = bytes((*range(0x09), *range(0x0E, 0x20), 0x7F))
_LONE_SURROGATES = re.compile(r"[\ud800-\udfff]")
_MARKS = 0x300, 0x1E950
_MOST_MARKS = 30
_MAYBE_LONG_RUNS = re.compile(rf"[{chr(_MARKS[0])}-{chr(_MARKS[1])}]{{{_MOST_MARKS + 1},}}")
_JOINER = "\u034f"
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){3,}")


def normalise(text: str) -> str:
    r"""Give `text` in NFC, with \n line ends, at most two blank lines in a row, and nothing that Postgres refuses.

    Control characters other than \n and \t are dropped (Postgres refuses NUL), form feeds become line ends, and lone
    surrogates, which have no UTF-8 form, become U+FFFD. White space at both ends goes. Idempotent, and linear: a run of
    more than 30 combining marks, which no language has, is broken by a joiner that is not seen (the stream-safe form of
    Unicode's annex 15), since to put such a run in order takes its square.
    """
    if any(mark in text for mark in "\r\v\f"):
        text = _LINE_BREAKS.sub("\n", text)
    if len(_without(text, _CONTROL_BYTES)) < len(_without(text, b"")):
        text = _CONTROLS.sub("", text)
    if not text.isascii():
        # After the controls are gone: a NUL between a letter and its accent would keep them from composing.
        text = _LONE_SURROGATES.sub("\ufffd", text)
        text = _MAYBE_LONG_RUNS.sub(lambda run: _long_runs().sub(_broken, run[0]), text)
        text = unicodedata.normalize("NFC", text)
    if b"\n\n\n\n" in _without(text, b" \t"):
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip()


def _without(text: str, unwanted: bytes) -> bytes:
    """Drop ASCII characters from the UTF-8 of a text: a look whether there is work takes a tenth of it."""
    return text.encode("utf-8", "surrogatepass").translate(None, unwanted)


@cache
def _long_runs() -> re.Pattern[str]:
    marks = "".join(map(chr, filter(lambda code: unicodedata.combining(chr(code)), range(*_MARKS))))
    return re.compile(f"[{marks}]{{{_MOST_MARKS + 1},}}")


def _broken(run: re.Match[str]) -> str:
    marks = run[0]
    return _JOINER.join(marks[at : at + _MOST_MARKS] for at in range(0, len(marks), _MOST_MARKS))
