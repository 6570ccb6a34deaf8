"""Two instructions share an answer only where nothing that matters differs; what is not known matters."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.similarity import Guard, agreement, refusal
from penstock.similarity.guards import canonical, is_english
from penstock.similarity.words import IDLE

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "bench" / "data" / "instruction_pairs.jsonl").read_text().splitlines()
]
INSTRUCTIONS = sorted({pair[side] for pair in PAIRS for side in "ab"})
RIGHT_HITS = 47
"""Of the pairs that mean the same. It may grow; a pair that does not mean the same must never pass."""


def test_the_pairs_are_many_and_no_two_are_the_same() -> None:
    assert len({(pair["a"], pair["b"]) for pair in PAIRS}) == len(PAIRS) == 269
    assert sum(pair["same"] for pair in PAIRS) == 79


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not pair["same"]], ids=lambda pair: pair["a"][:40])
def test_a_pair_that_does_not_mean_the_same_is_kept_apart_both_ways(pair: dict[str, str]) -> None:
    assert refusal(pair["a"], pair["b"]) is not None
    assert refusal(pair["b"], pair["a"]) is not None


def test_pairs_that_mean_the_same_pass_as_often_as_is_documented() -> None:
    assert sum(refusal(pair["a"], pair["b"]) is None for pair in PAIRS if pair["same"]) == RIGHT_HITS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Please summarize the deadlines.", "Summarise the deadlines"),
        ("Can you list all the due dates in the document?", "List the deadlines"),
        ("Don't include costs, please list the rest.", "Exclude costs, please list the rest."),
        ("Use at most one hundred and twenty words.", "Use no more than 120 words."),
        ("What is due by 4 May 2017?", "What is due by May 4th, 2017?"),
        ("Which of the payments exceed USD 120,000?", "Which of the payments exceed $120k?"),
        ("Explain the fee of five per cent.", "Explain the fee of 5%."),
        ("Explain the \u201cforce majeure\u201d clause.", 'Explain the "force majeure" clause.'),
        ("Fasse die Fristen zusammen.", "  Fasse die   Fristen zusammen"),
    ],
)
def test_spelling_and_politeness_do_not_matter(one: str, other: str) -> None:
    assert refusal(one, other) is None
    assert refusal(other, one) is None


@pytest.mark.parametrize(
    ("one", "other", "guard"),
    [
        ("List the fees above $120,000.", "List the fees above $12,000.", Guard.NUMBERS),
        ("List the fees above $500.", "List the fees above \u20ac500.", Guard.NUMBERS),
        ("Explain the rate of .5 to me.", "Explain the rate of 5 to me.", Guard.NUMBERS),
        ("List the fees above 1.000.", "List the fees above 1,000.", Guard.NUMBERS),
        ("What is due by 4 May 2017?", "What is due by 4 March 2017?", Guard.NUMBERS),
        ("List what applies.", "List what does not apply.", Guard.NEGATION),
        ("Do not list all of the risks.", "Do not list the risks.", Guard.DIRECTION),
        ("What happened before the sale?", "What happened after the sale?", Guard.DIRECTION),
        ("What does Alice owe to Bob?", "What does Bob owe to Alice?", Guard.NAMES),
        ("Explain it to us, please.", "Explain IT to us, please.", Guard.NAMES),
        ("Which rules hold for vitamin A?", "Which rules hold for vitamin?", Guard.NAMES),
        ("What does the buyer owe the seller?", "What does the seller owe the buyer?", Guard.WORDS),
        ("List the gross profit and the revenue.", "List the gross revenue and the profit.", Guard.WORDS),
        ("Who pays - the buyer or the seller?", "Who pays the buyer or the seller?", Guard.WORDS),
        ("Who pays? The buyer or the seller?", "Who pays the buyer or the seller?", Guard.WORDS),
        ("What does this party owe that party?", "What does that party owe this party?", Guard.WORDS),
        ("Nenne die Risiken der Mieter.", "Bitte nenne die Risiken der Mieter.", Guard.LANGUAGE),
        ("Haben Sie gezahlt?", "Haben sie gezahlt?", Guard.LANGUAGE),
        ("List the risks.", "Liste die Risiken auf.", Guard.LANGUAGE),
    ],
)
def test_each_guard_keeps_its_own_apart(one: str, other: str, guard: Guard) -> None:
    assert refusal(one, other) is guard
    assert refusal(other, one) is guard


def spoilt(instruction: str) -> Iterator[str]:
    """Change a digit, put in a "not", leave out a word that is not idle, or exchange two neighbours."""
    words = instruction.split()
    for place, word in enumerate(words):
        yield " ".join([*words[:place], "not", *words[place:]])
        if word.strip(".,?!").lower() not in IDLE | {"me", "all", "every", "do", "document", "document.", "document?"}:
            yield " ".join([*words[:place], *words[place + 1 :]])
    for match in re.finditer(r"\d", instruction):
        yield instruction[: match.start()] + str((int(match[0]) + 1) % 10) + instruction[match.end() :]


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda text: text[:40])
def test_a_spoilt_instruction_is_another_one(instruction: str) -> None:
    assert [other for other in spoilt(instruction) if refusal(instruction, other) is None] == []


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_two_texts_are_judged_alike_from_both_sides(one: str, other: str) -> None:
    assert refusal(one, one) is None
    assert (refusal(one, other) is None) == (refusal(other, one) is None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "2017",
        "Risiken nennen",
        "\u0421\u043f\u0438\u0441\u043e\u043a \u0440\u0438\u0441\u043a\u043e\u0432",
        "liste des risques",
        "Zusammenfassung",
    ],
)
def test_what_is_not_surely_english_is_not_taken_for_it(text: str) -> None:
    assert not is_english(text)


def test_the_canonical_form_says_what_was_understood() -> None:
    assert canonical("Could you list the due dates before 4 May 2017, and 1.5 million euros?") == [
        "list",
        "deadlines",
        "before",
        "=2017-05-04",
        "=eur:1500000",
    ]


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [("a b c d", "a b c d", 1.0), ("a b", "c d", 0.0), ("a a b", "A b c", 2 / 3), ("", "", 1.0), ("", "a", 0.0)],
)
def test_agreement_is_the_f1_of_words(one: str, other: str, share: float) -> None:
    assert agreement(one, other) == pytest.approx(share)
