"""The check at the door: a request becomes a complete job, or an error that says what to do. It stores nothing.

All three doors lead here, so that they refuse the same things with the same words. It must not know which door it was.
"""

import hashlib
import json
import stat
from collections.abc import Mapping
from datetime import MAXYEAR, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from penstock import documents
from penstock.clock import Clock
from penstock.documents.division import estimate_tokens
from penstock.errors import InvalidDocumentError, InvalidRequestError
from penstock.jobs.submission import NewJob
from penstock.prompts import Prompt, PromptLibrary
from penstock.providers.quota import Size
from penstock.routing import Catalogue
from penstock.schemas import JobRequest
from penstock.settings import Settings

BYTES_PER_TOKEN = 4
MOST_BYTES_PER_TOKEN = 5
"""In running text. What is certain to be too large is refused; the exact count is made before the call."""
DOCUMENT = "document"
SHOWN_CHARACTERS = 64
MAPPINGS = ("variables", "metadata")


class Intake:
    """Knows which prompts and tiers exist."""

    def __init__(self, catalogue: Catalogue, prompts: PromptLibrary, clock: Clock) -> None:
        """Check against these prompts and tiers."""
        self._catalogue = catalogue
        self._prompts = prompts
        self._clock = clock

    @classmethod
    def load(cls, settings: Settings, clock: Clock) -> "Intake":
        """Read tiers.toml, models.toml if it is there, and the prompts; raise ConfigurationError."""
        return cls(Catalogue.load_public(settings.config), PromptLibrary.load(settings.prompts), clock)

    def resolve(self, prompt: str, version: str | None, tier: str | None) -> tuple[Prompt, str]:
        """Find a prompt and the tier that serves it; raise InvalidRequestError."""
        found = self._prompts.find(prompt, version)
        return found, self._catalogue.tier(found.default_tier if tier is None else tier).name

    def accept(
        self, job_id: UUID, fields: Mapping[str, Any], *, batch_id: UUID | None = None, batch_number: int | None = None
    ) -> NewJob:
        """Make the job of a request, given as the fields of JobRequest; raise InvalidRequestError.

        It is the item `batch_number` of the input of a batch, if there is one.
        """
        request = parse(fields)
        prompt = self._prompts.find(request.prompt, request.prompt_version)
        tier = self._catalogue.tier(prompt.default_tier if request.tier is None else request.tier)
        if request.deadline is not None:
            _check_deadline(request.deadline, self._clock.now())
        document = _text_of(request)
        values = prompt.check(request.variables, document=document)
        sizes = {name: len(value.encode()) for name, value in values.items()}
        self._refuse_too_large(prompt, tier.name, sizes)
        return NewJob(
            id=job_id,
            tenant=request.tenant,
            project=request.project,
            prompt=prompt.reference,
            tier=tier.name,
            lane=request.lane,
            priority=request.priority,
            estimated_tokens=self._estimate(prompt, tier.name, sum(sizes.values()) // BYTES_PER_TOKEN),
            variables=request.variables,
            document=document,
            document_name=request.document_name or _name_of(request.document),
            metadata=request.metadata,
            idempotency_key=request.idempotency_key,
            content_digest=_digest(request, document),
            deadline=request.deadline,
            on_unavailable=request.on_unavailable,
            fallback_tiers=prompt.tiers_after(tier.name),
            is_fresh=request.fresh,
            batch_id=batch_id,
            batch_number=batch_number,
        )

    def _refuse_too_large(self, prompt: Prompt, tier: str, sizes: Mapping[str, int]) -> None:
        """Refuse what no minute of a quota can take; a document that can be read in parts is never too large."""
        if sum(sizes.values()) // MOST_BYTES_PER_TOKEN <= self._catalogue.fewest_tokens(tier):
            return
        size = sum(size for name, size in sizes.items() if not (prompt.is_reducible and name == DOCUMENT))
        least = Size(prompt=size // MOST_BYTES_PER_TOKEN, max_tokens=0, output=0)
        if too_large := self._catalogue.too_large(tier, least):
            raise InvalidRequestError("document", too_large, "split it, or choose a tier with a larger quota")

    def _estimate(self, prompt: Prompt, tier: str, tokens: int) -> int:
        """Estimate what the job takes, all its calls together."""
        capacity = self._catalogue.capacity(tier)
        if capacity is None or not prompt.is_reducible:
            return tokens + prompt.max_tokens
        return estimate_tokens(tokens, prompt.max_tokens, capacity)


def parse(fields: Mapping[str, Any]) -> JobRequest:
    """Check the fields by themselves; raise InvalidRequestError for the first that is wrong."""
    try:
        return JobRequest.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field, *inner = map(str, first["loc"] or ("fields",))
        name = ".".join([field, *inner[:1]]) if field in MAPPINGS else field
        raise InvalidRequestError(_printable(name), _reason(field, first), _cure(field)) from None


def _printable(name: str) -> str:
    """Make a name that the caller chose fit for an error of one line, a log, and a row."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name[:SHOWN_CHARACTERS]
    )


def _reason(field: str, error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return "it is neither text, bytes nor a path" if field == "document" else str(error["msg"])


def _cure(field: str) -> str:
    cures = {
        "tenant": "use lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at most",
        "project": "name it like a tenant, or leave it out",
        "lane": "use 'interactive' or 'batch'",
        "priority": "use a whole number from 0 to 9, where 9 goes first",
        "deadline": "use an ISO 8601 time with its UTC offset",
        "on_unavailable": "use 'wait', 'degrade' or 'fail'",
        "fresh": "use true or false",
        "prompt": "give the id of a prompt",
        "document": "give text, bytes with their media_type, or a pathlib.Path",
        "variables": "use strings, without NUL, for names and values",
        "metadata": "use strings, without NUL, for names and values",
        "idempotency_key": "use 1 to 200 characters, without NUL",
    }
    known = ", ".join(sorted(JobRequest.model_fields))
    return cures.get(field, f"the fields are {known}; see docs/producers.md")


def _check_deadline(deadline: datetime, now: datetime) -> None:
    if deadline.year >= MAXYEAR:  # in another time zone it would be a year that no datetime can hold
        raise InvalidRequestError(
            "deadline", f"the year {deadline.year} is too far away", "give an earlier one, or none"
        )
    if deadline <= now:
        raise InvalidRequestError("deadline", f"{deadline.isoformat()} is in the past", "give a later one, or none")


def _text_of(request: JobRequest) -> str | None:
    """Turn a document of any form into text."""
    match request.document:
        case None:
            return None
        case str() as text:
            media_type = "text/plain" if request.media_type is None else request.media_type
            return documents.extract_text(text.encode(), media_type, name="document")
        case bytes() as data:
            if request.media_type is None:
                raise InvalidDocumentError("media_type", "a document of bytes needs one", "give it, or give a path")
            return documents.extract_text(data, request.media_type, name=request.document_name or "document")
        case Path() as path:
            media_type = documents.media_type_of(path) if request.media_type is None else request.media_type
            return documents.extract_text(_read(path), media_type, name=path.name)


def _read(path: Path) -> bytes:
    """Read a file up to one byte past the limit; what is no ordinary file (a pipe, a device) might never end."""
    cure = "give the path of a file that can be read"
    most = documents.DEFAULT_LIMITS.max_bytes
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InvalidDocumentError("document", f"{str(path)!r} is not a file", cure)
        if found.st_size > most:
            reason = f"{path.name!r} is too large: {found.st_size} bytes, limit {most}"
            raise InvalidDocumentError("document", reason, "split it into smaller documents")
        with path.open("rb") as file:
            return file.read(most + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no path"
        raise InvalidDocumentError("document", f"{str(path)!r} cannot be read: {why}", cure) from error


def _name_of(document: object) -> str | None:
    """Name a document by its file; a name that is not UTF-8 is no text."""
    return document.name.encode("utf-8", "replace").decode() if isinstance(document, Path) else None


def _digest(request: JobRequest, document: str | None) -> str:
    """Name what the caller asked for, so that a repeat can be told from another request under the same key."""
    asked = [request.prompt, request.prompt_version, request.tier, sorted(request.variables.items()), document]
    if request.project or request.fresh:
        asked.append(request.project)
    if request.fresh:
        asked.append("fresh")
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
