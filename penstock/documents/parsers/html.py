"""Takes the readable text out of HTML. It must not know where the page came from, and it fetches nothing."""

import re

import trafilatura
from lxml import html

from penstock.documents.limits import Limits
from penstock.documents.parsers.plain import decode

_DECLARED_WITHIN_BYTES = 1024
_DECLARED = re.compile(rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([\w-]{1,40})""", re.IGNORECASE)
_HIDDEN = ("script", "style", "noscript", "template", "head", "svg", "iframe", "object")
_BLOCKS = (
    *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "footer", "form"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "option", "p", "pre", "section"),
    *("table", "td", "th", "tr", "ul"),
)


def parse(data: bytes, _: Limits) -> str:
    """Give the main text; where none stands out, all that a reader would see."""
    declared = _DECLARED.search(data, 0, _DECLARED_WITHIN_BYTES)
    source = decode(data, declared=declared[1].decode("ascii", "replace") if declared else None).replace("\0", "")
    main_text: str | None = trafilatura.extract(source, include_comments=False, favor_recall=True)
    return main_text or _all_text(source)


def _all_text(source: str) -> str:
    root = html.document_fromstring(source.encode(), parser=html.HTMLParser(encoding="utf-8"))
    for element in list(root.iter(*_HIDDEN)):
        element.drop_tree()
    for element in root.iter(*_BLOCKS):
        element.tail = "\n" + (element.tail or "")
    return str(root.text_content())
