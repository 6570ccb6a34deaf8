"""All prompts of a deployment, found by id and version. It must not know which tiers or models exist."""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from penstock.errors import ConfigurationError, InvalidRequestError
from penstock.prompts.lock import differences, read_lock
from penstock.prompts.manifest import NAME
from penstock.prompts.prompt import Prompt
from penstock.prompts.reader import read_prompt
from penstock.prompts.version import Version

_SHOWN_LENGTH = 64


class PromptLibrary:
    """Prompts by id and version; iterating gives every version, by id and then in order of precedence."""

    def __init__(self, prompts: Mapping[str, Mapping[Version, Prompt]]) -> None:
        """Take prompts by id and version, versions in ascending order."""
        self._prompts = prompts

    @classmethod
    def load(cls, root: Path, lock: Path | None = None) -> Self:
        """Read every version under `root`, and hold it against the lock file when one is given.

        Raises ConfigurationError that names the file, the place in it, and what to do. Nothing is read later.
        """
        if not root.is_dir():
            raise ConfigurationError(str(root), "directory", "is missing", "give the directory that holds the prompts")
        library = cls({path.name: _read_versions(path) for path in _directories(root)})
        if lock is not None:
            for place, reason, cure in differences(read_lock(lock), (prompt.reference for prompt in library)):
                raise ConfigurationError(str(lock), place, reason, cure)
        return library

    def __iter__(self) -> Iterator[Prompt]:
        """Give every version of every prompt."""
        for versions in self._prompts.values():
            yield from versions.values()

    def ids(self) -> tuple[str, ...]:
        """Give the ids in alphabetical order."""
        return tuple(self._prompts)

    def find(self, id: str, version: str | None = None) -> Prompt:  # noqa: A002 - the field's own name for it
        """Give the version asked for, or the highest stable one. A prerelease is given only when asked for by name.

        Raises InvalidRequestError that names `prompt` or `prompt_version`, what exists, and the nearest match.
        """
        versions = self._prompts.get(id)
        if versions is None:
            raise _unknown("prompt", id, list(self._prompts))
        names = {known.text: prompt for known, prompt in versions.items()}
        if version is None:
            return _newest(versions)
        if version not in names:
            raise _unknown("prompt_version", version, list(names))
        return names[version]


def _directories(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_versions(directory: Path) -> dict[Version, Prompt]:
    if not re.fullmatch(NAME, directory.name):
        cure = "name it with lower-case letters, digits and underscores, a letter first"
        raise ConfigurationError(str(directory), "directory", "is not a prompt id", cure)
    paths = {_version(path): path for path in _directories(directory)}
    if not paths:
        raise ConfigurationError(str(directory), "directory", "holds no version", "add one, such as 1.0.0")
    return {version: read_prompt(paths[version], directory.name, version.text) for version in sorted(paths)}


def _version(path: Path) -> Version:
    try:
        return Version.parse(path.name)
    except ValueError as error:
        cure = "name the directory by its version, such as 1.0.0 or 2.0.0-rc.1"
        raise ConfigurationError(str(path), "directory", "is not a semantic version", cure) from error


def _newest(versions: Mapping[Version, Prompt]) -> Prompt:
    stable = [version for version in versions if version.is_stable]
    if not stable:
        listed = ", ".join(version.text for version in versions)
        raise InvalidRequestError("prompt_version", "there is no stable version", f"ask for one by name: {listed}")
    return versions[stable[-1]]


def _unknown(field: str, asked: str, known: list[str]) -> InvalidRequestError:
    shown = asked[:_SHOWN_LENGTH]
    near = difflib.get_close_matches(shown, known, n=1)
    cure = f"did you mean {near[0]!r}?" if near else "ask for one that exists"
    return InvalidRequestError(field, f"{shown!r} does not exist; there are: {', '.join(known) or 'none'}", cure)
