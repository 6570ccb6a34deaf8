"""Sends the messages that say "this job's row is ready". It must not know the row.

A message carries the job's id as its task id, and nothing that a lost or a doubled message could harm.
"""

import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING
from uuid import UUID

from kombu.exceptions import ChannelError, KombuError, OperationalError

from penstock.batches.batch import Batch
from penstock.jobs.dead_letters import DeadLetter
from penstock.jobs.release import Release

if TYPE_CHECKING:
    from celery import Celery

BROKER_ERRORS = (OSError, KombuError)

log = logging.getLogger("penstock.client")


class Doorbell:
    """One producer's side of the broker. Celery is imported when the first message is sent."""

    def __init__(self, broker_url: str, app: "Celery | None" = None) -> None:
        """Send to this broker, as `app` if there is one."""
        self._broker_url = broker_url
        self._made = app

    @property
    def app(self) -> "Celery":
        """Give the Celery app."""
        if self._made is None:
            from penstock.client.broker import make_app

            self._made = make_app(self._broker_url)
        return self._made

    def ring(self, releases: Iterable[Release]) -> int:
        """Send a message for each job and give the number sent; what fails is logged, and the feeder sends it again."""
        waiting = list(releases)
        if not waiting:
            return 0
        sent = 0
        try:
            with self._broker(), self.app.producer_or_acquire() as producer:
                for release in waiting:
                    self._send(producer, release)
                    sent += 1
        except BROKER_ERRORS as error:
            log.warning("the broker took %d of %d messages: %s", sent, len(waiting), type(error).__name__)
        return sent

    def revoke(self, job_ids: Sequence[UUID]) -> None:
        """Tell every worker to stop these jobs now; a worker that does not hear it finds out by its next heartbeat."""
        if not job_ids:
            return
        try:
            with self._broker():
                self.app.control.revoke([str(job_id) for job_id in job_ids], terminate=True)
        except BROKER_ERRORS as error:
            log.warning("the broker did not take a revocation: %s", type(error).__name__)

    def announce(self, letters: Iterable[DeadLetter]) -> None:
        """Publish deaths to the queue of dead letters; raise one of BROKER_ERRORS when the broker is away."""
        from penstock.client.broker import DEAD_LETTER_QUEUE, DEAD_LETTER_TASK

        with self._broker():
            for letter in letters:
                self.app.send_task(
                    DEAD_LETTER_TASK,
                    kwargs=asdict(letter) | {"job_id": str(letter.job_id)},
                    queue=DEAD_LETTER_QUEUE,
                    retry=False,
                )

    def tell(self, batch: Batch, callback: str) -> None:
        """Send the task, or `task@queue`, that is to hear of the end of a batch; raise one of BROKER_ERRORS."""
        task, _, queue = callback.partition("@")
        with self._broker():
            self.app.send_task(
                task,
                task_id=str(batch.id),
                kwargs={"batch": batch.name, "tenant": batch.tenant, "state": batch.state.value},
                queue=queue or None,
                retry=False,
            )

    def waiting(self, queue: str) -> int:
        """Count the messages that the broker holds for a queue, without those that a worker has in hand.

        Raises one of BROKER_ERRORS when the broker is away.
        """
        with self._broker(), self.app.connection_or_acquire() as connection:
            try:
                return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
            except ChannelError:
                return 0

    def close(self) -> None:
        """Give the connections back."""
        if self._made is not None:
            self._made.close()

    @contextmanager
    def _broker(self) -> Generator[None, None, None]:
        """Give the transport's own errors, which differ from broker to broker, one name."""
        transport = self.app.connection_for_write()
        try:
            yield
        except (*transport.connection_errors, *transport.channel_errors) as error:
            raise OperationalError(str(error)) from error

    def _send(self, producer: object, release: Release) -> None:
        from penstock.client.broker import ATTEMPT_TASK, tier_queue

        self.app.send_task(
            ATTEMPT_TASK,
            task_id=str(release.job_id),
            kwargs={
                "tenant": release.tenant,
                "tier": release.tier,
                "lane": release.lane.value,
                "prompt": f"{release.prompt.id}@{release.prompt.version}",
            },
            queue=tier_queue(release.tier, release.lane, is_retry=release.is_retry),
            producer=producer,
            retry=False,
        )
