"""A producer pays little for the import, and for nothing that only a worker needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, sys, time
began = time.process_time()
import penstock.client
took_s = time.process_time() - began
print(json.dumps({"took_s": took_s, "modules": sorted(sys.modules)}))
"""
NOT_FOR_A_PRODUCER = {
    "alembic",
    "celery",
    "docx",
    "jsonschema",
    "litellm",
    "numpy",
    "openai",
    "pypdf",
    "redis",
    "rich",
    "scipy",
    "sklearn",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "structlog",
    "trafilatura",
    "urllib.request",
}


def imported(cache: Path) -> tuple[float, set[str]]:
    """Import the client in a fresh interpreter and give what it cost, and every module that it loaded.

    The cost is in seconds of CPU: the clock on the wall also measures whatever else the machine does.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)
    program = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, check=True, env=environment)
    measured = json.loads(program.stdout)
    return measured["took_s"], set(measured["modules"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a place for compiled modules: an installed package has them, a checkout may not."""
    folder = tmp_path_factory.mktemp("bytecode")
    imported(folder)
    return folder


def test_client_is_imported_in_half_a_second(cache: Path) -> None:
    assert min(imported(cache)[0] for _ in range(5)) < 0.5


def test_client_imports_nothing_that_only_a_worker_needs(cache: Path) -> None:
    assert imported(cache)[1] & NOT_FOR_A_PRODUCER == set()
