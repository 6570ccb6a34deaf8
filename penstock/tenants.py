"""What a tenant's share is, and how long its text is kept. It must not know who enforces either."""

from enum import StrEnum
from pathlib import Path

from pydantic import Field

from penstock.schemas import Frozen, Tenant
from penstock.settings import read_toml


class Similar(StrEnum):
    """Whether an answer may be given again to an instruction that means the same, or only be noted as if it were."""

    OFF = "off"
    SHADOW = "shadow"
    ON = "on"


class TenantEntry(Frozen):
    """A table of tenants.toml: a tenant's weight beside others, its calls in flight, how long its text is kept."""

    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    concurrency: int | None = Field(default=None, gt=0, description="in one quota pool; None: as many as there is room")
    retention_days: float | None = Field(
        default=None,
        ge=0,
        le=36_500,
        strict=True,
        allow_inf_nan=False,
        description="the text of a job is kept so long after its end; None: until it is purged by hand",
    )
    similar: Similar = Field(default=Similar.OFF, description="answers to instructions that mean the same")


class TenantFile(Frozen):
    """The shape of tenants.toml; the table `default` holds for tenants that have none of their own.

    A period of retention holds for those too that have a table which does not name one: nobody loses it by a weight.
    """

    default: TenantEntry = TenantEntry()
    tenants: dict[Tenant, TenantEntry] = Field(default_factory=dict)


class Tenants:
    """The shares of all tenants, named or not."""

    def __init__(self, file: TenantFile) -> None:
        """Keep a file that has been read."""
        self.default = file.default
        self.named = {name: _completed(entry, file.default) for name, entry in file.tenants.items()}

    @classmethod
    def load(cls, folder: Path) -> "Tenants":
        """Read tenants.toml, if there is one; raise ConfigurationError."""
        path = folder / "tenants.toml"
        return cls(read_toml(path, TenantFile) if path.exists() else TenantFile())

    @property
    def retention_days(self) -> dict[str, float | None]:
        """Give how long text is kept, by the name of each tenant that has a table."""
        return {tenant: entry.retention_days for tenant, entry in self.named.items()}

    @property
    def forgets(self) -> bool:
        """Tell whether anybody's text is purged by itself."""
        return any(entry.retention_days is not None for entry in (self.default, *self.named.values()))

    def entry(self, tenant: str) -> TenantEntry:
        """Give what holds for a tenant."""
        return self.named.get(tenant, self.default)


def _completed(entry: TenantEntry, default: TenantEntry) -> TenantEntry:
    if "retention_days" in entry.model_fields_set:
        return entry
    return entry.model_copy(update={"retention_days": default.retention_days})
