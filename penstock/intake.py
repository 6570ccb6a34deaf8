"""The check at the door: a request becomes a complete job, or an error that says what to do. It stores nothing.

All three doors lead here, so that they refuse the same things with the same words. It must not know which door it was.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from penstock import documents
from penstock.clock import Clock
from penstock.errors import InvalidDocumentError, InvalidRequestError
from penstock.jobs.submission import NewJob
from penstock.prompts import PromptLibrary
from penstock.routing import Catalogue
from penstock.schemas import JobRequest
from penstock.settings import Settings

BYTES_PER_TOKEN = 4


class Intake:
    """Knows which prompts and tiers exist."""

    def __init__(self, catalogue: Catalogue, prompts: PromptLibrary, clock: Clock) -> None:
        """Check against these prompts and tiers."""
        self._catalogue = catalogue
        self._prompts = prompts
        self._clock = clock

    @classmethod
    def load(cls, settings: Settings, clock: Clock) -> "Intake":
        """Read tiers.toml and the prompts; raise ConfigurationError."""
        return cls(Catalogue.load_tiers(settings.config), PromptLibrary.load(settings.prompts), clock)

    def accept(self, job_id: UUID, fields: Mapping[str, Any]) -> NewJob:
        """Make the job of a request, given as the fields of JobRequest; raise InvalidRequestError."""
        request = parse(fields)
        prompt = self._prompts.find(request.prompt, request.prompt_version)
        tier = self._catalogue.tier(request.tier or prompt.default_tier)
        if request.deadline is not None and request.deadline <= self._clock.now():
            raise InvalidRequestError(
                "deadline", f"{request.deadline.isoformat()} is in the past", "give a later one, or none"
            )
        document = _text_of(request)
        variables = prompt.check(request.variables, document=document)
        size = len((document or "").encode()) + sum(len(value.encode()) for value in variables.values())
        return NewJob(
            id=job_id,
            tenant=request.tenant,
            prompt=prompt.reference,
            tier=tier.name,
            lane=request.lane,
            priority=request.priority,
            estimated_tokens=size // BYTES_PER_TOKEN + prompt.max_tokens,
            variables=request.variables,
            document=document,
            document_name=request.document_name or _name_of(request.document),
            metadata=request.metadata,
            idempotency_key=request.idempotency_key,
            content_digest=_digest(request, document),
            deadline=request.deadline,
        )


def parse(fields: Mapping[str, Any]) -> JobRequest:
    """Check the fields by themselves; raise InvalidRequestError for the first that is wrong."""
    try:
        return JobRequest.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(field, _reason(first), _cure(field)) from None


def _reason(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    return str(error["msg"])


def _cure(field: str) -> str:
    cures = {
        "tenant": "use lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at most",
        "lane": "use 'interactive' or 'batch'",
        "priority": "use a whole number from 0 to 9, where 9 goes first",
        "deadline": "use an ISO 8601 time with its UTC offset",
        "prompt": "give the id of a prompt",
    }
    name = field.split(".", maxsplit=1)[0]
    known = ", ".join(sorted(JobRequest.model_fields))
    return cures.get(name, f"the fields are {known}; see docs/producers.md")


def _text_of(request: JobRequest) -> str | None:
    """Turn a document of any form into text."""
    match request.document:
        case None:
            return None
        case str() as text:
            return documents.extract_text(text.encode(), request.media_type or "text/plain", name="document")
        case bytes() as data:
            if request.media_type is None:
                raise InvalidDocumentError("media_type", "a document of bytes needs one", "give it, or give a path")
            return documents.extract_text(data, request.media_type, name=request.document_name or "document")
        case Path() as path:
            return documents.extract_text(
                _read(path), request.media_type or documents.media_type_of(path), name=path.name
            )


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > documents.DEFAULT_LIMITS.max_bytes:
            raise InvalidDocumentError("document", f"{path.name!r} has {size} bytes", "split it into smaller documents")
        return path.read_bytes()
    except OSError as error:
        raise InvalidDocumentError(
            "document", f"{str(path)!r} cannot be read: {error.strerror}", "give the path of a file that can be read"
        ) from error


def _name_of(document: object) -> str | None:
    return document.name if isinstance(document, Path) else None


def _digest(request: JobRequest, document: str | None) -> str:
    """Name what the caller asked for, so that a repeat can be told from another request under the same key."""
    asked = [request.prompt, request.prompt_version, request.tier, sorted(request.variables.items()), document]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
