"""Documents of every format become text, and bad ones become one clear error each."""

import io
import json
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject, StreamObject

from penstock.documents import (
    DEFAULT_LIMITS,
    EXTRACTOR_VERSION,
    SUPPORTED_MEDIA_TYPES,
    Format,
    Limits,
    extract_text,
    media_type_of,
    normalise,
)
from penstock.errors import InvalidDocumentError

SAMPLES = Path(__file__).parents[1] / "samples"
FIXTURES = Path(__file__).parent / "fixtures" / "documents"
PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
DOCUMENT_TEXT = "Mr. Bennet owes 4,711 pounds"


def sample(name: str) -> str:
    """Extract a sample."""
    return extract_text((SAMPLES / name).read_bytes(), media_type_of(Path(name)), name=name)


def refusal(data: bytes, media_type: str, limits: Limits = DEFAULT_LIMITS) -> InvalidDocumentError:
    """Give the error of a bad document."""
    with pytest.raises(InvalidDocumentError) as caught:
        extract_text(data, media_type, name="bad", limits=limits)
    assert caught.value.field == "document"
    assert DOCUMENT_TEXT not in str(caught.value)
    return caught.value


def saved(document: object) -> bytes:
    """Give the bytes of a PdfWriter or of a python-docx document."""
    stream = io.BytesIO()
    (document.write if isinstance(document, PdfWriter) else document.save)(stream)  # type: ignore[attr-defined]
    return stream.getvalue()


def word_document(*paragraphs: str) -> bytes:
    """Make a DOCX."""
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    return saved(document)


def pdf_with_content(content: StreamObject) -> bytes:
    """Make a PDF of one page."""
    writer = PdfWriter()
    page = writer.add_blank_page(200, 200)
    names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = DictionaryObject({NameObject(key): NameObject(name) for key, name in names.items()})
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    page[NameObject("/Contents")] = writer._add_object(content)
    return saved(writer)


def blank_pdf(pages: int) -> PdfWriter:
    """Make a PDF without text."""
    writer = PdfWriter()
    for _ in range(pages):
        writer.add_blank_page(200, 200)
    return writer


def zipped_with(part: str, content: bytes) -> bytes:
    """Replace one part of a DOCX."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(word_document(DOCUMENT_TEXT))) as source,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, content if name == part else source.read(name))
    return stream.getvalue()


def test_the_public_names_are_these() -> None:
    assert EXTRACTOR_VERSION == "1"
    assert set(SUPPORTED_MEDIA_TYPES.values()) == set(Format)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.txt", "text/plain"),
        ("a.md", "text/markdown"),
        ("a.markdown", "text/markdown"),
        ("a.html", "text/html"),
        ("A.HTM", "text/html"),
        ("a.b.PDF", PDF),
        ("a.docx", DOCX),
    ],
)
def test_the_extension_tells_the_media_type(name: str, media_type: str) -> None:
    assert media_type_of(Path(name)) == media_type


@pytest.mark.parametrize("name", ["a.doc", "a", "a.pdf.exe"])
def test_an_unknown_extension_is_refused_with_what_to_send_instead(name: str) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        media_type_of(Path(name))
    assert caught.value.cure == "send .txt, .md, .html, .pdf or .docx"


def test_importing_documents_loads_no_parser() -> None:
    heavy = ["pypdf", "docx", "lxml", "trafilatura", "charset_normalizer", "sklearn", "numpy", "pydantic"]
    code = f"import json, sys, penstock.documents; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=SAMPLES.parent, timeout=20)
    assert json.loads(done.stdout) == []


def test_plain_text_and_markdown_come_through_whole() -> None:
    assert sample("state-of-the-union-2000.txt").split()[:4] == ["PRESIDENT", "BILL", "CLINTON'S", "ADDRESS"]
    assert len(sample("state-of-the-union-2000.txt").split()) == 9077
    assert sample("rust-rfc-0042-regexps.md").startswith("- Start Date: 2014-04-12\n- RFC PR: ")


def test_html_gives_the_article_without_menu_scripts_and_styles() -> None:
    text = sample("federal-register-2017-11795.html")
    assert "Schedules of Controlled Substances: Placement of Acetyl Fentanyl Into Schedule I" in text.splitlines()
    assert "Effective June 7, 2017." in text.splitlines()
    for hidden in ("never-in-the-text", "pageViews", "font-family", "Browse"):
        assert hidden not in text


def test_html_without_a_main_text_falls_back_to_all_that_is_seen() -> None:
    page = b"<html><head><title>t</title><style>p{}</style></head><body><p>a <b>b</b><p>c<script>x()</script></body>"
    assert extract_text(page, "text/html; charset=utf-8").split() == ["a", "b", "c"]


def test_html_is_decoded_as_it_declares() -> None:
    page = '<meta charset="iso-8859-2"><p>Zażółć gęślą jaźń</p>'.encode("iso-8859-2")
    assert extract_text(page, "text/html") == "Zażółć gęślą jaźń"


def test_pdf_gives_the_text_of_every_page() -> None:
    text = sample("uslm-user-guide-pages-6-to-11.pdf")
    assert "United States Legislative Markup (USLM) is an XML information model designed to represent the" in text
    assert [page for page in range(1, 50) if f"User Guide \n{page} \n" in text] == [6, 7, 8, 9, 10, 11]


def test_a_pdf_that_opens_without_a_password_is_read() -> None:
    writer = PdfWriter(clone_from=PdfReader(SAMPLES / "uslm-user-guide-pages-6-to-11.pdf"))
    writer.encrypt("", "owner", algorithm="AES-256")
    assert "1.1 OVERVIEW" in extract_text(saved(writer), PDF)


def test_docx_gives_paragraphs_and_table_rows_in_document_order() -> None:
    lines = sample("federal-register-2017-11825.docx").splitlines()
    agency = "AGENCY | Enforcement and Compliance, International Trade Administration, Department of Commerce."
    assert lines[1:3] == [agency, "DATES | Effective June 7, 2017."]
    assert lines.index("International Trade Administration") > lines.index(agency)


def test_docx_keeps_tabs_breaks_nested_tables_and_skips_deleted_text() -> None:
    text = extract_text((FIXTURES / "tables.docx").read_bytes(), DOCX)
    assert text == "before\tthe table\nA1 | B1\nA2 | inner\nkept\nafter"


def test_a_docx_without_its_images_still_holds_its_captions() -> None:
    assert "Figure 1 Bill Preface" in sample("uslm-review-guide.docx").splitlines()


@pytest.mark.parametrize("media_type", sorted(SUPPORTED_MEDIA_TYPES))
@pytest.mark.parametrize("data", [b"", b" \n\t\r\n "])
def test_an_empty_document_is_refused(media_type: str, data: bytes) -> None:
    assert refusal(data, media_type).reason == "'bad' is empty"


def test_text_of_control_characters_only_holds_no_text() -> None:
    assert refusal(b"\x01\x02", "text/plain").reason == "'bad' holds no text"


def test_html_of_a_script_only_holds_no_text() -> None:
    page = f"<html><body><script>var a = '{DOCUMENT_TEXT}'</script></body></html>"
    assert refusal(page.encode(), "text/html").reason == "'bad' holds no text"


@pytest.mark.parametrize("media_type", ["application/msword", "image/png", ""])
def test_an_unsupported_media_type_is_refused(media_type: str) -> None:
    assert refusal(b"x", media_type).reason == f"'bad' has an unsupported type ({media_type!r})"


def test_an_encrypted_pdf_is_refused() -> None:
    writer = blank_pdf(1)
    writer.encrypt("secret", algorithm="AES-256")
    error = refusal(saved(writer), PDF)
    assert (error.reason, error.cure) == ("'bad' is encrypted", "remove its password and send it again")


def test_a_docx_with_a_password_is_refused() -> None:
    assert refusal(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(512), DOCX).reason == "'bad' is encrypted"


def test_an_image_only_pdf_is_told_apart_from_an_empty_one() -> None:
    error = refusal(saved(blank_pdf(3)), PDF)
    assert error.reason == "'bad' has 3 page(s) but no text: they are images or blank"
    assert error.cure == "run OCR on it first"


def test_a_truncated_pdf_is_refused_rather_than_half_read() -> None:
    data = (SAMPLES / "uslm-user-guide-pages-6-to-11.pdf").read_bytes()
    assert refusal(data[: len(data) * 9 // 10], PDF).reason == "'bad' is cut short: its end is missing"


@pytest.mark.parametrize(
    ("data", "media_type", "format_"),
    [
        (DOCUMENT_TEXT.encode(), PDF, "pdf"),
        (b"%PDF-1.7\nnothing\n%%EOF", PDF, "pdf"),
        (DOCUMENT_TEXT.encode(), DOCX, "docx"),
        (zipped_with("word/document.xml", b"<w:document"), DOCX, "docx"),
        (word_document(DOCUMENT_TEXT)[:-200], DOCX, "docx"),
    ],
)
def test_a_corrupt_document_is_refused(data: bytes, media_type: str, format_: str) -> None:
    assert refusal(data, media_type).reason == f"'bad' is corrupt: it cannot be read as {format_}"


def test_bytes_that_are_no_text_are_refused() -> None:
    assert refusal(bytes(range(256)) * 4, "text/plain").reason == "'bad' is not text in any encoding that can be told"


def test_too_many_bytes_are_refused_before_anything_is_read() -> None:
    error = refusal(DOCUMENT_TEXT.encode(), PDF, Limits(max_bytes=10))
    assert error.reason == "'bad' is too large: 28 bytes, limit 10"


def test_too_many_pages_are_refused() -> None:
    assert refusal(saved(blank_pdf(3)), PDF, Limits(max_pages=2)).reason == "'bad' has 3 pages, limit 2"


def test_too_many_characters_are_refused_in_every_format() -> None:
    pdf = (SAMPLES / "uslm-user-guide-pages-6-to-11.pdf").read_bytes()
    for data, media_type in [(DOCUMENT_TEXT.encode(), "text/plain"), (word_document(DOCUMENT_TEXT), DOCX), (pdf, PDF)]:
        error = refusal(data, media_type, Limits(max_characters=20))
        assert error.reason == "'bad' holds more than 20 characters of text"


def test_a_zip_bomb_is_refused_by_the_sizes_it_declares() -> None:
    bomb = zipped_with("word/document.xml", bytes(3_000_000))
    assert len(bomb) < 100_000
    error = refusal(bomb, DOCX, Limits(max_bytes=100_000))
    assert error.reason.startswith("'bad' unpacks to 3")
    assert error.reason.endswith("bytes, limit 1000000")


def test_a_zip_bomb_within_its_sizes_meets_the_memory_limit_and_only_the_child_pays() -> None:
    xml = zipfile.ZipFile(io.BytesIO(word_document("x"))).read("word/document.xml")
    bomb = zipped_with("word/document.xml", xml.replace(b"<w:p>", b"<w:p/>" * 3_000_000 + b"<w:p>", 1))
    error = refusal(bomb, DOCX, Limits(memory_bytes=96 * 2**20))
    assert error.reason == "'bad' needs more memory to parse than 100663296 bytes"
    assert extract_text(word_document(DOCUMENT_TEXT), DOCX) == DOCUMENT_TEXT


def test_a_pdf_that_would_take_minutes_is_killed_and_only_the_child_dies() -> None:
    content = DecodedStreamObject()
    content.set_data(b"BT /F1 12 Tf " + b"1 0 0 1 0 0 Tm (a) Tj " * 2_000_000 + b"ET")
    hostile = pdf_with_content(content.flate_encode())
    assert len(hostile) < 200_000
    error = refusal(hostile, PDF, Limits(timeout_s=1.5))
    assert error.reason == "'bad' took longer to parse than 1.5 s"
    assert extract_text(word_document(DOCUMENT_TEXT), DOCX) == DOCUMENT_TEXT


def test_threads_extract_side_by_side() -> None:
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(lambda n: extract_text(word_document(f"number {n}"), DOCX), range(6)))
    assert texts == [f"number {n}" for n in range(6)]


def test_the_child_is_given_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spy = tmp_path / "sitecustomize.py"
    seen = tmp_path / "seen"
    spy.write_text(f"import os\nopen({str(seen)!r}, 'w').write(repr(sorted(os.environ)))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    extract_text(word_document(DOCUMENT_TEXT), DOCX)
    assert "PYTHONPATH" in seen.read_text()
    assert "OPENAI_API_KEY" not in seen.read_text()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_text_is_read_in_the_encoding_it_has(encoding: str) -> None:
    text = "Déjà vu: les élèves français étaient très occupés à Noël."
    assert extract_text(text.encode(encoding), "text/plain") == text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\0b\x07c\x7f\td", "abc\td"),
        ("e\0\u0301", "\u00e9"),
        ("a\n\n\n \n\n\nb", "a\n\n\nb"),
        ("a\n\n\nb", "a\n\n\nb"),
        ("page\fpage", "page\npage"),
        ("a\ud800b", "a\ufffdb"),
        ("  a  ", "a"),
    ],
)
def test_text_is_normalised(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


def test_a_long_run_of_combining_marks_is_broken_since_its_order_would_take_its_square() -> None:
    assert normalise("a" + "\u0316" * 30) == "a" + "\u0316" * 30
    assert normalise("a" + "\u0316" * 31) == "a" + "\u0316" * 30 + "\u034f\u0316"
    runs = re.findall("[\u0301\u0316]+", normalise("a" + "\u0301\u0316" * 100_000))
    assert {len(run) for run in runs} <= set(range(31))
    assert sum(map(len, runs)) == 200_000 - 1  # one is part of the letter now


@given(st.text(alphabet="a\u0301\u0316\u034f\u3099 ", min_size=20, max_size=200))
def test_normalising_runs_of_marks_again_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(alphabet=st.characters(min_codepoint=0, max_codepoint=0x2FFF)))
def test_normalised_text_has_no_nul_and_normalising_again_changes_nothing(text: str) -> None:
    clean = normalise(text)
    assert "\0" not in clean
    assert "\r" not in clean
    assert normalise(clean) == clean


@settings(max_examples=200)
@given(st.text(alphabet=st.characters(max_codepoint=0x2FF, exclude_characters="\0")).filter(normalise))
def test_extracted_text_is_the_normalised_text(text: str) -> None:
    assert extract_text(b"." + text.encode(), "text/plain") == normalise("." + text)


def test_nuls_in_a_text_are_dropped() -> None:
    assert extract_text(b"one\0two, and quite a few more words\0", "text/plain") == "onetwo, and quite a few more words"
