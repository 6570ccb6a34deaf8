"""What can be wrong with a document, and how it is told to the caller. It must not know a document's text."""

from enum import StrEnum

from penstock.errors import InvalidDocumentError

_SHOWN_CHARACTERS = 100


class Fault(StrEnum):
    """Why a document gave no text."""

    UNSUPPORTED = "unsupported"
    EMPTY = "empty"
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    ENCRYPTED = "encrypted"
    NOT_TEXT = "not_text"
    NO_TEXT = "no_text"
    NO_TEXT_LAYER = "no_text_layer"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_UNPACKED_BYTES = "too_many_unpacked_bytes"
    TOO_MANY_PAGES = "too_many_pages"
    TOO_MANY_CHARACTERS = "too_many_characters"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"


class FaultError(Exception):
    """A parser found a fault; `detail` is the number of pages, characters or bytes where that matters."""

    def __init__(self, fault: Fault, detail: int = 0) -> None:
        """Name the fault."""
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail


_SPLIT = "split it into smaller documents"
_SAVE_AGAIN = "open it in the program that made it, save it again and send that file"
_AS_TEXT = "send its text as .txt instead"
_EXPLANATIONS: dict[Fault, tuple[str, str]] = {
    Fault.UNSUPPORTED: ("has an unsupported type ({detail})", "send .txt, .md, .html, .pdf or .docx"),
    Fault.EMPTY: ("is empty", "send a document with text in it"),
    Fault.CORRUPT: ("is corrupt: it cannot be read as {format}", _SAVE_AGAIN),
    Fault.TRUNCATED: ("is cut short: its end is missing", "send the whole file"),
    Fault.ENCRYPTED: ("is encrypted", "remove its password and send it again"),
    Fault.NOT_TEXT: ("is not text in any encoding that can be told", "send it as UTF-8, or under its real type"),
    Fault.NO_TEXT: ("holds no text", "send a document with text in it"),
    Fault.NO_TEXT_LAYER: ("has {detail} page(s) but no text: they are images or blank", "run OCR on it first"),
    Fault.TOO_MANY_BYTES: ("is too large: {detail} bytes, limit {limit}", _SPLIT),
    Fault.TOO_MANY_UNPACKED_BYTES: ("unpacks to {detail} bytes, limit {limit}", _SPLIT),
    Fault.TOO_MANY_PAGES: ("has {detail} pages, limit {limit}", _SPLIT),
    Fault.TOO_MANY_CHARACTERS: ("holds more than {limit} characters of text", _SPLIT),
    Fault.TIMED_OUT: ("took longer to parse than {limit} s", _AS_TEXT),
    Fault.OUT_OF_MEMORY: ("needs more memory to parse than {limit} bytes", _AS_TEXT),
}


def refusal(
    fault: Fault, name: str, *, format_: str = "", detail: int | str = "", limit: float | str = ""
) -> InvalidDocumentError:
    """Make the error for `fault` of the document called `name`, with the figure found and the limit it broke."""
    reason, cure = _EXPLANATIONS[fault]
    if isinstance(detail, str):
        detail = repr(detail[:_SHOWN_CHARACTERS])
    reason = reason.format(format=format_, detail=detail, limit=limit)
    return InvalidDocumentError("document", f"{name[:_SHOWN_CHARACTERS]!r} {reason}", cure)
