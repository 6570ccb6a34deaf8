"""What can be observed: one table of every event, and how it is logged. It must not know text of any tenant.

Rooms emit by name; an event or a field that the table lacks is an error, so that a log line cannot grow a leak.
"""

import logging
import sys
import traceback
from typing import Any

import structlog

BOUND = ("job", "attempt", "tenant", "tier")

EVENTS: dict[str, tuple[str, ...]] = {
    "job.submitted": ("lane",),
    "job.refused": ("field", "reason"),
    "job.claimed": ("worker", "waited_s"),
    "job.not_claimable": (),
    "job.succeeded": ("model", "cost_nanodollars", "latency_s"),
    "job.retrying": ("reason", "detail", "delay_s"),
    "job.dead": ("reason", "detail"),
    "job.deferred": ("reason", "detail", "delay_s"),
    "job.degraded": ("reason", "detail"),
    "job.handed_back": (),
    "job.fenced": (),
    "job.recovered": ("reason",),
    "call.settled": ("call", "deployment", "cost_nanodollars", "input_tokens", "output_tokens"),
    "call.failed": ("call", "deployment", "reason", "detail"),
    "call.reused": ("call",),
    "call.cached": ("call",),
    "similar.found": ("source", "distance", "given"),
    "similar.refused": ("source", "distance", "guard"),
    "similar.off": ("reason",),
    "budget.exhausted": ("project", "period", "unit"),
    "budget.soft_limit_passed": ("project", "period", "unit", "soft_limit", "settled"),
    "batch.stopped": ("batch", "reason"),
    "limiter.cut": ("quota", "factor"),
    "breaker.opened": ("deployment",),
    "breaker.closed": ("deployment",),
    "parcel.sealed": ("parcel", "batch", "deployment", "requests", "bytes"),
    "parcel.sent": ("parcel", "deployment", "requests"),
    "parcel.postponed": ("parcel", "reason", "detail", "delay_s"),
    "parcel.refused": ("parcel", "reason", "detail"),
    "parcel.over": ("parcel", "state", "answered"),
    "parcel.unanswered": ("parcel", "requests"),
    "feeder.released": ("jobs",),
    "feeder.republished": ("jobs",),
    "upkeep.calls_unknown": ("calls",),
    "upkeep.purged": ("jobs",),
    "lease.lost": (),
    "service.unavailable": ("service", "error", "retry_s"),
}

_log = structlog.get_logger("penstock")


def emit(event: str, **fields: Any) -> None:
    """Log an event of the table; raise KeyError for an event, ValueError for a field that the table lacks."""
    unknown = set(fields) - set(EVENTS[event]) - set(BOUND)
    if unknown:
        raise ValueError(f"event {event!r} has no field {sorted(unknown)}")
    _log.info(event, **{name: value for name, value in fields.items() if value is not None})


def failed(error: BaseException) -> None:
    """Log where our own code broke: the frames of the traceback, never its values or messages."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames[-8:]]
    _log.error("internal_error", error=type(error).__qualname__, where=where)


def bind(**fields: str | int) -> None:
    """Bind job, attempt, tenant and tier to every line that the current task logs."""
    structlog.contextvars.bind_contextvars(**fields)


def configure_logging(level: str, form: str) -> None:
    """Log JSON lines, or pretty ones on a terminal, to standard error; Celery's own lines take the same way."""
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if pretty
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
