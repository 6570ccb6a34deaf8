"""Configuration that cannot be used is refused when it is read, with the file, the line or key, and a cure."""

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from penstock.configuration import read_configuration
from penstock.errors import ConfigurationError, InvalidRequestError
from penstock.routing import Catalogue
from penstock.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]
SIMULATOR = "PENSTOCK_SIMULATOR_URL"
PROMPT = "prompts/summarise_document/1.1.0/prompt.toml"
NEWEST_PROMPT = "prompts/summarise_document/1.3.0/prompt.toml"

Edit = Callable[[str], str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the project's own configuration, to be broken."""
    for name in ("config", "prompts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.delenv(SIMULATOR, raising=False)
    return tmp_path


def settings(folder: Path) -> Settings:
    return Settings(config=folder / "config", prompts=folder / "prompts")


def refusal(folder: Path) -> ConfigurationError:
    """Give the error of a configuration, complete and in one line."""
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(settings(folder))
    error = caught.value
    assert error.reason
    assert error.cure
    assert len(str(error).splitlines()) == 1
    return error


def replace(old: str, new: str) -> Edit:
    def edit(content: str) -> str:
        assert old in content
        return content.replace(old, new, 1)

    return edit


BAD: dict[str, tuple[str, Edit, str]] = {
    "misspelt key of a tier": (
        "config/tiers.toml",
        replace("concurrency", "concurency"),
        "key 'tiers.small.concurrency'",
    ),
    "surplus key of a tier": (
        "config/tiers.toml",
        replace("timeout_s", "colour = 1\ntimeout_s"),
        "key 'tiers.small.colour'",
    ),
    "misspelt table": ("config/tiers.toml", replace("[tiers.small]", "[tier.small]"), "key 'tier'"),
    "no tier at all": ("config/tiers.toml", lambda _: "", "key 'tiers'"),
    "tier without deployments": ("config/tiers.toml", replace('["sim-small"]', "[]"), "key 'tiers.small.deployments'"),
    "concurrency of zero": (
        "config/tiers.toml",
        replace("concurrency = 100", "concurrency = 0"),
        "key 'tiers.small.concurrency'",
    ),
    "timeout for ever": (
        "config/tiers.toml",
        replace("timeout_s = 60", "timeout_s = inf"),
        "key 'tiers.small.timeout_s'",
    ),
    "timeout that is no number": (
        "config/tiers.toml",
        replace("timeout_s = 60", "timeout_s = nan"),
        "key 'tiers.small.timeout_s'",
    ),
    "model that does not exist": (
        "config/tiers.toml",
        replace('["sim-small"]', '["sim-small", "sim-tiny"]'),
        "key 'tiers.small.deployments'",
    ),
    "misspelt key of a model": (
        "config/models.toml",
        replace("max_output_tokens", "max_tokens"),
        "key 'models.sim-small.max_output_tokens'",
    ),
    "window of less than nothing": (
        "config/models.toml",
        replace("context_window = 32768", "context_window = -1"),
        "key 'models.sim-small.context_window'",
    ),
    "quota that does not exist": (
        "config/models.toml",
        replace('quota = "sim-small"', 'quota = "sim-smal"'),
        "key 'models.sim-small.quota'",
    ),
    "misspelt key of a quota": ("config/models.toml", replace("tpm =", "tmp ="), "key 'quotas.sim-small.tmp'"),
    "quota of nothing": ("config/models.toml", replace("rpm = 3000", "rpm = 0"), "key 'quotas.sim-small.rpm'"),
    "quota of a part of a request": (
        "config/models.toml",
        replace("rpm = 3000", "rpm = 0.5"),
        "key 'quotas.sim-small.rpm'",
    ),
    "charge that nobody has": (
        "config/models.toml",
        replace('"max(prompt, max_tokens)"', '"per word"'),
        "key 'quotas.sim-small.charge'",
    ),
    "charge by input and output with a limit of both together": (
        "config/models.toml",
        replace('"max(prompt, max_tokens)"', '"input, output"'),
        "key 'quotas.sim-small'",
    ),
    "charge of all tokens with a limit of input": (
        "config/models.toml",
        replace("tpm = 2_000_000", "itpm = 2_000_000"),
        "key 'quotas.sim-small'",
    ),
    "charge of all tokens with a limit of output": (
        "config/models.toml",
        replace("tpm = 2_000_000", "tpm = 2_000_000\notpm = 10"),
        "key 'quotas.sim-small'",
    ),
    "burst of nothing": (
        "config/models.toml",
        replace("rpm = 3000", "rpm = 3000\nburst_s = 0"),
        "key 'quotas.sim-small.burst_s'",
    ),
    "burst of more than a minute": (
        "config/models.toml",
        replace("rpm = 3000", "rpm = 3000\nburst_s = 61"),
        "key 'quotas.sim-small.burst_s'",
    ),
    "window of a resource that does not exist": (
        "config/models.toml",
        replace("rpm = 3000", "rpm = 3000\nwindows_s = { words = 60 }"),
        "key 'quotas.sim-small.windows_s.words.[key]'",
    ),
    "no price": (
        "config/prices.toml",
        replace("[[prices.sim-small]]", "[[prices.sim-smal]]"),
        "key 'prices.sim-small'",
    ),
    "price only from later on": (
        "config/prices.toml",
        replace("starts = 2026-01-01", "starts = 2999-01-01"),
        "key 'prices.sim-small'",
    ),
    "price as a float": ("config/prices.toml", replace('"0.15"', "0.15"), "key 'prices.sim-small.0.input'"),
    "price as a whole number": ("config/prices.toml", replace('"0.15"', "1"), "key 'prices.sim-small.0.input'"),
    "price below zero": ("config/prices.toml", replace('"0.15"', '"-0.15"'), "key 'prices.sim-small.0.input'"),
    "price of ten decimals": (
        "config/prices.toml",
        replace('"0.15"', '"0.0000000001"'),
        "key 'prices.sim-small.0.input'",
    ),
    "price that is no number": ("config/prices.toml", replace('"0.15"', '"NaN"'), "key 'prices.sim-small.0.input'"),
    "price without end": ("config/prices.toml", replace('"0.15"', '"Infinity"'), "key 'prices.sim-small.0.input'"),
    "price in words": ("config/prices.toml", replace('"0.15"', '"cheap"'), "key 'prices.sim-small.0.input'"),
    "price class missing": ("config/prices.toml", replace('output = "0.60"\n', ""), "key 'prices.sim-small.0.output'"),
    "price from no day": (
        "config/prices.toml",
        replace("starts = 2026-01-01", 'starts = "soon"'),
        "key 'prices.sim-small.0.starts'",
    ),
    "prompt with an unknown tier": (
        PROMPT,
        replace('default_tier = "medium"', 'default_tier = "mediun"'),
        "key 'default_tier'",
    ),
    "prompt with an unknown tier to fall back to": (
        NEWEST_PROMPT,
        replace('fallback_tiers = ["medium", "small"]', 'fallback_tiers = ["medium", "smal"]'),
        "key 'fallback_tiers'",
    ),
    "misspelt key of a prompt": (PROMPT, replace("max_tokens", "max_token"), "max_tokens"),
}


def test_project_s_own_configuration_holds_together(folder: Path) -> None:
    configuration = read_configuration(settings(folder))
    catalogue, prices, prompts = configuration.catalogue, configuration.prices, configuration.prompts
    assert [tier.name for tier in catalogue.tiers] == ["small", "medium", "large"]
    assert [deployment.name for deployment in catalogue.deployments("small")] == ["sim-small"]
    assert {prompt.default_tier for prompt in prompts} == {"small", "medium"}
    assert prices.price_on("sim-large", date(2026, 11, 25)).version == "2026-01-01"


@pytest.mark.parametrize(("file", "edit", "place"), list(BAD.values()), ids=list(BAD))
def test_bad_configuration_names_file_and_key(folder: Path, file: str, edit: Edit, place: str) -> None:
    path = folder / file
    path.write_text(edit(path.read_text()))
    error = refusal(folder)
    assert (error.file, error.place) == (str(path), place)


def test_an_unknown_quota_is_answered_with_those_that_exist(folder: Path) -> None:
    path = folder / "config" / "models.toml"
    path.write_text(path.read_text().replace('quota = "sim-small"', 'quota = "sim-smal"'))
    error = refusal(folder)
    assert error.reason == "there is no quota 'sim-smal'"
    assert (
        error.cure == "use one of ['sim-embedding', 'sim-large', 'sim-medium', 'sim-small'], or add [quotas.sim-smal]"
    )


def test_deployments_that_name_one_quota_share_its_pool_and_one_without_has_no_limit(folder: Path) -> None:
    path = folder / "config" / "models.toml"
    content = path.read_text().replace('quota = "sim-medium"', 'quota = "sim-small"')
    path.write_text(content.replace('quota = "sim-large"\n', ""))
    catalogue = Catalogue.load(folder / "config", with_keys=False)
    small, medium, large = (catalogue.deployments(tier)[0].quota for tier in ("small", "medium", "large"))
    assert small is not None
    assert (small.name, small.rpm, small.tpm, small.concurrency) == ("sim-small", 3000, 2_000_000, 1000)
    assert (medium, large) == (small, None)


@pytest.mark.parametrize("key", ["api_base_env", "api_key_env"])
def test_a_catalogue_without_keys_needs_no_secret_and_knows_the_quotas(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    path = folder / "config" / "models.toml"
    path.write_text(path.read_text().replace('account = "simulator"', f'account = "simulator"\n{key} = "OUR_OWN"'))
    path.write_text(path.read_text().replace('api_base_env = "PENSTOCK_SIMULATOR_URL"\n', ""))
    path.write_text(path.read_text().replace('api_base = "http://127.0.0.1:8091/v1"\n', ""))
    monkeypatch.delenv("OUR_OWN", raising=False)
    with pytest.raises(ConfigurationError, match="OUR_OWN"):
        Catalogue.load(folder / "config")

    (small,) = Catalogue.load(folder / "config", with_keys=False).deployments("small")

    assert (small.api_key, small.api_base) == (None, None)
    assert small.quota is not None
    assert small.quota.tpm == 2_000_000


def test_a_secret_that_is_there_is_not_read_without_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "config" / "models.toml"
    path.write_text(path.read_text().replace('account = "simulator"', 'account = "simulator"\napi_key_env = "OUR_OWN"'))
    monkeypatch.setenv("OUR_OWN", "secret")
    monkeypatch.setenv(SIMULATOR, "http://127.0.0.1:7777/v1")
    (with_keys,) = Catalogue.load(folder / "config").deployments("small")
    (without,) = Catalogue.load(folder / "config", with_keys=False).deployments("small")
    assert with_keys.api_key is not None
    assert (with_keys.api_key.get_secret_value(), with_keys.api_base) == ("secret", "http://127.0.0.1:7777/v1")
    assert (without.api_key, without.api_base) == (None, "http://127.0.0.1:8091/v1")


def test_shares_of_tenants_are_checked_with_everything_else(folder: Path) -> None:
    path = folder / "config" / "tenants.toml"
    path.write_text("[tenants.acme]\nweight = 0\n")
    error = refusal(folder)
    assert (error.file, error.place) == (str(path), "key 'tenants.acme.weight'")


def test_missing_price_class_is_never_zero(folder: Path) -> None:
    path = folder / "config" / "prices.toml"
    path.write_text(path.read_text().replace("[[prices.sim-large]]", "[[prices.sim-larger]]"))
    assert "'sim-large'" in refusal(folder).reason


@pytest.mark.parametrize("name", ["tiers", "models", "prices"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    path = folder / "config" / f"{name}.toml"
    path.unlink()
    error = refusal(folder)
    assert (error.file, error.place, error.reason) == (str(path), "the file itself", "it does not exist")
    assert "PENSTOCK_CONFIG" in error.cure


@pytest.mark.parametrize("name", ["tiers", "models", "prices"])
def test_line_of_a_syntax_error_is_named(folder: Path, name: str) -> None:
    path = folder / "config" / f"{name}.toml"
    path.write_text("# one\n# two\nthree = \n")
    error = refusal(folder)
    assert error.file == str(path)
    assert "line 3" in str(error)


def test_line_of_a_syntax_error_in_a_prompt_is_named(folder: Path) -> None:
    path = folder / PROMPT
    path.write_text("# one\nthree = \n")
    error = refusal(folder)
    assert (error.file, error.place) == (str(path), "line 2")


def test_file_that_cannot_be_read_is_named(folder: Path) -> None:
    path = folder / "config" / "tiers.toml"
    path.unlink()
    path.mkdir()
    assert refusal(folder).file == str(path)
    path.rmdir()
    path.write_bytes(b"name = '\xff'")
    error = refusal(folder)
    assert (error.file, error.place) == (str(path), "byte 8")


def test_missing_folder_of_prompts_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "prompts")
    assert refusal(folder).file == str(folder / "prompts")


@pytest.mark.parametrize("key", ["api_base_env", "api_key_env"])
@pytest.mark.parametrize("value", [None, ""])
def test_unset_variable_of_a_key_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str | None
) -> None:
    path = folder / "config" / "models.toml"
    default = 'api_base = "http://127.0.0.1:8091/v1"\napi_base_env = "PENSTOCK_SIMULATOR_URL"\n'
    path.write_text(path.read_text().replace(default, f'{key} = "OUR_OWN"\n'))
    monkeypatch.delenv("OUR_OWN", raising=False) if value is None else monkeypatch.setenv("OUR_OWN", value)
    error = refusal(folder)
    assert (error.file, error.place) == (str(path), f"key 'models.sim-large.{key}'")
    assert "OUR_OWN" in error.reason
    assert "OUR_OWN" in error.cure


@pytest.mark.parametrize("url", ["http://127.0.0.1:7777/v1", None])
def test_a_variable_replaces_the_address_that_the_file_gives(
    folder: Path, monkeypatch: pytest.MonkeyPatch, url: str | None
) -> None:
    if url is not None:
        monkeypatch.setenv(SIMULATOR, url)
    catalogue = read_configuration(settings(folder)).catalogue
    assert catalogue.deployments("small")[0].api_base == (url or "http://127.0.0.1:8091/v1")


def test_a_prompt_that_differs_from_its_lock_is_refused(folder: Path) -> None:
    shutil.copy(ROOT / "prompts.lock", folder)
    read_configuration(settings(folder))
    system = folder / "prompts/summarise_document/1.1.0/system.txt"
    system.write_text(system.read_text() + "Be brief.\n")
    assert "summarise_document" in refusal(folder).place


def test_producer_needs_no_key_and_no_model(folder: Path) -> None:
    (folder / "config" / "models.toml").unlink()
    (folder / "config" / "prices.toml").unlink()
    catalogue = Catalogue.load_tiers(folder / "config")
    assert catalogue.tier("large").concurrency == 25
    with pytest.raises(InvalidRequestError, match="there is no tier 'huge'"):
        catalogue.tier("huge")


def test_deployment_that_no_tier_uses_needs_no_key_and_no_price(folder: Path) -> None:
    path = folder / "config" / "models.toml"
    unused = '\n[models.spare]\nmodel = "m"\naccount = "a"\napi_key_env = "NOT_SET"\ncontext_window = 1\n'
    path.write_text(path.read_text() + unused + "max_output_tokens = 1\n")
    catalogue = read_configuration(settings(folder)).catalogue
    assert "spare" not in catalogue.deployment_names


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_S", "soon"),
        ("LEASE_S", "0"),
        ("LEASE_S", "inf"),
        ("LEASE_S", "nan"),
        ("DRAIN_TIMEOUT_S", "-1"),
        ("INTERACTIVE_WINDOW", "0"),
        ("INTERACTIVE_WINDOW", "2.5"),
        ("MAX_INLINE_BYTES", "-1"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"PENSTOCK_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert (caught.value.file, caught.value.place) == ("environment", f"PENSTOCK_{name}")
    assert caught.value.reason
    assert caught.value.cure


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgres://user:secret@host/db")
    monkeypatch.setenv("PENSTOCK_BROKER_URL", "amqp://user:secret@host//")
    monkeypatch.setenv("PENSTOCK_LEASE_S", "2.5")
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    read = load_settings()
    assert (read.lease_s, read.home) == (2.5, tmp_path)
    assert read.require_database_url() == "postgresql+psycopg://user:secret@host/db"
    assert read.require_broker_url() == "amqp://user:secret@host//"
    assert "secret" not in repr(read)


@pytest.mark.parametrize("url", ["mysql://user:secret@host/db", "host/db", "://", "postgresql"])
def test_address_that_is_none_is_refused_without_showing_it(url: str) -> None:
    for read in (Settings.model_validate({"database_url": url}), Settings.model_validate({"broker_url": url})):
        with pytest.raises(ConfigurationError) as caught:
            read.require_database_url() if read.database_url else read.require_broker_url()
        assert caught.value.file == "environment"
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"broker_url": "redis://host:6379/0"}, "redis://host:6379/0"),
        ({"broker_url": "rediss://user:secret@host"}, "rediss://user:secret@host"),
        ({"broker_url": "redis+socket:///tmp/here/redis.sock"}, "unix:///tmp/here/redis.sock"),
        ({"broker_url": "redis://host", "redis_url": "redis://other/1"}, "redis://other/1"),
        (
            {"broker_url": "redis+socket:///tmp/redis.sock", "redis_url": "unix:///tmp/other.sock"},
            "unix:///tmp/other.sock",
        ),
        ({"broker_url": "amqp://host//", "redis_url": "redis://other"}, "redis://other"),
        ({"redis_url": "rediss://other"}, "rediss://other"),
    ],
)
def test_the_gates_use_the_broker_unless_they_have_a_redis_of_their_own(variables: dict[str, str], url: str) -> None:
    assert Settings.model_validate(variables).require_redis_url() == url


@pytest.mark.parametrize("broker", ["amqp://user:secret@host//", "amqps://user:secret@host", "sentinel://secret:26379"])
def test_a_broker_that_is_no_single_redis_does_not_serve_the_gates(broker: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.model_validate({"broker_url": broker}).require_redis_url()
    assert (caught.value.file, caught.value.place) == ("environment", "PENSTOCK_REDIS_URL")
    assert caught.value.cure == "set it to redis://..."
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://secret", "redis+socket:///secret.sock", "amqp://secret", "secret:6379", "://"])
def test_an_address_of_the_gates_that_is_none_is_refused_without_showing_it(url: str) -> None:
    read = Settings.model_validate({"broker_url": "redis://host", "redis_url": url})
    with pytest.raises(ConfigurationError) as caught:
        read.require_redis_url()
    assert (caught.value.file, caught.value.place) == ("environment", "PENSTOCK_REDIS_URL")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '"text"', "{"])
def test_services_that_do_not_run_are_told_with_the_cure(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "services.json").write_text(content)
    asked: dict[str, Any] = {
        "database_url": Settings(home=tmp_path).require_database_url,
        "broker_url": Settings(home=tmp_path).require_broker_url,
    }
    for name, require in asked.items():
        with pytest.raises(ConfigurationError) as caught:
            require()
        assert (caught.value.file, caught.value.place) == (str(tmp_path / "services.json"), name)
        assert "`penstock up`" in caught.value.cure
        assert f"PENSTOCK_{name.upper()}" in caught.value.cure
