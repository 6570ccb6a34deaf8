"""Takes the text out of a DOCX's body. It must not know headers, footers or footnotes."""

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import docx
from lxml import etree

from penstock.documents.faults import Fault, FaultError
from penstock.documents.limits import Limits

_OLE_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_CELL, _ROW, _PARAGRAPH, _TEXT = f"{_W}tc", f"{_W}tr", f"{_W}p", f"{_W}t"
_CHARACTERS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_ROW_END = re.compile(r" \|[ |]*\n")
_SKIPPED = {
    f"{_W}pPr",  # tab stops are called <w:tab> too
    f"{_W}del",  # deleted by a tracked change
    f"{_W}moveFrom",
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",  # a text box for the second time
}


def parse(data: bytes, limits: Limits) -> str:
    """Give paragraphs and tables in the order of the document, a table row a line of cells between bars."""
    if data.startswith(_OLE_MAGIC):  # Word wraps a DOCX with a password so
        raise FaultError(Fault.ENCRYPTED)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # A lie in these sizes helps nobody: zipfile reads no further than a part's declared size.
        unpacked = sum(part.file_size for part in archive.infolist())
    if unpacked > limits.max_unpacked_bytes:
        raise FaultError(Fault.TOO_MANY_UNPACKED_BYTES, unpacked)
    # python-docx's own walk over paragraphs and tables leaves out content controls and insertions.
    return _ROW_END.sub("\n", "".join(_pieces(_body(data))))


def _body(data: bytes) -> Any:
    try:
        return docx.Document(io.BytesIO(data)).element.body
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from error
        raise


def _pieces(body: Any) -> Iterator[str]:
    walk = etree.iterwalk(body, events=("start", "end"))
    open_cells = 0
    for event, element in walk:
        if event == "start":
            open_cells += element.tag == _CELL
            if element.tag in _SKIPPED:
                walk.skip_subtree()
            yield element.text or "" if element.tag == _TEXT else _CHARACTERS.get(element.tag, "")
        else:
            open_cells -= element.tag == _CELL
            yield _end_of(element.tag, in_cell=open_cells > 0)


def _end_of(tag: str, *, in_cell: bool) -> str:
    if tag == _CELL:
        return "| "
    if tag in {_PARAGRAPH, _ROW}:
        return " " if in_cell else "\n"
    return ""
