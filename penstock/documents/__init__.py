"""Turns a document's bytes into clean text. It must not know jobs, prompts or providers, nor import a parser itself."""

from penstock.documents.extraction import EXTRACTOR_VERSION, extract_text
from penstock.documents.formats import SUPPORTED_MEDIA_TYPES, Format, media_type_of
from penstock.documents.limits import DEFAULT_LIMITS, Limits
from penstock.documents.text import normalise

__all__ = [
    "DEFAULT_LIMITS",
    "EXTRACTOR_VERSION",
    "SUPPORTED_MEDIA_TYPES",
    "Format",
    "Limits",
    "extract_text",
    "media_type_of",
    "normalise",
]
