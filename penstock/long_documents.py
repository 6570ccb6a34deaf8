"""A document that is too long for one call: answered in parts, which are put together. It must not know a job's states.

Each part is a request of its own, and so is each step that puts answers together: all of them pass admission, have a
row in the ledger, and are kept under their digest, so that whoever comes again pays only what is missing.
"""

import asyncio
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock import ai
from penstock.ai import Completion, CompletionRequest
from penstock.documents.chunking import Chunk, chunk
from penstock.documents.division import is_long, room_for_part
from penstock.errors import NotAdmittedError, OutputInvalidError, ProviderError, Reason
from penstock.house import House
from penstock.prompts import Prompt
from penstock.providers.base import Deployment
from penstock.retry import TREATMENTS, Kind
from penstock.schemas import RenderedPrompt, Source, Usage

AT_ONCE = 4
"""How many calls of one job are under way at once, at most."""
LEAST_GROUP = 2
SHORT = "."
"""Stands for a text when the tokens of everything else are counted."""

_CITATION = re.compile(r"\[(\d{1,6}(?:\s*[-\u2013,;]\s*\d{1,6})*)\]")
_RANGE = re.compile(r"(\d+)(?:\s*[-\u2013]\s*(\d+))?")


@dataclass(frozen=True)
class Partial:
    """An answer to the sections from `first` to `last`; `heading` is that of the first."""

    first: int
    last: int
    heading: str
    text: str

    @property
    def labelled(self) -> str:
        """Give the answer below its section's number and heading."""
        numbers = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"[{numbers}] {self.heading}".rstrip() + f"\n{self.text}"


async def complete(house: House, request: CompletionRequest) -> Completion:
    """Answer a request as `ai.complete` does, in parts where its prompt allows that and its document is too long.

    Of several failures the one that says most is raised when all calls under way have ended; a cancellation stops them.
    """
    prompt = ai.find_prompt(house, request.prompt)
    sections = await _divide(house, request, prompt)
    if not sections:
        return await ai.complete(house, request)
    answers = await _ask(house, [request.model_copy(update={"document": each.text}) for each in sections])
    partials = [Partial(each.number, each.number, each.heading, answers[each.text].text) for each in sections]
    made = [*answers.values()]
    while len(groups := await _group(house, request, prompt, partials)) > 1:
        answers = await _ask(house, [_reduction(request, group) for group in groups if len(group) > 1])
        partials = [_together(group, answers) for group in groups]
        made += answers.values()
    final = await ai.complete(house, _reduction(request, partials))
    return _sum([*made, final], _cited(sections, final.text, prompt))


async def _divide(house: House, request: CompletionRequest, prompt: Prompt) -> list[Chunk]:
    """Cut the document if it must be; a part of nothing but white space is none."""
    capacity = house.catalogue.capacity(request.context.tier)
    if request.document is None or capacity is None or not prompt.is_reducible:
        return []
    whole = prompt.render(request.variables, request.document)
    if not is_long(_bytes(whole) + whole.max_tokens, capacity):  # a token has a byte at least
        return []
    if not is_long(await _count(house, request, whole) + whole.max_tokens, capacity):
        return []
    without_text = await _count(house, request, prompt.render(request.variables, SHORT))
    room = room_for_part(capacity, without_text, whole.max_tokens)
    if room is None:
        return []
    count = house.provider.counter(_counted_as(house, request))
    return [part for part in await asyncio.to_thread(chunk, request.document, room, count) if part.text.strip()]


async def _group(
    house: House, request: CompletionRequest, prompt: Prompt, partials: Sequence[Partial]
) -> list[list[Partial]]:
    """Group neighbours so that each group fits into one call; at least two, so that there are fewer each time."""
    without_text = await _count(house, request, prompt.render_reduction(request.variables, SHORT))
    capacity = house.catalogue.capacity(request.context.tier) or 0
    room = room_for_part(capacity, without_text, prompt.max_tokens) or 0
    count = house.provider.counter(_counted_as(house, request))
    sizes = await asyncio.to_thread(lambda: [count(partial.labelled) for partial in partials])
    groups: list[list[Partial]] = [[]]
    used = 0
    for partial, size in zip(partials, sizes, strict=True):
        if len(groups[-1]) >= LEAST_GROUP and used + size > room:
            groups.append([])
            used = 0
        groups[-1].append(partial)
        used += size
    return groups


def _reduction(request: CompletionRequest, group: Sequence[Partial]) -> CompletionRequest:
    return request.model_copy(update={"document": None, "sections": _sections_of(group)})


def _sections_of(group: Sequence[Partial]) -> str:
    return "\n\n".join(partial.labelled for partial in group)


def _together(group: Sequence[Partial], answers: Mapping[str, Completion]) -> Partial:
    if len(group) == 1:
        return group[0]
    return Partial(group[0].first, group[-1].last, group[0].heading, answers[_sections_of(group)].text)


async def _ask(house: House, requests: Sequence[CompletionRequest]) -> dict[str, Completion]:
    """Answer requests, AT_ONCE of them, and give the answers by what each was about; what is equal is asked once.

    Where one is not admitted, there are fewer at once from then on, and it comes next. A failure that may pass keeps
    none of the others from being paid and kept; one that will not keeps those from being made that are not under way.
    """
    wanted = {_subject(request): request for request in requests}
    waiting = deque(wanted)
    answers: dict[str, Completion] = {}
    failures: dict[str, Exception] = {}

    async def ask_in_turn() -> None:
        while waiting and not any(_rank(failure) >= _FINAL for failure in failures.values()):
            subject = waiting.popleft()
            try:
                answers[subject] = await ai.complete(house, wanted[subject])
                failures.pop(subject, None)
            except NotAdmittedError as error:
                failures[subject] = error
                waiting.appendleft(subject)
                return
            except Exception as error:  # noqa: BLE001 - which one the job hears of is chosen when all have ended
                failures[subject] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_ONCE, len(wanted))):
            group.create_task(ask_in_turn())
    if failures:
        raise max(failures.values(), key=lambda failure: (_rank(failure), _wait_s(failure)))
    return answers


def _subject(request: CompletionRequest) -> str:
    return request.sections or request.document or ""


_WAITS, _PASSES, _FINAL, _OURS = range(4)


def _rank(failure: Exception) -> int:
    """Order failures by how much they say: that the job must wait, that it failed and may not again, that it is over.

    What comes of our own, or says that another run has the job, is above all.
    """
    match failure:
        case NotAdmittedError():
            return _FINAL if failure.wait_s is None else _WAITS
        case ProviderError() | OutputInvalidError():
            reason = failure.reason if isinstance(failure, ProviderError) else Reason.OUTPUT_INVALID
            return _FINAL if TREATMENTS[reason].kind is Kind.PERMANENT else _PASSES
    return _OURS


def _wait_s(failure: Exception) -> float:
    asked_s = failure.wait_s if isinstance(failure, NotAdmittedError) else getattr(failure, "retry_after_s", None)
    return asked_s or 0.0


def _cited(sections: Sequence[Chunk], text: str, prompt: Prompt) -> tuple[Source, ...]:
    """Give the sections whose numbers stand in square brackets, alone, in a list or as a range; all if none does.

    In JSON such brackets are no citations.
    """
    spans = [] if prompt.output else [*_spans(text)]
    cited = [each for each in sections if any(first <= each.number <= last for first, last in spans)]
    return tuple(
        Source(number=each.number, start=each.start, end=each.end, heading=each.heading) for each in cited or sections
    )


def _spans(text: str) -> Iterator[tuple[int, int]]:
    for citation in _CITATION.finditer(text):
        for first, last in _RANGE.findall(citation[1]):
            yield int(first), int(last or first)


def _sum(made: Sequence[Completion], sources: tuple[Source, ...]) -> Completion:
    """Give the last completion, with what all of them took."""
    return made[-1].model_copy(
        update={
            "usage": sum((each.usage for each in made), start=Usage()),
            "cost_nanodollars": sum(each.cost_nanodollars for each in made),
            "reused": all(each.reused for each in made),
            "cached": all(each.cached for each in made),
            "over_soft_limit": any(each.over_soft_limit for each in made),
            "sources": sources,
        }
    )


def _counted_as(house: House, request: CompletionRequest) -> Deployment:
    return house.catalogue.deployments(request.context.tier)[0]


async def _count(house: House, request: CompletionRequest, rendered: RenderedPrompt) -> int:
    return await house.provider.count_tokens(_counted_as(house, request), rendered.messages)


def _bytes(rendered: RenderedPrompt) -> int:
    return sum(len(message.content.encode()) for message in rendered.messages)
