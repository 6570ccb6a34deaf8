"""Where the services are, and how a configuration file is read. It must not know what any file means.

Every setting is an environment variable with the prefix `PENSTOCK_`. A service that is not set is the embedded one,
whose addresses `penstock up` leaves in `.penstock/services.json`.
"""

import json
import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, SecretStr, ValidationError

from penstock.errors import ConfigurationError
from penstock.schemas import Frozen

FileModel = TypeVar("FileModel", bound=Frozen)
Seconds = Annotated[float, Field(allow_inf_nan=False)]

PREFIX = "PENSTOCK_"
DATABASE_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
BROKER_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel", "amqp", "amqps")
REDIS_SCHEMES = ("redis", "rediss", "unix")
SOCKET_SCHEME = "redis+socket://"


class Settings(Frozen):
    """What differs from one place of running to another."""

    home: Path = Field(default=Path(".penstock"), description="where the embedded services keep their data")
    config: Path = Field(default=Path("config"), description="the folder of tiers.toml, models.toml and prices.toml")
    prompts: Path = Field(default=Path("prompts"), description="the folder of the prompts")
    database_url: SecretStr | None = Field(default=None, description="postgresql://...")
    broker_url: SecretStr | None = Field(default=None, description="redis://... or amqp://... for Celery")
    redis_url: SecretStr | None = Field(
        default=None, description="redis://... of the gates; the broker's if it is Redis"
    )
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$")
    log_format: str = Field(default="auto", pattern="^(auto|json|pretty)$")
    lease_s: Seconds = Field(default=30.0, gt=0, description="a silent worker's jobs are taken from it after this")
    drain_timeout_s: Seconds = Field(default=30.0, ge=0, description="how long a stopping worker waits for its jobs")
    interactive_window: int = Field(default=64, ge=1, description="jobs of a tenant that are released at once")
    max_inline_bytes: int = Field(default=262_144, ge=1, description="text that a Celery message may carry")

    def require_database_url(self) -> str:
        """Give the address of Postgres in SQLAlchemy's form, or raise ConfigurationError."""
        url = self._service(self.database_url, "database_url")
        return "postgresql+psycopg://" + _after_scheme(url, DATABASE_SCHEMES, "DATABASE_URL")

    def require_broker_url(self) -> str:
        """Give the address of Celery's broker, or raise ConfigurationError."""
        url = self._service(self.broker_url, "broker_url")
        _after_scheme(url, BROKER_SCHEMES, "BROKER_URL")
        return url

    def require_redis_url(self) -> str:
        """Give the address of the gates' Redis, which is the broker unless set; or raise ConfigurationError."""
        if self.redis_url is None:
            broker = self.require_broker_url()
            if broker.startswith(SOCKET_SCHEME):
                return "unix://" + broker.removeprefix(SOCKET_SCHEME)
            if broker.partition("://")[0] in REDIS_SCHEMES:
                return broker
            raise ConfigurationError(
                "environment",
                "PENSTOCK_REDIS_URL",
                "the broker is no single Redis, and the gates need one",
                "set it to redis://...",
            )
        url = self.redis_url.get_secret_value()
        _after_scheme(url, REDIS_SCHEMES, "REDIS_URL")
        return url

    def _service(self, configured: SecretStr | None, name: str) -> str:
        if configured is not None:
            return configured.get_secret_value()
        embedded = self.home / "services.json"
        try:
            return str(json.loads(embedded.read_text())[name])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                str(embedded),
                name,
                "no embedded services are running here",
                f"start them with `penstock up`, or set PENSTOCK_{name.upper()}",
            ) from error


def _after_scheme(url: str, schemes: tuple[str, ...], name: str) -> str:
    """Give what follows the scheme of an address; the address is not shown, it may hold a password."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in schemes:
        return rest
    known = ", ".join(f"{scheme}://" for scheme in schemes)
    raise ConfigurationError(
        "environment", PREFIX + name, "it is no address of such a service", f"begin it with {known}"
    )


def load_settings() -> Settings:
    """Read the environment; raise ConfigurationError that names the variable."""
    given = {name: value for name in Settings.model_fields if (value := os.environ.get(PREFIX + name.upper()))}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigurationError("environment", name, first["msg"], "correct the variable or unset it") from error


@cache
def default_settings() -> Settings:
    """Read the environment once a process."""
    return load_settings()


def read_toml(path: Path, model: type[FileModel]) -> FileModel:
    """Read a TOML file into `model`; raise ConfigurationError that names the file and the line or key."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
        return model.model_validate(content)
    except FileNotFoundError as error:
        raise ConfigurationError(
            str(path), "the file itself", "it does not exist", "create it, or point PENSTOCK_CONFIG at its folder"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            str(path), "the file itself", f"it cannot be read: {error.strerror}", "mend that"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(str(path), "its TOML", str(error), "correct the syntax there") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            str(path), f"byte {error.start}", "it is not UTF-8", "save the file as UTF-8"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(str(path), f"key {key!r}", first["msg"], "see docs/configuration.md") from error


def read_secret(path: Path, key: str, variable: str) -> SecretStr:
    """Read a secret from the environment variable that a configuration key names."""
    value = os.environ.get(variable, "")
    if not value:
        raise ConfigurationError(
            str(path),
            f"key {key!r}",
            f"the variable {variable} is not set",
            f"export {variable}=... or remove the entry",
        )
    return SecretStr(value)
