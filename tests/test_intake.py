"""Whatever is wrong with a request, the door says where, why and what to do, and keeps nothing of it."""

import io
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from pypdf import PdfWriter
from sqlalchemy import Engine, text

from penstock.client import Client
from penstock.clock import SystemClock
from penstock.documents import DEFAULT_LIMITS
from penstock.errors import IdempotencyConflictError, InvalidDocumentError, InvalidRequestError
from penstock.intake import Intake
from penstock.schemas import Lane, OnUnavailable
from penstock.settings import Settings

SAMPLES = Path(__file__).parents[1] / "samples"
PDF = "application/pdf"
GOOD: Mapping[str, Any] = {"tenant": "acme", "prompt": "summarise_document", "document": "The river rose two metres."}
NOW = datetime.now(UTC)


def pdf(password: str | None = None) -> bytes:
    """Make a PDF of one page that has no text."""
    writer = PdfWriter()
    writer.add_blank_page(200, 200)
    if password is not None:
        writer.encrypt(password)
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "tenant missing": ("tenant", {"tenant": None}),
    "tenant empty": ("tenant", {"tenant": ""}),
    "tenant in upper case": ("tenant", {"tenant": "Acme"}),
    "tenant with a newline at its end": ("tenant", {"tenant": "acme\n"}),
    "tenant with a dash first": ("tenant", {"tenant": "-acme"}),
    "tenant of 65 characters": ("tenant", {"tenant": "a" * 65}),
    "tenant that looks like ASCII": ("tenant", {"tenant": "acm\N{CYRILLIC SMALL LETTER IE}"}),
    "tenant of bytes": ("tenant", {"tenant": b"acme"}),
    "prompt unknown": ("prompt", {"prompt": "summarize_document"}),
    "prompt empty": ("prompt", {"prompt": ""}),
    "prompt that is a path": ("prompt", {"prompt": "../prompts/summarise_document"}),
    "prompt is None": ("prompt", {"prompt": None}),
    "prompt with NUL": ("prompt", {"prompt": "summarise\0"}),
    "version unknown": ("prompt_version", {"prompt_version": "9.9.9"}),
    "version empty": ("prompt_version", {"prompt_version": ""}),
    "version with NUL": ("prompt_version", {"prompt_version": "1.0.0\0"}),
    "choice unknown": ("on_unavailable", {"on_unavailable": "retry"}),
    "choice in upper case": ("on_unavailable", {"on_unavailable": "WAIT"}),
    "choice is None": ("on_unavailable", {"on_unavailable": None}),
    "tier unknown": ("tier", {"tier": "huge"}),
    "tier empty": ("tier", {"tier": ""}),
    "tier with a surrogate": ("tier", {"tier": "small\ud800"}),
    "lane unknown": ("lane", {"lane": "express"}),
    "priority below": ("priority", {"priority": -1}),
    "priority above": ("priority", {"priority": 10}),
    "priority is a boolean": ("priority", {"priority": True}),
    "priority is text": ("priority", {"priority": "5"}),
    "deadline in the past": ("deadline", {"deadline": NOW - timedelta(seconds=1)}),
    "deadline now": ("deadline", {"deadline": NOW}),
    "deadline without an offset": ("deadline", {"deadline": datetime(2099, 1, 1)}),  # noqa: DTZ001 - that is the point
    "deadline as text without an offset": ("deadline", {"deadline": "2099-01-01T00:00:00"}),
    "deadline that is no time": ("deadline", {"deadline": "tomorrow"}),
    "deadline that no row can hold": ("deadline", {"deadline": "9999-12-31T23:59:59-14:00"}),
    "key empty": ("idempotency_key", {"idempotency_key": ""}),
    "key too long": ("idempotency_key", {"idempotency_key": "k" * 201}),
    "key with NUL": ("idempotency_key", {"idempotency_key": "k\0"}),
    "variable unknown": ("variables.tone", {"variables": {"tone": "friendly"}}),
    "variable too long": ("variables.language", {"variables": {"language": "x" * 41}}),
    "variable that breaks the schema": ("variables.max_words", {"variables": {"max_words": "301"}}),
    "variable is a number": ("variables.max_words", {"variables": {"max_words": 120}}),
    "variable of bytes": ("variables.language", {"variables": {"language": b"English"}}),
    "variable with NUL": ("variables.audience", {"variables": {"audience": "a\0b"}}),
    "variable with a surrogate": ("variables.audience", {"variables": {"audience": "a\udc80b"}}),
    "variable named with NUL": ("variables.a\N{REPLACEMENT CHARACTER}", {"variables": {"a\0": "b"}}),
    "variable named with a surrogate": ("variables.\ufffd\ufffd\ufffd", {"variables": {"\ud800": "b"}}),
    "document among the variables": ("variables.document", {"variables": {"document": "text"}}),
    "variables are no mapping": ("variables", {"variables": "language=English"}),
    "metadata is no mapping": ("metadata", {"metadata": ["a"]}),
    "metadata is a number": ("metadata.case", {"metadata": {"case": 7}}),
    "metadata is nested": ("metadata.case", {"metadata": {"case": {"id": "7"}}}),
    "metadata of bytes": ("metadata.case", {"metadata": {"case": b"7"}}),
    "metadata with NUL": ("metadata.case", {"metadata": {"case": "\0"}}),
    "metadata with a surrogate": ("metadata.case", {"metadata": {"case": "\ud800"}}),
    "name with NUL": ("document_name", {"document_name": "a\0.txt"}),
    "name too long": ("document_name", {"document_name": "n" * 256}),
    "document missing": ("document", {"document": None}),
    "document empty": ("document", {"document": ""}),
    "document blank": ("document", {"document": " \n\t"}),
    "document is a number": ("document", {"document": 5}),
    "document is a bytearray": ("document", {"document": bytearray(b"text"), "media_type": "text/plain"}),
    "document with NUL": ("document", {"document": "a\0b"}),
    "document with NUL and a media type": ("document", {"document": "a\0b", "media_type": "text/plain"}),
    "document with a surrogate": ("document", {"document": "/etc/host\udc80"}),
    "document with half an emoji": ("document", {"document": "a\ud83d"}),
    "bytes without a media type": ("media_type", {"document": b"text"}),
    "media type not supported": ("document", {"document": b"PK", "media_type": "application/zip"}),
    "media type empty": ("document", {"document": "text", "media_type": ""}),
    "media type with NUL": ("media_type", {"document": "text", "media_type": "text/plain\0"}),
    "encrypted": ("document", {"document": pdf("secret"), "media_type": PDF}),
    "image only": ("document", {"document": pdf(), "media_type": PDF}),
    "corrupt": ("document", {"document": b"%PDF-1.7\nnothing", "media_type": PDF}),
    "text that is called a PDF": ("document", {"document": "some text", "media_type": PDF}),
    "oversized": ("document", {"document": b"x" * (DEFAULT_LIMITS.max_bytes + 1), "media_type": "text/plain"}),
    "too many characters": ("document", {"document": "x" * (DEFAULT_LIMITS.max_characters + 1)}),
    "path that does not exist": ("document", {"document": Path("no/such/file.txt")}),
    "path of a directory": ("document", {"document": SAMPLES, "media_type": "text/plain"}),
    "path of a device": ("document", {"document": Path("/dev/zero"), "media_type": "text/plain"}),
    "path with NUL": ("document", {"document": Path("a\0.txt")}),
    "path with a surrogate": ("document", {"document": Path("a\ud800.txt")}),
    "path whose type we do not read": ("document", {"document": Path(__file__)}),
}


@pytest.fixture
def client(settings: Settings, engine: Engine, broker: redis.Redis) -> Iterator[Client]:
    """Give a client on empty services."""
    with Client(settings) as client:
        yield client


@pytest.fixture(scope="module")
def intake() -> Intake:
    """Give the check alone, on the project's own prompts and tiers."""
    root = Path(__file__).parents[1]
    return Intake.load(Settings(config=root / "config", prompts=root / "prompts"), SystemClock())


def rows(engine: Engine) -> int:
    """Count everything that a request could have left."""
    with engine.connect() as connection:
        return sum(
            connection.scalar(text(f"SELECT count(*) FROM {table}"))
            for table in ("jobs", "payloads", "attempts", "answers", "results", "ledger", "tenant_shares")
        )


def refusal(intake: Intake, **fields: Any) -> InvalidRequestError:
    """Give the error of a request, which says all that it should in one line."""
    with pytest.raises(InvalidRequestError) as caught:
        intake.accept(uuid4(), {**GOOD, **fields})
    error = caught.value
    assert error.reason
    assert error.cure
    assert len(str(error).splitlines()) == 1
    assert str(error).isprintable()
    return error


@pytest.mark.parametrize(("field", "fields"), BAD.values(), ids=BAD)
def test_bad_request_is_refused_with_field_reason_and_cure(intake: Intake, field: str, fields: dict[str, Any]) -> None:
    assert refusal(intake, **fields).field == field


def test_no_bad_request_leaves_a_row_or_a_message(client: Client, engine: Engine, broker: redis.Redis) -> None:
    quick = {name: fields for name, (_, fields) in BAD.items() if fields.get("media_type") != PDF}
    for name, fields in quick.items():
        with pytest.raises(InvalidRequestError):
            client.submit_many([GOOD, {**GOOD, **fields}])
        assert rows(engine) == 0, name
    assert broker.dbsize() == 0


def test_unknown_field_is_refused_by_its_name(intake: Intake) -> None:
    error = refusal(intake, documnet="text")
    assert (error.field, error.reason) == ("documnet", "there is no such field")
    assert "document," in error.cure


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\ud800", "x" * 5000, ""])
def test_name_of_an_unknown_field_cannot_garble_a_line(intake: Intake, name: str) -> None:
    assert len(refusal(intake, **{name: "text"}).field) <= 64


def test_missing_field_is_named(intake: Intake) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        intake.accept(uuid4(), {"prompt": "summarise_document"})
    assert caught.value.field == "tenant"


def test_unreadable_and_empty_and_oversized_files_are_refused(intake: Intake, tmp_path: Path) -> None:
    empty, large, loop = tmp_path / "empty.txt", tmp_path / "large.txt", tmp_path / "loop.txt"
    empty.touch()
    loop.symlink_to(loop)
    with large.open("wb") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes + 1)
    assert "is empty" in refusal(intake, document=empty).reason
    assert f"{DEFAULT_LIMITS.max_bytes + 1} bytes" in refusal(intake, document=large).reason
    assert "cannot be read" in refusal(intake, document=loop).reason


@pytest.mark.timeout(10)
def test_pipe_is_refused_and_not_waited_for(intake: Intake, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    assert refusal(intake, document=pipe).reason.endswith("is not a file")


def test_document_errors_have_a_class_of_their_own(intake: Intake) -> None:
    assert isinstance(refusal(intake, document=""), InvalidDocumentError)
    assert not isinstance(refusal(intake, tier="huge"), InvalidDocumentError)


def test_unknown_names_are_answered_with_those_that_exist(intake: Intake) -> None:
    assert "'summarise_document'" in refusal(intake, prompt="summarize_document").cure
    assert "1.0.0, 1.1.0, 1.2.0, 1.3.0" in refusal(intake, prompt_version="2.0.0").reason
    assert "['large', 'medium', 'small']" in refusal(intake, tier="huge").cure


def test_refusal_holds_nothing_of_the_text(intake: Intake) -> None:
    marker = "4711-secret"
    for fields in (
        {"document": f"{marker}\0"},
        {"variables": {"audience": f"{marker}\0"}},
        {"metadata": {"a": [marker]}},
    ):
        error = refusal(intake, **fields)
        assert marker not in str(error)
        assert error.__cause__ is None


def test_request_becomes_a_complete_job(intake: Intake) -> None:
    job = intake.accept(uuid4(), {**GOOD, "variables": {"language": "German"}, "document": SAMPLES / "README.md"})
    assert (job.tenant, job.prompt.id, job.prompt.version) == ("acme", "summarise_document", "1.3.0")
    assert (job.tier, job.lane, job.priority, job.document_name) == ("medium", Lane.INTERACTIVE, 5, "README.md")
    assert (job.on_unavailable, job.fallback_tiers) == (OnUnavailable.WAIT, ("small",))
    assert job.variables == {"language": "German"}
    assert job.document == (SAMPLES / "README.md").read_text().strip()


def test_file_whose_name_is_no_text_gets_a_name_that_a_row_can_hold(intake: Intake, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"report-\xff.txt")
    path.write_text("The river rose.")
    assert intake.accept(uuid4(), {**GOOD, "document": path}).document_name == "report-?.txt"


def test_text_is_plain_unless_a_media_type_says_otherwise(intake: Intake) -> None:
    page = "<html><body><article><p>The river rose two metres in the night.</p></article></body></html>"
    assert intake.accept(uuid4(), {**GOOD, "document": page}).document == page
    job = intake.accept(uuid4(), {**GOOD, "document": page, "media_type": "text/html"})
    assert job.document == "The river rose two metres in the night."


def test_key_that_was_used_for_other_content_is_refused(client: Client, engine: Engine) -> None:
    first = client.submit(**GOOD, idempotency_key="k")
    before = rows(engine)
    for other in (
        {"document": "Another."},
        {"tier": "large"},
        {"prompt_version": "1.0.0"},
        {"prompt": "classify_document"},
        {"project": "north"},
    ):
        with pytest.raises(IdempotencyConflictError) as caught:
            client.submit(**{**GOOD, **other}, idempotency_key="k")
        assert caught.value.field == "idempotency_key"
        assert "'k'" in caught.value.reason
        assert caught.value.cure
    assert rows(engine) == before
    assert client.get(first).id == first


def test_what_an_older_version_took_under_a_key_is_known_again(intake: Intake) -> None:
    of_none = intake.accept(uuid4(), GOOD).content_digest
    assert of_none == "3998b1819baf884574604d475b3e17b871605cfce67d5dfbd6677853291183d8"
    assert len({of_none, *(intake.accept(uuid4(), {**GOOD, "project": name}).content_digest for name in "ab")}) == 3


@pytest.mark.parametrize("deadline", [datetime.now(UTC) + timedelta(hours=1), "2099-01-01T00:00:00+02:00"])
def test_deadline_to_come_is_taken(intake: Intake, deadline: object) -> None:
    job = intake.accept(uuid4(), {**GOOD, "deadline": deadline})
    assert job.deadline is not None
    assert job.deadline.tzinfo is not None
