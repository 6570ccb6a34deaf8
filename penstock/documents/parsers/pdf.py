"""Takes the text layer out of a PDF. It must not guess at what stands in images."""

import io

from pypdf import PasswordType, PdfReader

from penstock.documents.faults import Fault, FaultError
from penstock.documents.limits import Limits

_TAIL_BYTES = 2048


def parse(data: bytes, limits: Limits) -> str:
    """Give the text page by page. A document that opens without a password is not encrypted to its readers."""
    # pypdf rebuilds a cut file from what is left, and would give half a document for a whole one.
    if b"%%EOF" not in data[-_TAIL_BYTES:]:
        raise FaultError(Fault.TRUNCATED if data.startswith(b"%PDF-") else Fault.CORRUPT)
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and reader.decrypt("") is PasswordType.NOT_DECRYPTED:
        raise FaultError(Fault.ENCRYPTED)
    if len(reader.pages) > limits.max_pages:
        raise FaultError(Fault.TOO_MANY_PAGES, len(reader.pages))
    text = _text(reader, limits)
    if not text.strip():
        raise FaultError(Fault.NO_TEXT_LAYER, len(reader.pages))
    return text


def _text(reader: PdfReader, limits: Limits) -> str:
    pages: list[str] = []
    characters = 0
    for page in reader.pages:
        pages.append(page.extract_text())
        characters += len(pages[-1])
        if characters > limits.max_characters:
            raise FaultError(Fault.TOO_MANY_CHARACTERS)
    return "\n\n".join(pages)
