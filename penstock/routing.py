"""Which tiers exist, and which deployment serves each. It must not know what is asked, or what it costs."""

import math
import os
from pathlib import Path

from pydantic import Field

from penstock.errors import ConfigurationError, InvalidRequestError
from penstock.providers.base import Deployment
from penstock.providers.quota import Quota, QuotaEntry, Size
from penstock.schemas import Frozen
from penstock.settings import Seconds, read_secret, read_toml


class TierEntry(Frozen):
    """A table of tiers.toml: a class of models that serve alike, its pool and its limits."""

    deployments: tuple[str, ...] = Field(min_length=1, description="names in models.toml, the preferred one first")
    processes: int = Field(default=1, gt=0, description="pool processes that `penstock up` starts on one machine")
    concurrency: int = Field(gt=0, description="jobs in flight in one pool process")
    timeout_s: Seconds = Field(gt=0, le=600, description="one call, from the first byte sent to the last byte read")
    max_failures: int = Field(gt=0, description="failed attempts before a job is dead; a 429 is none")


class Tier(TierEntry):
    """A tier with its name."""

    name: str


class TierFile(Frozen):
    """The shape of tiers.toml."""

    tiers: dict[str, TierEntry] = Field(min_length=1)


class ModelEntry(Frozen):
    """A table of models.toml: `*_env` names the environment variable that holds the value.

    Where `api_base` is given too, it holds as long as the variable of `api_base_env` is not set.
    """

    model: str = Field(min_length=1)
    account: str = Field(min_length=1)
    api_base: str | None = None
    api_base_env: str | None = None
    api_key_env: str | None = None
    context_window: int = Field(gt=0)
    max_output_tokens: int = Field(gt=0)
    quota: str | None = Field(default=None, description="the pool that its calls are taken from; others may share it")


class ModelFile(Frozen):
    """The shape of models.toml."""

    embeddings: str | None = Field(default=None, description="the one of `models` that turns instructions into vectors")
    models: dict[str, ModelEntry] = Field(min_length=1)
    quotas: dict[str, QuotaEntry] = Field(default_factory=dict)


class Catalogue:
    """The tiers and their deployments, as the configuration has them."""

    def __init__(
        self, tiers: dict[str, Tier], deployments: dict[str, Deployment], embeddings: Deployment | None = None
    ) -> None:
        """Keep what `load` has checked; `embeddings` turns instructions into vectors, and is in no tier."""
        self._tiers = tiers
        self._deployments = deployments
        self.embeddings = embeddings

    @classmethod
    def load_tiers(cls, folder: Path) -> "Catalogue":
        """Read tiers.toml alone, which is all that a producer needs: it has no provider's key."""
        entries = read_toml(folder / "tiers.toml", TierFile).tiers
        return cls({name: Tier(name=name, **entry.model_dump()) for name, entry in entries.items()}, {})

    @classmethod
    def load_public(cls, folder: Path) -> "Catalogue":
        """Read tiers.toml, and models.toml without its keys if it is there: what a producer knows."""
        return cls.load(folder, with_keys=False) if (folder / "models.toml").exists() else cls.load_tiers(folder)

    @classmethod
    def load(cls, folder: Path, *, with_keys: bool = True) -> "Catalogue":
        """Read tiers.toml and models.toml; raise ConfigurationError for what does not hold together.

        Without keys the deployments cannot be called: it is for those who only need to know their quotas.
        """
        tiers = cls.load_tiers(folder)._tiers  # noqa: SLF001 - its own class
        path = folder / "models.toml"
        file = read_toml(path, ModelFile)
        entries = file.models
        for tier in tiers.values():
            for name in tier.deployments:
                if name not in entries:
                    raise ConfigurationError(
                        str(folder / "tiers.toml"),
                        f"key 'tiers.{tier.name}.deployments'",
                        f"there is no model {name!r} in {path}",
                        f"use one of {sorted(entries)}, or add it there",
                    )
        used = sorted({name for tier in tiers.values() for name in tier.deployments})
        quotas = {name: Quota(name=name, **entry.model_dump()) for name, entry in file.quotas.items()}

        def deployment(name: str) -> Deployment:
            return _deployment(path, name, entries[name], _quota(path, name, entries[name], quotas), keys=with_keys)

        deployments = {name: deployment(name) for name in used}
        if file.embeddings is None:
            return cls(tiers, deployments)
        _require_apart(path, file.embeddings, entries, used)
        return cls(tiers, deployments, deployment(file.embeddings).model_copy(update={"is_embedding": True}))

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Give the tiers in the order of the file."""
        return tuple(self._tiers.values())

    @property
    def deployment_names(self) -> tuple[str, ...]:
        """Give the names of the deployments that are called; each needs a price."""
        return (*self._deployments, *([self.embeddings.name] if self.embeddings else []))

    def tier(self, name: str) -> Tier:
        """Find a tier; raise InvalidRequestError that lists those that exist."""
        if name not in self._tiers:
            raise InvalidRequestError(
                "tier", f"there is no tier {name!r}", f"use one of {sorted(self._tiers)}, or none for the prompt's own"
            )
        return self._tiers[name]

    def fitting(self, tier: str, tokens: int) -> tuple[Deployment, ...]:
        """Give the deployments whose context window holds an estimate of `tokens`, the preferred first.

        An estimate refuses nothing: where none seems large enough, the largest is given, and the provider is the judge.
        """
        deployments = self.deployments(tier)
        fitting = tuple(deployment for deployment in deployments if tokens <= deployment.context_window)
        return fitting or (max(deployments, key=lambda deployment: deployment.context_window),)

    def too_large(self, tier: str, size: Size) -> str | None:
        """Say why no deployment of a tier can ever take a call of this size; None where one can, or is not known."""
        lacks = [
            deployment.quota.too_large(size) if deployment.quota else None
            for deployment in (self._deployments.get(name) for name in self.tier(tier).deployments)
            if deployment is not None
        ]
        if not lacks or None in lacks:
            return None
        return f"it needs more {lacks[0]} than any quota of tier {tier!r} gives in a minute"

    def capacity(self, tier: str) -> int | None:
        """Give the tokens, prompt and answer together, of the largest call that some deployment of a tier can take.

        Its context window bounds it, and a minute of its quota. None where the deployments are not known.
        """
        names = self.tier(tier).deployments
        known = [self._deployments[name] for name in names if name in self._deployments]
        return max((deployment.capacity for deployment in known), default=None)

    def fewest_tokens(self, tier: str) -> float:
        """Give the tokens of the largest call that every quota of a tier can take."""
        quotas = (self._deployments[name].quota for name in self.tier(tier).deployments if name in self._deployments)
        return min((quota.most_tokens for quota in quotas if quota is not None), default=math.inf)

    def deployments(self, tier: str) -> tuple[Deployment, ...]:
        """Give the deployments of a tier in order of preference."""
        return tuple(self._deployments[name] for name in self.tier(tier).deployments)

    def models(self, tier: str) -> tuple[str, ...]:
        """Give the models of a tier in order of preference; several deployments may have the same."""
        return tuple(dict.fromkeys(deployment.model for deployment in self.deployments(tier)))


def _require_apart(path: Path, name: str, entries: dict[str, ModelEntry], used: list[str]) -> None:
    if name not in entries:
        reason, cure = f"there is no model {name!r}", f"use one of {sorted(entries)}, or add it"
    elif name in used:
        reason, cure = f"{name!r} answers for a tier, and cannot give vectors too", "use a model for embeddings"
    else:
        return
    raise ConfigurationError(str(path), "key 'embeddings'", reason, cure)


def _quota(path: Path, name: str, entry: ModelEntry, quotas: dict[str, Quota]) -> Quota | None:
    if entry.quota is None:
        return None
    if entry.quota not in quotas:
        raise ConfigurationError(
            str(path),
            f"key 'models.{name}.quota'",
            f"there is no quota {entry.quota!r}",
            f"use one of {sorted(quotas)}, or add [quotas.{entry.quota}]",
        )
    return quotas[entry.quota]


def _deployment(path: Path, name: str, entry: ModelEntry, quota: Quota | None, *, keys: bool) -> Deployment:
    key = read_secret(path, f"models.{name}.api_key_env", entry.api_key_env) if keys and entry.api_key_env else None
    return Deployment(
        name=name,
        model=entry.model,
        account=entry.account,
        api_base=_api_base(path, name, entry) if keys else entry.api_base,
        api_key=key,
        context_window=entry.context_window,
        max_output_tokens=entry.max_output_tokens,
        quota=quota,
    )


def _api_base(path: Path, name: str, entry: ModelEntry) -> str | None:
    if entry.api_base_env is None or (entry.api_base is not None and not os.environ.get(entry.api_base_env)):
        return entry.api_base
    return read_secret(path, f"models.{name}.api_base_env", entry.api_base_env).get_secret_value()
