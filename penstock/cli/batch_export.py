"""Results of a batch as files. It must not know where they come from."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import click

ROWS_A_GROUP = 10_000
COLUMNS = ("number", "job", "document_name", "metadata", "result", "prompt_version", "model_served", "cost_nanodollars")


def write_jsonl(results: Iterable[tuple[int, Any]], path: Path | None) -> int:
    """Write a JSON object a line, and give how many; a file is there whole, or not at all."""
    written = 0
    with _whole(path) as file:
        for number, job in results:
            file.write(json.dumps(_record(number, job), ensure_ascii=False) + "\n")
            written += 1
    return written


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
    temporary = path.with_name(path.name + ".part")
    with parquet.ParquetWriter(temporary, schema) as file:
        while group := list(islice(records, ROWS_A_GROUP)):
            for record in group:
                record["metadata"] = json.dumps(record["metadata"])
            file.write_table(pa.Table.from_pylist(group, schema=schema))
            written += len(group)
    temporary.replace(path)
    return written


@contextmanager
def _whole(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        yield file
    temporary.replace(path)


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
