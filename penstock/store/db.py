"""Connections to Postgres. It must not know any table.

A room takes a `Connection` and neither begins nor commits; the edge does. One set of statements serves both worlds:
synchronous processes call a room directly, the workers' loop calls it through `AsyncConnection.run_sync`.
"""

from typing import TYPE_CHECKING

from sqlalchemy import Engine, create_engine

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

CONNECT_TIMEOUT_S = 5


def sync_engine(url: str, *, connections: int = 4) -> Engine:
    """Make the engine of a process without a loop: the client, the feeder, upkeep, the command."""
    timeout = {"connect_timeout": CONNECT_TIMEOUT_S}
    return create_engine(url, pool_size=connections, max_overflow=0, pool_pre_ping=True, connect_args=timeout)


def async_engine(url: str, *, connections: int = 8) -> "AsyncEngine":
    """Make the engine of a worker's loop."""
    from sqlalchemy.ext.asyncio import create_async_engine

    timeout = {"connect_timeout": CONNECT_TIMEOUT_S}
    return create_async_engine(url, pool_size=connections, max_overflow=0, pool_pre_ping=True, connect_args=timeout)
