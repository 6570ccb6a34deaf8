"""What tests of the limiter share."""

from collections.abc import Iterator

import pytest
import redis

from penstock.providers.quota import Quota
from tests.gates.quota_pool import TOKENS, Pool
from workers.embedded import EmbeddedServices


@pytest.fixture
def quota() -> Quota:
    """What a test may replace by parametrizing it."""
    return TOKENS


@pytest.fixture
def pool(broker: redis.Redis, services: EmbeddedServices, quota: Quota) -> Iterator[Pool]:
    """A quota pool on an empty Redis."""
    made = Pool(services.redis.socket_path, quota)
    yield made
    made.close()
