"""The whole stack, as `penstock up` starts it: real processes, real Postgres and Redis, the simulator over HTTP."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from penstock.client import Client
from penstock.settings import load_settings
from penstock.store.db import sync_engine
from tests.conftest import ROOT
from workers.stack import Stack

CONFIG = Path(__file__).parent / "config"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Two pool processes of tier small, one of medium, feeder, upkeep, Flower; leases of three seconds."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as home, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
            patch.delenv(name)
        patch.setenv("PENSTOCK_HOME", home)
        patch.setenv("PENSTOCK_CONFIG", str(CONFIG))
        patch.setenv("PENSTOCK_PROMPTS", str(ROOT / "prompts"))
        patch.setenv("PENSTOCK_FLOWER_OPEN", "1")
        patch.setenv("PENSTOCK_LEASE_S", "3")
        with Stack(tell=lambda _: None) as running:
            yield running


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    """A producer beside the stack."""
    with Client(load_settings()) as producer:
        yield producer


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[Engine]:
    """The jobs' own rows."""
    assert stack.services
    engine = sync_engine(load_settings().require_database_url())
    yield engine
    engine.dispose()
