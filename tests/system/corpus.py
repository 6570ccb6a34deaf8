"""The Federal Register set: 209 real documents, to be submitted as one batch."""

import json
import os
from uuid import UUID

import pytest

from penstock.client import Client
from tests.conftest import ROOT

DOCUMENTS = ROOT.parent / "shared" / "data" / "federal_register.jsonl"
TIMEOUT_S = 100

# Skipped on a laptop that lacks them; in CI their absence is a failure.
needs_documents = pytest.mark.skipif(
    not DOCUMENTS.exists() and "CI" not in os.environ, reason="the shared documents are not beside this checkout"
)


def submit_all(client: Client) -> list[UUID]:
    with DOCUMENTS.open() as lines:
        documents = [json.loads(line) for line in lines]
    return client.submit_many(
        {
            "tenant": f"tenant-{number % 3}",
            "prompt": "summarise_document",
            "document": document["text"],
            "document_name": document["id"],
            "tier": "small",
            "lane": "batch",
        }
        for number, document in enumerate(documents)
    )
