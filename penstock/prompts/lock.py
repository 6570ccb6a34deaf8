"""The file prompts.lock: the digest of every version that was ever released. It must not know what a prompt says."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from penstock.errors import ConfigurationError
from penstock.prompts.manifest import toml_error
from penstock.prompts.version import Version
from penstock.schemas import PromptReference

Digests: TypeAlias = dict[tuple[str, str], str]

_HEADER = "# Written by `python -m penstock.prompts lock`. A locked version never changes: make a new one.\n"
_LAYOUT = TypeAdapter(dict[str, dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]])


def read_lock(path: Path) -> Digests:
    """Read the digests by id and version; raises ConfigurationError when the file is missing or malformed."""
    cure = "restore it from version control, or write it with `python -m penstock.prompts lock`"
    try:
        text = path.read_text(encoding="utf-8")
        layout = _LAYOUT.validate_python(tomllib.loads(text))
        return {(id_, Version.parse(version).text): digest for id_ in layout for version, digest in layout[id_].items()}
    except FileNotFoundError as error:
        raise ConfigurationError(str(path), "file", "is missing", cure) from error
    except tomllib.TOMLDecodeError as error:
        raise toml_error(error, text, str(path)) from error
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "whole file"
        raise ConfigurationError(str(path), place, "is not a SHA-256 digest in hex", cure) from error
    except ValueError as error:
        raise ConfigurationError(str(path), "versions", str(error), cure) from error


def differences(locked: Mapping[tuple[str, str], str], found: Iterable[PromptReference]) -> list[tuple[str, str, str]]:
    """List what keeps the lock and the files from being equal: (id and version, reason, cure), in order."""
    present = {(reference.id, reference.version): reference.digest for reference in found}
    return [
        (f"{prompt_id} {version}", *_difference(locked.get((prompt_id, version)), present.get((prompt_id, version))))
        for prompt_id, version in sorted(locked.keys() | present.keys(), key=_order)
        if locked.get((prompt_id, version)) != present.get((prompt_id, version))
    ]


def add_new(path: Path, found: Iterable[PromptReference]) -> list[PromptReference]:
    """Write the new versions into the lock and give them; the file is replaced in one step or not at all.

    Raises ConfigurationError, and writes nothing, when a locked version was changed or removed.
    """
    references = list(found)
    locked = read_lock(path) if path.exists() else {}
    added = [reference for reference in references if (reference.id, reference.version) not in locked]
    digests = locked | {(reference.id, reference.version): reference.digest for reference in added}
    for place, reason, cure in differences(digests, references):
        raise ConfigurationError(str(path), place, reason, cure)
    if added:
        _write(path, digests)
    return added


def _difference(locked: str | None, present: str | None) -> tuple[str, str]:
    if locked is None:
        return "is not locked", "run `python -m penstock.prompts lock`"
    if present is None:
        return "is locked, and its files are gone", "restore them: old versions are kept"
    return "differs from the lock", "undo the change, and make a new version beside it"


def _order(key: tuple[str, str]) -> tuple[str, Version]:
    return key[0], Version.parse(key[1])


def _write(path: Path, digests: Digests) -> None:
    lines = [f'{id_}."{version}" = "{digests[id_, version]}"\n' for id_, version in sorted(digests, key=_order)]
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(_HEADER + "".join(lines), encoding="utf-8", newline="\n")
    draft.replace(path)
