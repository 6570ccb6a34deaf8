"""What a worker does with its unacknowledged messages when Redis was away. It must not know the pool or the tasks."""

from typing import Any

from celery.bootsteps import StartStopStep
from celery.worker.state import requests
from kombu.transport.virtual.base import Message

__all__ = ["RedisReconnection"]


class LateMessage(Message):  # type: ignore[misc]  # kombu has no types
    """A message whose acknowledgement may be due when its connection is gone.

    It stays unacknowledged then, and comes again: a second delivery finds nothing to claim.
    """

    def ack_log_error(self, logger: Any, errors: Any, multiple: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Acknowledge, unless the channel has been closed meanwhile."""
        if self.channel.connection is not None:
            super().ack_log_error(logger, errors, multiple=multiple)


class RedisReconnection(StartStopStep):  # type: ignore[misc]  # celery has no types
    """Let the jobs in flight outlive a lost connection to a Redis broker, and be acknowledged on the next one.

    Celery 5.7 on Redis ends the worker instead: closing the lost connection, kombu tries to give the messages back
    over it (AttributeError, with every pool); an acknowledgement over it fails in the same way. A delivery tag of
    kombu's Redis transport is valid on every connection, unlike one of AMQP, whose broker takes the messages back.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def include_if(self, parent: Any) -> bool:
        """Tell whether the broker is Redis."""
        return bool(parent.conninfo.transport.driver_type == "redis")

    def start(self, parent: Any) -> None:
        """Keep the messages through a lost connection, and move those in flight to the connection of now."""
        channel = parent.task_consumer.channel
        channel.do_restore = False
        channel.Message = LateMessage
        for request in requests.values():
            request.message.channel = channel

    def stop(self, parent: Any) -> None:
        """Let a worker that stops give its messages back."""
        if parent.task_consumer is not None:
            parent.task_consumer.channel.do_restore = True
