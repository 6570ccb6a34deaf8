"""What tests of migrations share: a database that nothing has been done to."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from sqlalchemy import Engine

from tests.store.databases import bring_to, empty_database
from workers.embedded import EmbeddedServices

Move = Callable[[str], None]


@pytest.fixture
def database(services: EmbeddedServices) -> Iterator[Engine]:
    """An empty database of its own."""
    with empty_database(services.postgres.url) as engine:
        yield engine


@pytest.fixture
def move(database: Engine) -> Move:
    """Bring the database to a version, up or down."""
    return partial(bring_to, database)
