"""What tests of batches share: a client on empty services, and short inputs."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from sqlalchemy import Engine

from penstock.client import Client
from penstock.client.batches import BatchRequest
from penstock.settings import Settings

REQUEST = BatchRequest(tenant="acme", prompt="summarise_document", tier="small")


@pytest.fixture
def client(settings: Settings, engine: Engine, broker: redis.Redis) -> Iterator[Client]:
    """Give a client on empty services."""
    with Client(settings) as client:
        yield client


def documents(count: int) -> list[dict[str, Any]]:
    """Make items that are all different."""
    return [{"document": f"Report {number}. The agency met on day {number}."} for number in range(1, count + 1)]


class BrokenOffError(Exception):
    """The input ended where nobody expected it."""


def broken_off(items: list[dict[str, Any]], after: int) -> Iterator[dict[str, Any]]:
    yield from items[:after]
    raise BrokenOffError
