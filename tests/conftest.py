"""What tests share: a real Postgres and a real Redis, started once a process, emptied for each test that asks."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from sqlalchemy import Engine, text

from penstock.providers.simulator.config import Latency, load_config
from penstock.providers.simulator.server import running
from penstock.settings import Settings
from penstock.store.db import sync_engine
from penstock.store.schema import migrate
from tests.rooms import Rooms
from workers.embedded import EmbeddedServices

ROOT = Path(__file__).parent.parent
TABLES = (
    "jobs, payloads, attempts, answers, results, ledger, ledger_corrections, budgets, spending, tenant_shares, workers,"
    " batches, batch_errors"
)

os.environ["PENSTOCK_FORBID_REMOTE_CALLS"] = "1"


@pytest.fixture(scope="session")
def services() -> Iterator[EmbeddedServices]:
    """Both servers, in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        embedded = EmbeddedServices(Path(folder))
        try:
            embedded.start()
            yield embedded
        finally:
            embedded.stop()


@pytest.fixture(scope="session")
def schema(services: EmbeddedServices) -> Iterator[Engine]:
    """An engine on the schema that the migrations make."""
    engine = sync_engine(services.postgres.url.replace("postgresql://", "postgresql+psycopg://", 1))
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(schema: Engine) -> Engine:
    """An engine on empty tables."""
    with schema.begin() as connection:
        connection.execute(text(f"TRUNCATE {TABLES} CASCADE"))
    return schema


@pytest.fixture
def broker(services: EmbeddedServices) -> Iterator[redis.Redis]:
    """An empty Redis, as the broker."""
    client = redis.Redis(unix_socket_path=str(services.redis.socket_path), decode_responses=True)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def settings(services: EmbeddedServices) -> Settings:
    """Settings that point at the servers and at the project's own configuration."""
    return Settings.model_validate(
        {
            "config": ROOT / "config",
            "prompts": ROOT / "prompts",
            "database_url": services.postgres.url,
            "broker_url": services.redis.url,
        }
    )


@pytest.fixture(scope="session")
def simulator() -> Iterator[str]:
    """The address of a fast simulator."""
    config = load_config(ROOT / "tests" / "system" / "config" / "simulator.toml")
    quick = {
        name: model.model_copy(update={"latency": Latency(median_ms=1, sigma=0)})
        for name, model in config.models.items()
    }
    with running(config.model_copy(update={"models": quick})) as url:
        yield url


@pytest.fixture
def rooms(
    engine: Engine, broker: redis.Redis, settings: Settings, simulator: str, monkeypatch: pytest.MonkeyPatch
) -> Rooms:
    """A house on empty tables, gates and a simulator that have forgotten everything."""
    monkeypatch.setenv("PENSTOCK_SIMULATOR_URL", f"{simulator}/v1")
    httpx.post(f"{simulator}/reset").raise_for_status()
    configured = settings.model_copy(update={"config": ROOT / "tests" / "system" / "config"})
    return Rooms(configured, engine, broker, simulator)
