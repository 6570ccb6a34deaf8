"""The items of a batch, one by one, from a file, a folder or a query. It must not know what becomes of them.

An item that cannot be read is told by its number and its reason, and those behind it are read all the same. Whatever
the length of the input, one item is held at a time; of a folder or a glob, the paths too.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from penstock.errors import InvalidRequestError

MOST_BYTES_A_LINE = 64 * 2**20
ROWS_AT_A_TIME = 500
HIDDEN = "."


@dataclass(frozen=True)
class Item:
    """The fields of a request, as `Client.submit` takes them, and where it stands in the input, from 1."""

    number: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class BadItem:
    """What could not be read; `reason` quotes nothing of it."""

    number: int
    reason: str


@dataclass(frozen=True)
class Columns:
    """Which field of a request comes from which column or key: `document`, `variables.language`, `metadata.id`.

    Without any, columns are named as the fields are.
    """

    of_field: Mapping[str, str]

    @classmethod
    def parse(cls, written: tuple[str, ...]) -> "Columns":
        """Read `FIELD=COLUMN`, each field once; raise InvalidRequestError."""
        of_field: dict[str, str] = {}
        for each in written:
            field, equals, column = each.partition("=")
            if not (field and equals and column):
                raise InvalidRequestError("map", f"{each!r} is not FIELD=COLUMN", "write it like document=body")
            if field in of_field:
                raise InvalidRequestError("map", f"{field!r} is mapped twice", "map each field once")
            of_field[field] = column
        return cls(of_field)

    def item(self, number: int, row: Mapping[str, Any]) -> Item | BadItem:
        """Make the item of a row; a field whose value is null is left out."""
        of_field = self.of_field or {name: name for name in row}
        lacking = [column for column in of_field.values() if column not in row]
        if lacking:
            return BadItem(number, f"it has no {lacking[0]!r}")
        fields: dict[str, Any] = {}
        for field, column in of_field.items():
            mapping, is_inner, name = field.partition(".")
            if row[column] is None:
                continue
            if is_inner:
                inner = fields.setdefault(mapping, {})
                if not isinstance(inner, dict):
                    return BadItem(number, f"{mapping!r} is given beside {field!r}")
                inner[name] = _written(row[column])
            elif field in fields:
                return BadItem(number, f"{field!r} is given beside a part of it")
            else:
                fields[field] = row[column]
        return Item(number, fields)


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def read(source: str, columns: Columns) -> Iterator[Item | BadItem]:
    """Read `.jsonl`, `.csv`, a folder with all that is in it, or a glob, in their order; folders by name.

    Raises InvalidRequestError where there is no such thing, or nothing in it.
    """
    path = Path(source)
    readers = {".jsonl": _json_lines, ".csv": _csv}
    form = path.suffix.lower()
    if path.is_file() and form in readers:
        try:
            yield from readers[form](path, columns)
        except OSError as error:
            raise InvalidRequestError("input", f"{source!r} cannot be read: {error.strerror}", "mend that") from None
        return
    number = 0
    for number, found in enumerate(_files(source, path), start=1):
        yield Item(number, {"document": found, "metadata": {"path": str(found)}})
    if not number:
        raise InvalidRequestError("input", f"{source!r} names no document", "name a .jsonl, a .csv, a folder or a glob")


def query(engine: Engine, statement: str, columns: Columns) -> Iterator[Item | BadItem]:
    """Read the rows of a query, in its order, through a cursor of the server; raise InvalidRequestError."""
    options = {"stream_results": True, "yield_per": ROWS_AT_A_TIME, "no_parameters": True}
    try:
        with engine.connect() as connection:
            rows = connection.execution_options(**options).exec_driver_sql(statement).mappings()
            for number, row in enumerate(rows, start=1):
                yield columns.item(number, dict(row))
    except DBAPIError as error:
        reason = next(iter(str(error.orig).splitlines()), type(error.orig).__name__)
        raise InvalidRequestError("query", reason, "mend it; psql shows the same error") from None


def _files(source: str, path: Path) -> Iterator[Path]:
    found: Iterable[Path] = [path]
    if has_magic(source) and not path.exists():
        found = map(Path, sorted(glob(source, recursive=True)))  # noqa: PTH207 - the pattern may be absolute
    elif path.is_dir():
        found = sorted(path.rglob("*"))
    return (each for each in found if each.is_file() and not _is_hidden(each, path))


def _is_hidden(found: Path, below: Path) -> bool:
    inner = found.relative_to(below) if found.is_relative_to(below) else Path(found.name)
    return any(part.startswith(HIDDEN) for part in inner.parts)


def _json_lines(path: Path, columns: Columns) -> Iterator[Item | BadItem]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_BYTES_A_LINE):
            number += 1
            if not line.endswith(b"\n") and len(line) == MOST_BYTES_A_LINE:
                while (rest := file.readline(MOST_BYTES_A_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield BadItem(number, f"its line is longer than {MOST_BYTES_A_LINE} bytes")
            elif line.strip():
                yield _json_line(number, line, columns)


def _json_line(number: int, line: bytes, columns: Columns) -> Item | BadItem:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return BadItem(number, "it is not UTF-8")
    except (ValueError, RecursionError):
        return BadItem(number, "it is no JSON")
    return columns.item(number, row) if isinstance(row, dict) else BadItem(number, "it is no JSON object")


def _csv(path: Path, columns: Columns) -> Iterator[Item | BadItem]:
    csv.field_size_limit(MOST_BYTES_A_LINE)
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        rows = csv.reader(file, strict=True)
        try:
            names = next(rows, [])
        except csv.Error as error:
            raise InvalidRequestError("input", f"the header of {path.name!r} is no CSV: {error}", "mend it") from None
        number = 0
        while True:
            number += 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadItem(number, f"it is no CSV: {error}")
                continue
            if row and len(row) != len(names):
                yield BadItem(number, f"it has {len(row)} fields where the header has {len(names)}")
            elif any(not cell.isascii() and _is_broken(cell) for cell in row):
                yield BadItem(number, "it is not UTF-8")
            elif row:
                yield columns.item(number, dict(zip(names, row, strict=True)))


def _is_broken(cell: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in cell)
