"""The input of a batch: items become jobs or errors, a part at a time. It must not know where they are stored."""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

from penstock.batches import rows
from penstock.batches.batch import Batch
from penstock.batches.forecast import Sample
from penstock.batches.reading import BadItem, Columns, Item, read
from penstock.batches.rows import Chunk
from penstock.errors import InvalidRequestError
from penstock.intake import Intake, parse
from penstock.jobs.submission import NewJob
from penstock.prompts import Prompt
from penstock.schemas import Lane, Message, OnUnavailable

ITEMS_A_CHUNK = 1000
CHARACTERS_A_CHUNK = 16_000_000
SAMPLED = 300
ITEMS_A_BREATH, BREATH_S = 25, 1e-6
"""Whoever writes the chunk before needs the interpreter for microseconds at a time, and would wait 5 ms for each."""
BYTES_PER_TOKEN = 4
DOCUMENT = "document"
ITEM_FIELDS = ("deadline", "document", "document_name", "media_type", "metadata", "priority", "variables")
"""What an item may say of itself; everything else is the batch's."""

Source = str | Iterable[Mapping[str, Any]] | Iterable[Item | BadItem]
Count = Callable[[tuple[Message, ...]], int]


@dataclass(frozen=True)
class BatchRequest:
    """What all items of a batch are asked, and for whom; fields as in `Client.submit`."""

    tenant: str
    project: str = ""
    prompt: str = "summarise_document"
    prompt_version: str | None = None
    tier: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    priority: int = 5
    on_unavailable: OnUnavailable | str = OnUnavailable.WAIT

    def fields(self, prompt: Prompt, tier: str) -> dict[str, Any]:
        """Give the fields of a request without its document; raise InvalidRequestError for one that is wrong."""
        given = {
            "tenant": self.tenant,
            "project": self.project,
            "prompt": prompt.reference.id,
            "prompt_version": prompt.reference.version,
            "tier": tier,
            "lane": Lane.BATCH,
            "priority": self.priority,
            "on_unavailable": self.on_unavailable,
            "variables": dict(self.variables),
            "metadata": dict(self.metadata),
        }
        parse(given)
        return given


@dataclass(frozen=True)
class BatchInput:
    """A source of items, and what each of them is asked. An input is read once."""

    intake: Intake
    prompt: Prompt
    tier: str
    request: BatchRequest
    source: Source
    columns: Columns | None = None

    @classmethod
    def open(cls, intake: Intake, request: BatchRequest, source: Source, columns: Columns | None) -> "BatchInput":
        """Look up what the request names; raise InvalidRequestError."""
        prompt, tier = intake.resolve(request.prompt, request.prompt_version, request.tier)
        return cls(intake, prompt, tier, request, source, columns)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """Give the fields of a request without its document; raise InvalidRequestError for one that is wrong."""
        return self.request.fields(self.prompt, self.tier)

    @property
    def digest(self) -> str:
        """Name what the items are asked."""
        asked = json.dumps(self.fields | {"digest": self.prompt.reference.digest}, sort_keys=True, default=str)
        return hashlib.sha256(asked.encode()).hexdigest()

    def sample(self, count: Count) -> Sample:
        """Look at items that are chosen by chance (Vitter, Algorithm R, 1985), and count all."""
        chance = random.Random(0)  # noqa: S311 - the same input gives the same forecast
        chosen: list[Item] = []
        seen = unreadable = 0
        for item in self._items():
            if isinstance(item, BadItem):
                unreadable += 1
                continue
            seen += 1
            if len(chosen) < SAMPLED:
                chosen.append(item)
            elif (place := chance.randrange(seen)) < SAMPLED:
                chosen[place] = item
        tokens = []
        for item in chosen:
            job = self._accept(uuid4(), item)
            if isinstance(job, NewJob):
                tokens.append(count(self.prompt.render(job.variables, job.document).messages))
        return Sample(seen + unreadable, unreadable, tokens, len(chosen) - len(tokens))

    def chunks(self, batch: Batch) -> Iterator[Chunk]:
        """Give the items behind those that are stored, checked; none where the whole input is stored.

        Raises InvalidRequestError, at once, where what is stored is not the same.
        """
        items, digest = self._behind(batch)
        if not batch.is_loaded:
            return self._chunks(batch, items, digest)
        if next(items, None) is not None:
            raise _another(batch, f"it has more items than the {batch.items}")
        return iter(())

    def _chunks(self, batch: Batch, items: Iterator[Item | BadItem], digest: "hashlib._Hash") -> Iterator[Chunk]:
        stored = batch.items
        while part := list(self._part(batch, items, digest)):
            jobs = [each for each in part if isinstance(each, NewJob)]
            refused = [each for each in part if isinstance(each, BadItem)]
            yield Chunk(stored, stored + len(part), digest.hexdigest(), jobs, refused)
            stored += len(part)

    def _behind(self, batch: Batch) -> "tuple[Iterator[Item | BadItem], hashlib._Hash]":
        """Pass over what is stored, and give the items behind it and the digest so far."""
        items, digest, passed = self._items(), hashlib.sha256(), 0
        for passed, item in enumerate(islice(items, batch.items), start=1):  # noqa: B007 - the last is read
            _add(digest, item)
        if passed < batch.items or (batch.items and digest.hexdigest() != batch.items_digest):
            raise _another(batch, f"its first {batch.items} items are not those")
        return items, digest

    def _part(
        self, batch: Batch, items: Iterator[Item | BadItem], digest: "hashlib._Hash"
    ) -> Iterator[NewJob | BadItem]:
        """Take what is stored together: so many items, or less where their documents are long."""
        characters = 0
        for count, item in enumerate(islice(items, ITEMS_A_CHUNK), start=1):
            _add(digest, item)
            made = self._job_of(batch, item)
            yield made
            if count % ITEMS_A_BREATH == 0:
                time.sleep(BREATH_S)
            characters += len(made.document or "") if isinstance(made, NewJob) else 0
            if characters > CHARACTERS_A_CHUNK:
                return

    def _job_of(self, batch: Batch, item: Item | BadItem) -> NewJob | BadItem:
        return self._accept(rows.job_id(batch.id, item.number), item, batch.id)

    def _accept(self, job_id: UUID, item: Item | BadItem, batch_id: UUID | None = None) -> NewJob | BadItem:
        """Check an item as the door does."""
        if isinstance(item, BadItem):
            return item
        surplus = [name for name in item.fields if name not in ITEM_FIELDS]
        if surplus:
            return BadItem(item.number, f"{surplus[0]}: it is the batch's; an item has {', '.join(ITEM_FIELDS)}")
        own = dict(item.fields)
        for name in ("variables", "metadata"):
            if isinstance(own.get(name, {}), Mapping):
                own[name] = {**self.fields[name], **own.get(name, {})}
        try:
            return self.intake.accept(job_id, self.fields | own, batch_id=batch_id, batch_number=item.number)
        except InvalidRequestError as error:
            return BadItem(item.number, str(error))

    def _items(self) -> Iterator[Item | BadItem]:
        columns = self.columns or Columns({})
        if isinstance(self.source, str):
            yield from read(self.source, columns)
            return
        for number, each in enumerate(self.source, start=1):
            yield each if isinstance(each, Item | BadItem) else columns.item(number, each)


def count_bytes(messages: tuple[Message, ...]) -> int:
    """Guess the tokens of messages by their bytes."""
    return sum(len(message.content.encode()) for message in messages) // BYTES_PER_TOKEN


def _another(batch: Batch, how: str) -> InvalidRequestError:
    return InvalidRequestError(
        "input",
        f"{how} that batch {batch.name!r} was begun with",
        "give the same input again, or a new name to the batch",
    )


def _add(digest: Any, item: Item | BadItem) -> None:
    said = item.reason if isinstance(item, BadItem) else {**item.fields, DOCUMENT: None}
    digest.update(ENCODER.encode([item.number, said]).encode())
    if isinstance(item, Item):
        document = item.fields.get(DOCUMENT)
        text = document if isinstance(document, str) else ENCODER.encode(document)
        digest.update(text.encode("utf-8", "surrogatepass"))


def _told(value: object) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


ENCODER = json.JSONEncoder(default=_told)
