"""Checks that all configuration holds together, as a pool would when it starts. It must not know what runs."""

from dataclasses import dataclass

from penstock.clock import SystemClock
from penstock.errors import ConfigurationError, InvalidRequestError
from penstock.money.prices import PriceList
from penstock.prompts import Prompt, PromptLibrary
from penstock.routing import Catalogue
from penstock.settings import Settings
from penstock.tenants import Tenants


@dataclass(frozen=True)
class Configuration:
    """Every file, read."""

    catalogue: Catalogue
    prices: PriceList
    tenants: Tenants
    prompts: PromptLibrary


def read_configuration(settings: Settings) -> Configuration:
    """Read every file and check that they hold together; raise ConfigurationError that names the file and the key.

    Prompts are held against the `prompts.lock` beside their folder, if there is one.
    """
    prices = PriceList.load(settings.config / "prices.toml")
    catalogue = Catalogue.load(settings.config)
    tenants = Tenants.load(settings.config)
    lock = settings.prompts.with_name("prompts.lock")
    prompts = PromptLibrary.load(settings.prompts, lock if lock.exists() else None)
    today = SystemClock().now().date()
    for name in catalogue.deployment_names:
        prices.price_on(name, today)
    for prompt in prompts:
        _require_tiers(catalogue, prompt, settings)
    return Configuration(catalogue, prices, tenants, prompts)


def _require_tiers(catalogue: Catalogue, prompt: Prompt, settings: Settings) -> None:
    named = [
        ("default_tier", prompt.default_tier),
        *(("fallback_tiers", name) for name in prompt.manifest.fallback_tiers),
    ]
    for key, tier in named:
        try:
            catalogue.tier(tier)
        except InvalidRequestError as error:
            manifest = settings.prompts / prompt.reference.id / prompt.reference.version / "prompt.toml"
            raise ConfigurationError(str(manifest), f"key {key!r}", error.reason, error.cure) from error
