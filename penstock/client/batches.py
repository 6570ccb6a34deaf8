"""What a client does with batches: what one would cost, begin it, watch it, stop it, fetch its results.

It must not know how a job is run, or who prints anything.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import Engine

from penstock.batches import rows
from penstock.batches.batch import AbortIf, Batch, BatchState, NewBatch, Progress
from penstock.batches.forecast import Capacity, Forecast, forecast
from penstock.batches.reading import Columns
from penstock.batches.rows import Chunk
from penstock.batches.tending import follow
from penstock.client.batch_input import BatchInput, BatchRequest, Count, Source, count_bytes
from penstock.client.doorbell import Doorbell
from penstock.client.tenant_view import check_name
from penstock.errors import BatchTakenError, InvalidRequestError
from penstock.intake import Intake
from penstock.jobs import queries
from penstock.jobs.submission import encode
from penstock.providers.base import Deployment
from penstock.schemas import Job, JobState, NanoDollars
from penstock.settings import Settings

if TYPE_CHECKING:
    from penstock.quality import Quality

__all__ = ["BatchError", "BatchRequest", "Batches"]

JOBS_A_PAGE = 500
Row = TypeVar("Row")
NAME_LENGTH = 200
DONE_TO = {BatchState.RUNNING: "resumed", BatchState.PAUSED: "paused", BatchState.CANCELLED: "cancelled"}
CALLBACK = re.compile(r"[\w.:-]+(@[\w.:-]+)?", re.ASCII)


@dataclass(frozen=True)
class BatchError:
    """An item without a result: refused at the door (without `job_id`), dead, cancelled, or its result has gone."""

    number: int
    reason: str
    job_id: UUID | None = None


class Batches:
    """The part of a client that concerns batches."""

    _engine: Engine
    _intake: Intake
    _settings: Settings
    _doorbell: Doorbell

    def plan_batch(
        self, request: BatchRequest, source: Source, *, columns: Columns | None = None, count: Count | None = None
    ) -> Forecast:
        """Say what a batch would come to, from a sample of its input. Nothing is stored, no model is asked.

        `count` counts the tokens of messages; without it four bytes are one. Raises InvalidRequestError, and
        ConfigurationError where models.toml or prices.toml is not here.
        """
        from penstock.money.prices import PriceList
        from penstock.routing import Catalogue

        given = BatchInput.open(self._intake, request, source, columns)
        catalogue = Catalogue.load(self._settings.config, with_keys=False)
        tier, deployments = catalogue.tier(given.tier), catalogue.deployments(given.tier)
        prices = PriceList.load(self._settings.config / "prices.toml")
        with self._engine.connect() as connection:
            tenant, prompt = check_name("tenant", request.tenant), given.prompt
            history = rows.history(connection, tenant, prompt.reference.id, tier.name)
            others = rows.interactive_load(connection, tier.name)
        return forecast(
            given.sample(count or count_bytes),
            history,
            prices.price_on(deployments[0].name, datetime.now(UTC).date()),
            min(prompt.max_tokens, deployments[0].max_output_tokens),
            Capacity([deployment.quota for deployment in deployments], tier.concurrency * tier.processes, *others),
        )

    def deployments_of(self, request: BatchRequest) -> tuple[Deployment, ...]:
        """Give the deployments that would be asked first, without their keys; raise as `plan_batch` does."""
        from penstock.routing import Catalogue

        _, tier = self._intake.resolve(request.prompt, request.prompt_version, request.tier)
        return Catalogue.load(self._settings.config, with_keys=False).deployments(tier)

    def batch(
        self,
        name: str,
        request: BatchRequest,
        source: Source,
        *,
        columns: Columns | None = None,
        forecast: Forecast | None = None,
        max_cost: NanoDollars | None = None,
        abort_if: AbortIf | None = None,
        start: datetime | None = None,
        until: datetime | None = None,
        by_provider: bool = False,
        callback: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Batch:
        """Begin a batch and store its input, or go on where an earlier call of the same name was broken off.

        Its jobs run from `start` on, or at once, while the rest is read. `progress` is called with how many items are
        stored and how many of them were refused. With `by_provider` they are sent to the provider as files, at its
        price for batches, where one can be back before `until`. `callback` is the name of a Celery task, or of
        `task@queue`, that is sent when the batch has ended.

        Raises InvalidRequestError where the name stands for another request or another input, and BatchTakenError where
        somebody else stores it at this moment, or it was cancelled.
        """
        given = BatchInput.open(self._intake, request, source, columns)
        new = NewBatch(
            tenant=request.tenant,
            name=check_batch_name(name),
            project=request.project,
            prompt=given.prompt.reference,
            tier=given.tier,
            digest=given.digest,
            forecast=None if forecast is None else _kept(forecast),
            abort_if=abort_if or AbortIf(),
            max_nanodollars=max_cost,
            starts_at=start,
            due_by=until,
            by_provider=by_provider,
            callback=None if callback is None else check_callback(callback),
        )
        with self._engine.connect() as connection:
            begun = rows.find_begun(connection, new.tenant, new.name)
        if begun is not None:
            rows.check_same(begun, new)
        chunks = given.chunks(begun) if begun is not None else None
        with self._engine.begin() as connection:
            batch = rows.begin(connection, new)
            if begun is not None and (batch.items, batch.is_loaded) != (begun.items, begun.is_loaded):
                raise BatchTakenError(_taken(batch))
        if chunks is None:
            chunks = given.chunks(batch)
        if not batch.is_loaded:
            self._load(batch, chunks, progress or (lambda _stored, _refused: None))
        return self.find_batch(request.tenant, name)

    def find_batch(self, tenant: str, name: str) -> Batch:
        """Look a batch up; raise InvalidRequestError."""
        with self._engine.connect() as connection:
            return rows.find(connection, tenant, name)

    def batches(self, tenant: str | None = None, *, most: int = 50) -> list[Batch]:
        """List the batches of a tenant, or of all, the newest first."""
        with self._engine.connect() as connection:
            return rows.find_all(connection, tenant, most=most)

    def batch_progress(self, tenant: str, name: str) -> Progress:
        """Say how far a batch is and what it has cost; raise InvalidRequestError."""
        with self._engine.connect() as connection:
            return rows.progress(connection, rows.find(connection, tenant, name))

    def pause_batch(self, tenant: str, name: str) -> Batch:
        """Let no further job of a batch begin; those under way go on. Raises InvalidRequestError."""
        return self._change(tenant, name, BatchState.PAUSED, BatchState.RUNNING, BatchState.STOPPED)

    def resume_batch(self, tenant: str, name: str, *, max_cost: NanoDollars | None = None) -> Batch:
        """Let a paused or stopped batch go on, with another cap if one is given. Raises InvalidRequestError."""
        return self._change(tenant, name, BatchState.RUNNING, BatchState.PAUSED, BatchState.STOPPED, max_cost=max_cost)

    def cancel_batch(self, tenant: str, name: str) -> Batch:
        """Cancel what has not ended of a batch; calls in flight are stopped. Raises InvalidRequestError."""
        return self._change(
            tenant, name, BatchState.CANCELLED, BatchState.RUNNING, BatchState.PAUSED, BatchState.STOPPED
        )

    def batch_results(self, tenant: str, name: str) -> Iterator[tuple[int, Job]]:
        """Give the jobs of a batch whose results are kept, with the numbers of their items, in the order of the input.

        Of a tenant without retention they are kept for an hour after the end of the batch, at most for two days and an
        hour after their own, or until `note_fetched`.
        """
        for number, job in self._jobs(self.find_batch(tenant, name)):
            if job.result is not None and job.ended_at is not None:
                yield number, job

    def batch_errors(self, tenant: str, name: str) -> Iterator[BatchError]:
        """Give the items of a batch that have no result and will have none: the refused first, then dead jobs."""
        batch = self.find_batch(tenant, name)
        for refused in self._pages(batch, rows.errors):
            yield from (BatchError(number, reason) for number, reason in refused.items())
        for number, job in self._jobs(batch):
            if job.state in {JobState.DEAD, JobState.CANCELLED}:
                yield BatchError(number, f"{job.reason or job.state}: {job.detail or ''}".rstrip(": "), job.id)
            elif job.state is JobState.SUCCEEDED and job.result is None:
                yield BatchError(number, "its result is no longer kept", job.id)

    def batch_quality(self, tenant: str, name: str) -> "Iterator[tuple[int, Quality]]":
        """Say of each result what can be told of it without a model, with the number of its item.

        Only of documents whose text is still kept, beside the result.
        """
        from penstock.quality import check

        for page in self._pages(self.find_batch(tenant, name), rows.texts):
            yield from ((number, check(document, result)) for number, (document, result) in page.items())

    def _jobs(self, batch: Batch) -> Iterator[tuple[int, Job]]:
        for page in self._pages(batch, rows.page):
            with self._engine.connect() as connection:
                found = queries.get(connection, list(page.values()))
            yield from ((number, found[job_id]) for number, job_id in page.items())

    def _pages(self, batch: Batch, read: Callable[..., dict[int, Row]]) -> Iterator[dict[int, Row]]:
        """Give what `read` gives of a batch, by the number of the item, a page at a time."""
        after = 0
        while True:
            with self._engine.connect() as connection:
                page = read(connection, batch.id, after=after, most=JOBS_A_PAGE)
            if not page:
                return
            yield page
            after = max(page)

    def _change(
        self,
        tenant: str,
        name: str,
        becomes: BatchState,
        *from_states: BatchState,
        max_cost: NanoDollars | None = None,
    ) -> Batch:
        """Change the state of a batch, and let its jobs follow at once; upkeep does what this leaves undone."""
        batch = self.find_batch(tenant, name)
        with self._engine.begin() as connection:
            if becomes is BatchState.RUNNING:
                changed = rows.resume(connection, batch)
            else:
                changed = rows.move(connection, batch.id, becomes, *from_states)
            batch = rows.find(connection, tenant, name)
            if not changed and batch.state is not becomes:
                cure = f"only one that is {' or '.join(from_states)} can be {DONE_TO[becomes]}"
                raise InvalidRequestError("name", f"batch {name!r} is {batch.state}", cure)
            if max_cost is not None:
                rows.cap(connection, batch, max_cost)
        is_all = False
        while not is_all:
            with self._engine.begin() as connection:
                followed = follow(connection, batch)
            self._doorbell.revoke(followed.stopped)
            is_all = followed.is_all
        return batch

    def _load(self, batch: Batch, chunks: Iterable[Chunk], progress: Callable[[int, int], None]) -> None:
        """Store what is missing of the input. A chunk is checked while the one before it is written."""
        stored, refused = batch.items, 0
        with self._engine.connect() as encoder, ThreadPoolExecutor(1) as writer:
            writing = writer.submit(bool, 1)
            for chunk in chunks:
                encoded = encode(encoder, chunk.jobs)
                if not writing.result():
                    break
                progress(stored, refused)
                stored, refused = chunk.items, refused + len(chunk.refused)
                writing = writer.submit(self._store_chunk, batch.id, chunk, encoded)
            is_ours = writing.result()
        progress(stored, refused)
        with self._engine.begin() as connection:
            if not is_ours or not rows.end_loading(connection, batch.id, stored):
                raise BatchTakenError(_taken(batch))

    def _store_chunk(self, batch_id: UUID, chunk: Chunk, encoded: bytes) -> bool:
        with self._engine.begin() as connection:
            return rows.load(connection, batch_id, chunk, encoded)


def _taken(batch: Batch) -> str:
    return f"batch {batch.name!r} was cancelled, or another process stores its input; see `penstock batch status`"


def check_batch_name(name: str) -> str:
    """Give the name of a batch back; raise InvalidRequestError."""
    if isinstance(name, str) and 0 < len(name) <= NAME_LENGTH and name.isprintable() and name == name.strip():
        return name
    raise InvalidRequestError(
        "name", "it is no name of a batch", f"use 1 to {NAME_LENGTH} printable characters, no space at either end"
    )


def check_callback(callback: str) -> str:
    """Give the name of a task, or of TASK@QUEUE, back; raise InvalidRequestError."""
    if isinstance(callback, str) and len(callback) <= NAME_LENGTH and CALLBACK.fullmatch(callback):
        return callback
    raise InvalidRequestError(
        "callback", "it names no task", "write it as TASK or TASK@QUEUE, like reports.done@reports"
    )


def _kept(forecast: Forecast) -> dict[str, Any]:
    """Give what is stored of a forecast, to stand beside the truth."""
    parts = {
        name: [value.low, value.expected, value.high] for name, value in vars(forecast).items() if hasattr(value, "low")
    }
    plain = {name: value for name, value in vars(forecast).items() if name not in parts}
    return plain | parts | {"job_nanodollars_high": forecast.job_nanodollars_high}
