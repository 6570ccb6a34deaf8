"""What the semantic tier needs: a model of embeddings, an extension of Postgres, a prompt that asks for it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from penstock.configuration import read_configuration
from penstock.errors import ConfigurationError
from penstock.prompts.manifest import Manifest, read_manifest
from penstock.settings import Settings
from penstock.similar import questions
from penstock.similar.questions import Count, SimilarReport
from penstock.store.db import sync_engine
from penstock.store.schema import migrate
from tests import test_cli
from tests.conftest import ROOT
from tests.jobs import rows
from tests.store import test_tenant_role
from tests.store.test_tenant_role import GRANT_ROLE, MAKE_ROLE, Database
from tests.test_cli import Penstock
from workers.upkeep import forget_similar

bare, penstock = test_cli.bare, test_cli.penstock
server, database = test_tenant_role.server, test_tenant_role.database

HEAD = """
description = "Do it."
default_tier = "small"
max_tokens = 10
"""


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Settings]:
    """Copy the project's configuration, with a text of models.toml in place of another."""
    monkeypatch.delenv("PENSTOCK_SIMULATOR_URL", raising=False)
    shutil.copytree(ROOT / "config", tmp_path / "config")

    def replace(old: str, new: str) -> Settings:
        path = tmp_path / "config" / "models.toml"
        content = path.read_text()
        assert content.count(old) == 1
        path.write_text(content.replace(old, new))
        return Settings(config=tmp_path / "config", prompts=ROOT / "prompts")

    return replace


def test_the_shipped_configuration_has_a_model_of_embeddings_in_no_tier() -> None:
    catalogue = read_configuration(Settings(config=ROOT / "config", prompts=ROOT / "prompts")).catalogue
    assert catalogue.embeddings is not None
    assert (catalogue.embeddings.name, catalogue.embeddings.is_embedding) == ("sim-embedding", True)
    assert "sim-embedding" in catalogue.deployment_names
    assert not any("sim-embedding" in tier.deployments for tier in catalogue.tiers)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("sim-embeding", "there is no model 'sim-embeding'"),
        ("sim-small", "'sim-small' answers for a tier, and cannot give vectors too"),
    ],
)
def test_what_cannot_give_vectors_is_refused(
    configured: Callable[[str, str], Settings], named: str, reason: str
) -> None:
    settings = configured('embeddings = "sim-embedding"', f'embeddings = "{named}"')
    with pytest.raises(ConfigurationError) as refusal:
        read_configuration(settings)
    error = refusal.value
    assert (error.file, error.place, error.reason) == (
        str(settings.config / "models.toml"),
        "key 'embeddings'",
        reason,
    )


def test_an_instruction_is_free_text_and_the_only_one() -> None:
    variable = "[variables.{}]\nuntrusted = true\ninstruction = true\n"
    assert read_manifest(HEAD + variable.format("wish"), "p").instruction == "wish"
    assert read_manifest(HEAD, "p").instruction is None
    for wrong in (
        variable.format("wish") + variable.format("other"),
        variable.format("wish") + 'choices = ["a"]\n',
        variable.format("document") + "document = true\n",
    ):
        with pytest.raises(ConfigurationError, match="instruction"):
            read_manifest(HEAD + wrong, "p")
    assert Manifest.model_fields.keys().isdisjoint({"instruction"})


def test_an_owner_who_may_create_no_extension_migrates_and_has_the_tier_later(
    server: Engine, database: Database
) -> None:
    rows_of = text("SELECT count(*) FROM similar_questions")
    for statement in (MAKE_ROLE, GRANT_ROLE):
        rows.execute(server, statement)
    with database(owner="plain") as engine:
        assert migrate(engine) == []
        with engine.connect() as connection:
            assert connection.scalar(rows_of) == 0
            assert questions.report(connection, None) == SimilarReport(is_available=False, counts=())
        create_extension(server.url.set(database=engine.url.database).render_as_string(hide_password=False))
        with engine.connect() as connection:
            assert questions.is_available(connection)


def create_extension(url: str) -> None:
    """Do as a superuser what an operator is told to do."""
    engine = sync_engine(url)
    rows.execute(engine, "CREATE EXTENSION vector")
    engine.dispose()


def test_the_report_counts_by_tenant(penstock: Penstock, engine: Engine) -> None:
    assert penstock("cache", "report", "--json").lines == [{"available": True}]
    for number, (tenant, was_given, agreement) in enumerate(
        [("acme", True, None), ("acme", True, None), ("globex", False, 0.9), ("globex", False, 0.5)]
    ):
        job = rows.new_job(tenant=tenant)
        rows.submit(engine, job)
        rows.execute(
            engine,
            """INSERT INTO similar_answers (job_id, request_digest, tenant, source_job_id, distance, was_given,
                agreement) VALUES (:job, :digest, :tenant, :source, 0.01, :was_given, :agreement)""",
            job=job.id,
            digest=str(number),
            tenant=tenant,
            source=uuid4(),
            was_given=was_given,
            agreement=agreement,
        )
    acme = {"tenant": "acme", "given": 2, "would_be": 0, "judged": 0, "different": 0, "available": True}
    globex = {"tenant": "globex", "given": 0, "would_be": 2, "judged": 2, "different": 1, "available": True}
    assert penstock("cache", "report", "--json").lines == [acme, globex]
    assert penstock("cache", "report", "--tenant", "globex", "--json").lines == [globex]
    shown = penstock("cache", "report").out
    assert "50.0%" in shown
    with engine.connect() as connection:
        assert questions.report(connection, "acme").counts == (Count("acme", 2, 0, 0, 0),)


def test_a_name_that_is_none_is_refused(penstock: Penstock) -> None:
    assert penstock("cache", "report", "--tenant", "ACME").error().startswith("tenant: 'ACME' is no name")


def test_upkeep_forgets_nothing_where_it_does_not_know_the_models(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "config" / "tiers.toml", tmp_path)
    assert forget_similar(engine, settings.model_copy(update={"config": tmp_path})) == 0
    assert forget_similar(engine, settings) == 0
