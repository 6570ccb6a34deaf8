"""What a tenant's share is, where tenants differ. It must not know who enforces it."""

from pathlib import Path

from pydantic import Field

from penstock.schemas import Frozen, Tenant
from penstock.settings import read_toml


class TenantEntry(Frozen):
    """A table of tenants.toml: the weight of a tenant beside the others, and how many calls it may have in flight."""

    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    concurrency: int | None = Field(default=None, gt=0, description="in one quota pool; None: as many as there is room")


class TenantFile(Frozen):
    """The shape of tenants.toml; the table `default` holds for tenants that have none of their own."""

    default: TenantEntry = TenantEntry()
    tenants: dict[Tenant, TenantEntry] = Field(default_factory=dict)


class Tenants:
    """The shares of all tenants, named or not."""

    def __init__(self, file: TenantFile) -> None:
        """Keep a file that has been read."""
        self.default = file.default
        self.named = file.tenants

    @classmethod
    def load(cls, folder: Path) -> "Tenants":
        """Read tenants.toml, if there is one; raise ConfigurationError."""
        path = folder / "tenants.toml"
        return cls(read_toml(path, TenantFile) if path.exists() else TenantFile())

    def entry(self, tenant: str) -> TenantEntry:
        """Give what holds for a tenant."""
        return self.named.get(tenant, self.default)
