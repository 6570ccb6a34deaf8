"""Connections to Postgres. It must not know any table.

A room takes a `Connection` and neither begins nor commits; the edge does. One set of statements serves both worlds:
synchronous processes call a room directly, the workers' loop calls it through `AsyncConnection.run_sync`.
"""

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

CONNECTION = {
    "connect_timeout": 5,
    # A process that is frozen or cut off in the middle of a transaction must not hold its locks for ever.
    "options": "-c idle_in_transaction_session_timeout=10s",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}


def is_away(error: Exception) -> bool:
    """Tell a Postgres that cannot be reached, fails over or is too busy from one that refuses a statement."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError | InternalError | PoolTimeoutError)


def is_gone(error: Exception) -> bool:
    """Tell a Postgres that could not be reached, so that nobody else could either, from one that gave an answer."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    said_nothing = state is None and isinstance(error, OperationalError)
    return error.connection_invalidated or said_nothing or (state or "").startswith(("08", "57P"))


# Parameters hold documents and answers; an exception is logged.
COMMON: dict[str, Any] = {
    "max_overflow": 0,
    "pool_pre_ping": True,
    "hide_parameters": True,
    "connect_args": CONNECTION,
}


def sync_engine(url: str, *, connections: int = 4) -> Engine:
    """Make the engine of a process without a loop: the client, the feeder, upkeep, the command."""
    return create_engine(url, pool_size=connections, **COMMON)


def async_engine(url: str, *, connections: int = 8) -> "AsyncEngine":
    """Make the engine of a worker's loop."""
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine(url, pool_size=connections, **COMMON)
