"""A step of a loop that must go on: its trouble is told and given back. It must not know what the step does."""

from collections.abc import Callable
from typing import TypeVar

from penstock import telemetry
from penstock.client.doorbell import BROKER_ERRORS
from penstock.store.db import is_away

Result = TypeVar("Result")


def attempt(step: Callable[[], Result], *, service: str, retry_s: float) -> Result | Exception:
    """Take a step and give its result, or its error: it keeps no other step from its turn.

    A database or a broker that is away is told as `service` being unavailable for `retry_s` seconds, all else as a
    fault of ours.
    """
    try:
        return step()
    except Exception as error:  # noqa: BLE001 - a loop must not end in silence while its process goes on
        if is_away(error) or isinstance(error, BROKER_ERRORS):
            telemetry.emit("service.unavailable", service=service, error=type(error).__name__, retry_s=retry_s)
        else:
            telemetry.failed(error)
        return error
