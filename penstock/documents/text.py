"""Makes any string fit to store, send and compare. It must not know where the string came from."""

import re
import unicodedata

_LINE_BREAKS = re.compile(r"\r\n?|[\v\f]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_LONE_SURROGATES = re.compile(r"[\ud800-\udfff]")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){3,}")


def normalise(text: str) -> str:
    r"""Give `text` in NFC, with \n line ends, at most two blank lines in a row, and nothing that Postgres refuses.

    Control characters other than \n and \t are dropped (Postgres refuses NUL), form feeds become line ends, and lone
    surrogates, which have no UTF-8 form, become U+FFFD. White space at both ends goes. Idempotent.
    """
    text = _LINE_BREAKS.sub("\n", text)
    text = _CONTROLS.sub("", text)
    if not text.isascii():
        # After the controls are gone: a NUL between a letter and its accent would keep them from composing.
        text = unicodedata.normalize("NFC", _LONE_SURROGATES.sub("\ufffd", text))
    return _BLANK_LINES.sub("\n\n\n", text).strip()
