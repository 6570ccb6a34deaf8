"""The input of a batch: passages of real documents with small edits, and items that are none. It must not know a batch.

A passage has at most 115 words, so that the simulator's answer is the passage itself: it costs no time to make.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).parents[3] / "shared" / "data"
SAMPLES = Path(__file__).parents[2] / "samples"
FILES = ("federal_register.jsonl", "rust_rfcs.jsonl")
LEAST_WORDS, MOST_WORDS = 80, 115
POISONED_OF = 10
"""Of so many good items there comes one that is none."""
POISON = (
    b"{",
    b'["a list"]',
    b'{"body": ""}',
    b'{"body": "\xff\xfe"}',
    b'{"text": "the column is missing"}',
    b'{"body": 7}',
    b'{"body": "\\u0000"}',
)


def passages() -> list[str]:
    """Cut the shared documents, or else the samples that come with the project, into passages."""
    texts = [
        json.loads(line)["text"]
        for name in FILES
        if (DATA / name).exists()
        for line in (DATA / name).open(encoding="utf-8")
    ] or [path.read_text() for path in sorted(SAMPLES.glob("*.txt"))]
    found = []
    for text in texts:
        words = text.split()
        found += [" ".join(words[at : at + MOST_WORDS - 5]) for at in range(0, len(words) - LEAST_WORDS, MOST_WORDS)]
    return found


def documents(count: int, edition: str) -> Iterator[str]:
    """Give documents, no two alike: a passage with one word of it replaced."""
    drawn = passages()
    chance = random.Random(edition)
    for number in range(count):
        words = chance.choice(drawn).split()
        words[chance.randrange(len(words))] = f"{edition}-{number}"
        yield " ".join(words)


def write(path: Path, count: int, edition: str) -> int:
    """Write `count` documents as JSON lines with a tenth of bad items between them; give how many are bad."""
    bad = 0
    with path.open("wb") as file:
        for number, document in enumerate(documents(count, edition)):
            if number % POISONED_OF == POISONED_OF - 1:
                file.write(POISON[bad % len(POISON)] + b"\n")
                bad += 1
            file.write(json.dumps({"body": document, "id": number}).encode() + b"\n")
    return bad
