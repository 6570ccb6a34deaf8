"""Reads what a provider says it billed: CSV, JSON, or JSON lines. It must not know the ledger.

A line names the call (`call_id`, or `client_request_id` as the simulator has it), what it cost (`nanodollars`, or
`dollars`) and, where the provider tells, its tokens by price class. Other columns are passed over.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from penstock.errors import InvalidRequestError
from penstock.money.reconciliation import BilledCall
from penstock.schemas import TOKEN_CLASSES, NanoDollars, Usage

NANO = 10**9
CURE = "see `penstock reconcile --help` for what a line holds"

Absent = BeforeValidator(lambda value: None if value == "" else value)  # an empty field of a CSV
Count = Annotated[Annotated[int, Field(ge=0, lt=2**63)] | None, Absent]
Dollars = Annotated[Annotated[Decimal, Field(ge=0, lt=NANO, allow_inf_nan=False)] | None, Absent]


class Line(BaseModel):
    """One line, as it is written."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    call: str | None = Field(default=None, validation_alias=AliasChoices("call_id", "client_request_id"))
    nanodollars: Count = None
    dollars: Dollars = None
    input_tokens: Count = None
    cached_input_tokens: Count = None
    cache_write_tokens: Count = None
    output_tokens: Count = None
    reasoning_tokens: Count = None

    @model_validator(mode="after")
    def _has_one_amount(self) -> "Line":
        if (self.nanodollars is None) == (self.dollars is None):
            raise ValueError("a line has either nanodollars or dollars")
        return self

    def _amount(self) -> NanoDollars:
        """Give what it cost; a fraction of a nano-dollar is a whole one."""
        if self.nanodollars is not None:
            return self.nanodollars
        return math.ceil((self.dollars or Decimal()) * NANO)

    def billed(self) -> BilledCall:
        """Give it in our terms; a call that is named otherwise than ours are is not one of ours."""
        call_id = None
        with suppress(ValueError):
            call_id = UUID(self.call or "")
        tokens = {name: value for name in TOKEN_CLASSES if (value := getattr(self, name)) is not None}
        return BilledCall(call_id, self._amount(), Usage(**tokens) if tokens else None)


def read_export(path: Path) -> Iterator[BilledCall]:
    """Read an export line by line; raise InvalidRequestError that names the line.

    `.json` is a list of lines, or an object with a list `lines`; `.jsonl` an object a line; `.csv` has a header.
    """
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}
    if path.suffix not in readers:
        raise InvalidRequestError(path.name, "it is neither .csv, .json nor .jsonl", CURE)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, content in readers[path.suffix](file):
                yield _billed(path, number, content)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequestError(path.name, f"it cannot be read: {reason}", "mend that") from error
    except json.JSONDecodeError as error:
        raise InvalidRequestError(path.name, f"it is no JSON: {error}", "mend that") from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        reason = "it is no JSON that can be read: a number is too long, or lists are nested too deeply"
        raise InvalidRequestError(path.name, reason, CURE) from error


def _billed(path: Path, number: int, content: Any) -> BilledCall:
    try:
        return Line.model_validate(content).billed()
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        name = f"{path.name}, line {number}" + (f", {where}" if where else "")
        raise InvalidRequestError(name, first["msg"].removeprefix("Value error, "), CURE) from None


def _json(file: Iterable[str]) -> Iterator[tuple[int, Any]]:
    content = json.loads("".join(file), parse_float=Decimal)
    lines = content.get("lines") if isinstance(content, dict) else content
    return enumerate(lines if isinstance(lines, list) else [content], start=1)


def _json_lines(file: Iterable[str]) -> Iterator[tuple[int, Any]]:
    return ((n, json.loads(line, parse_float=Decimal)) for n, line in enumerate(file, start=1) if line.strip())


def _csv(file: Iterable[str]) -> Iterator[tuple[int, Any]]:
    return ((n, row) for n, row in enumerate(csv.DictReader(file), start=2))
