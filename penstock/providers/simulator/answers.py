"""What a model says. It must not know who asked, or what it costs.

A chat answer is an extractive summary of the document in the last user message, so it is cheap, repeatable and true.
Where that is made of numbered sections, the answer cites the first, the middle and the last of them.
"""

import asyncio
import base64
import hashlib
import math
import re
import struct
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

DIMENSIONS = 256
SUMMARY_WORDS = 120
CACHED_SUMMARIES = 4096

_DOCUMENT = re.compile(r"<document\b[^>]*>(.*?)</document\b[^>]*>", re.DOTALL | re.IGNORECASE)
_SECTIONS = re.compile(r"<sections\b[^>]*>(.*?)</sections\b[^>]*>", re.DOTALL)
_LABEL = re.compile(r"^\[(\d+)[^\]\n]*\].*\n", re.MULTILINE)
_WORD = re.compile(r"\w+")


def find_document(text: str) -> str:
    """Give the longest `<document ...>` block of a message, what its sections say, or the whole message."""
    if sections := _SECTIONS.search(text):
        return _LABEL.sub("", sections[1])
    blocks = [block for block in _DOCUMENT.findall(text) if block.strip()]
    return max(blocks, key=len) if blocks else text


def cite(text: str, answer: str) -> str:
    """Close an answer with numbers in square brackets, if the message that it answers is about numbered sections."""
    sections = _SECTIONS.search(text)
    numbers = _LABEL.findall(sections[1]) if sections else []
    chosen = dict.fromkeys(numbers[place] for place in (0, len(numbers) // 2, -1)) if numbers else {}
    return " ".join([answer, *(f"[{number}]" for number in chosen)])


class Summariser:
    """Summaries from one thread beside the loop, the 4,096 latest remembered by digest."""

    def __init__(self) -> None:
        """Start with none; the thread starts with the first text."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="summary")
        self._known: OrderedDict[bytes, str] = OrderedDict()

    async def summary(self, text: str) -> str:
        """Summarise a text in at most 120 words; a shorter one is its own summary."""
        key = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        words = text.split(None, SUMMARY_WORDS)
        if len(words) <= SUMMARY_WORDS:
            return " ".join(words)
        self._known[key] = made = await asyncio.get_running_loop().run_in_executor(self._thread, _summarise, text)
        if len(self._known) > CACHED_SUMMARIES:
            self._known.popitem(last=False)
        return made


def _summarise(text: str) -> str:
    from penstock.extractive import summarise  # scikit-learn loads only where a long text comes

    return summarise(text, max_words=SUMMARY_WORDS)


def embed(text: str) -> list[float]:
    """Give the hashed bag of words of a text as a vector of length 1 in 256 dimensions."""
    vector = [0.0] * DIMENSIONS
    for word in _WORD.findall(text.lower()) or [text]:
        place, sign = _hash_word(word)
        vector[place] += sign
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else [1.0, *vector[1:]]


def encode_vector(vector: list[float]) -> str:
    """Write a vector as OpenAI's base64: 32-bit floats, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


@lru_cache(maxsize=65_536)
def _hash_word(word: str) -> tuple[int, float]:
    number = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest())
    return number % DIMENSIONS, 1.0 if number >> 63 else -1.0
