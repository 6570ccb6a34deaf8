"""Which documents we read, and how they are named. It must not know how they are parsed."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from penstock.documents.faults import Fault, refusal


class Format(StrEnum):
    """What a document is made of."""

    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"
    PDF = "pdf"
    DOCX = "docx"


SUPPORTED_MEDIA_TYPES: Mapping[str, Format] = MappingProxyType(
    {
        "text/plain": Format.TEXT,
        "text/markdown": Format.MARKDOWN,
        "text/html": Format.HTML,
        "application/pdf": Format.PDF,
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document": Format.DOCX,
    }
)

_EXTENSIONS = {
    ".txt": Format.TEXT,
    ".md": Format.MARKDOWN,
    ".markdown": Format.MARKDOWN,
    ".html": Format.HTML,
    ".htm": Format.HTML,
    ".pdf": Format.PDF,
    ".docx": Format.DOCX,
}
_MEDIA_TYPES = {format_: media_type for media_type, format_ in SUPPORTED_MEDIA_TYPES.items()}


def media_type_of(path: Path) -> str:
    """Give the media type that the file name's extension stands for; the file itself is not looked at.

    Raises InvalidDocumentError for an extension that we do not read.
    """
    format_ = _EXTENSIONS.get(path.suffix.lower())
    if format_ is None:
        raise refusal(Fault.UNSUPPORTED, path.name, detail=path.suffix or "no extension")
    return _MEDIA_TYPES[format_]


def format_of(media_type: str, name: str) -> Format:
    """Give the format of a media type, whose parameters (such as charset) are ignored.

    Raises InvalidDocumentError, which names the document `name`, for a media type that we do not read.
    """
    format_ = SUPPORTED_MEDIA_TYPES.get(media_type.partition(";")[0].strip().lower())
    if format_ is None:
        raise refusal(Fault.UNSUPPORTED, name, detail=media_type)
    return format_
