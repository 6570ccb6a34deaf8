"""How a task is declared. It must not know any task.

Celery takes a misspelt option silently; this signature does not.
"""

import re
from collections.abc import Callable
from typing import Any

from celery import shared_task
from celery.worker.request import Request

SOFT_TIME_LIMIT_S = 900
TIME_LIMIT_S = 960

SHOWN = ("tenant", "tier", "lane", "prompt", "prompt_version")

IDENTIFIER = re.compile(r"[A-Za-z0-9._@-]{1,64}")


class IdentifiersOnly(Request):  # type: ignore[misc]
    """A message whose text is never shown: events, `inspect`, and Flower by them, get identifiers alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Replace what the producer wrote down of the arguments."""
        super().__init__(*args, **options)
        given = self._kwargs if isinstance(self._kwargs, dict) else {}
        self._argsrepr = "()"
        self._kwargsrepr = repr({name: given[name] for name in SHOWN if _is_identifier(given.get(name))})

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002, FBT001, FBT002 - Celery's own signature
        """Describe the message to whoever inspects the worker: always as safely as can be."""
        described: dict[str, Any] = super().info(safe=True)
        return described


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and IDENTIFIER.fullmatch(value) is not None


def task(
    *,
    name: str,
    throws: tuple[type[Exception], ...] = (),
    request: type[Request] = Request,
    soft_time_limit_s: int = SOFT_TIME_LIMIT_S,
    time_limit_s: int = TIME_LIMIT_S,
) -> Callable[[Callable[..., Any]], Any]:
    """Declare a task that is acknowledged when it has run; `throws` are ends that are no fault of the code."""
    declare: Callable[[Callable[..., Any]], Any] = shared_task(
        name=name,
        bind=True,
        acks_late=True,
        ignore_result=True,
        throws=throws,
        Request=f"{request.__module__}:{request.__qualname__}",
        soft_time_limit=soft_time_limit_s,
        time_limit=time_limit_s,
    )
    return declare
