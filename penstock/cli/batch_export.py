"""Results of a batch as files. It must not know where they come from."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import click

ROWS_A_GROUP = 10_000
COLUMNS = ("number", "job", "document_name", "metadata", "result", "prompt_version", "model_served", "cost_nanodollars")


def write_jsonl(results: Iterable[tuple[int, Any]], path: Path | None) -> int:
    """Write a JSON object a line, and give how many; a file is there whole, or not at all."""
    records = (_record(number, job) for number, job in results)
    if path is None:
        return _write_lines(records, sys.stdout)
    with _whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        return _write_lines(records, file)


def write_errors(errors: Iterable[Any], path: Path) -> int:
    """Write the items without a result in the same way."""
    records = (
        {"number": each.number, "reason": each.reason, "job": str(each.job_id) if each.job_id else None}
        for each in errors
    )
    with _whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        return _write_lines(records, file)


def write_parquet(results: Iterable[tuple[int, Any]], path: Path | None) -> int:
    """Write a Parquet file, and give how many rows it has; raise UsageError where pyarrow is not installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise click.UsageError("Parquet needs pyarrow; install it (`pip install pyarrow`), or use jsonl") from None
    assert path is not None
    whole = pa.int64()
    types = {"number": whole, "cost_nanodollars": whole}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    written = 0
    records = (_record(number, job) for number, job in results)
    with _whole(path) as temporary, parquet.ParquetWriter(temporary, schema) as file:
        while group := list(islice(records, ROWS_A_GROUP)):
            for record in group:
                record["metadata"] = json.dumps(record["metadata"])
            file.write_table(pa.Table.from_pylist(group, schema=schema))
            written += len(group)
    return written


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a path to write to. What is there becomes the file in the end; where that fails, it goes."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_lines(records: Iterable[Mapping[str, Any]], file: IO[str]) -> int:
    written = 0
    for record in records:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        written += 1
    return written


def _record(number: int, job: Any) -> dict[str, Any]:
    return {
        "number": number,
        "job": str(job.id),
        "document_name": job.document_name,
        "metadata": job.metadata,
        "result": job.result,
        "prompt_version": job.prompt.version,
        "model_served": job.model_served,
        "cost_nanodollars": job.cost_nanodollars,
    }
