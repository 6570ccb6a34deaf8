"""What stands in for an answer when no model can be asked: sentences of the document. It must not know why."""

import asyncio

from penstock.ai import find_prompt
from penstock.errors import PenstockError
from penstock.extractive import DEFAULT_MAX_WORDS, summarise
from penstock.house import House
from penstock.jobs.execution import ClaimedJob

MAX_WORDS = "max_words"


def can_degrade(house: House, job: ClaimedJob) -> bool:
    """Tell whether there is a document to summarise, and the prompt allows that no model does it."""
    if job.document is None:
        return False
    try:
        return find_prompt(house, job.prompt).is_extractive
    except PenstockError:
        return False


async def summarise_without_model(job: ClaimedJob) -> str:
    """Choose sentences of the document, as many words as the job asked for; in a thread, since it takes a while."""
    asked = job.variables.get(MAX_WORDS, "")
    max_words = int(asked) if asked.isdecimal() and int(asked) > 0 else DEFAULT_MAX_WORDS
    return await asyncio.to_thread(summarise, job.document or "", max_words=max_words)
