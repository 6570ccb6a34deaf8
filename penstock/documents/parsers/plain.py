"""Decodes text of unknown encoding. It must not know what the text means."""

from charset_normalizer import from_bytes

from penstock.documents.faults import Fault, FaultError
from penstock.documents.limits import Limits

_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_MANY_NULS = 0.4
_FEW_NULS = 0.2


def parse(data: bytes, _: Limits) -> str:
    """Give the text of `data` in whatever encoding it is."""
    return decode(data)


def decode(data: bytes, *, declared: str | None = None) -> str:
    """Decode as the UTF that the bytes show, or as `declared`, as UTF-8, or in the likeliest encoding.

    Raises FaultError when it is not text.
    """
    shown = unicode_encoding(data)
    for encoding in (shown,) if shown else (declared, "utf-8"):
        try:
            return data.decode(encoding or "utf-8")
        except (LookupError, ValueError):
            continue  # a wrong declaration is common
    return _decode_likeliest(data)


def unicode_encoding(data: bytes) -> str | None:
    """Tell UTF by its byte order mark, or UTF-16 by its NULs, which are every second byte of Western text."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return encoding
    even, odd = (data[start::2].count(0) / (len(data) / 2) for start in (0, 1))
    if max(even, odd) < _MANY_NULS or min(even, odd) > _FEW_NULS:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _decode_likeliest(data: bytes) -> str:
    guesses = () if b"\0" in data else from_bytes(data)
    # Of equals it names the first by alphabet, cp1250; short texts are far more often Western European.
    best = min(guesses, key=lambda it: (it.chaos, -round(it.coherence, 1), it.encoding != "cp1252"), default=None)
    if best is None:
        raise FaultError(Fault.NOT_TEXT)
    return str(best)
