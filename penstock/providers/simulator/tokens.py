"""How many tokens a text has, and which of them were cached. It must not know prices or limits."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
CACHE_STEP = 128
CACHED_PREFIXES = 10_000


def count_tokens(text: str) -> int:
    """Count the tokens of a text: its UTF-8 bytes divided by four, rounded up."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def count_message(text: str) -> int:
    """Count the tokens of a message: those of its text, and four for its role."""
    return count_tokens(text) + TOKENS_PER_MESSAGE


def cut_to_tokens(text: str, limit: int) -> str:
    """Keep as many whole characters as fit into `limit` tokens."""
    encoded = text.encode("utf-8", "replace")[: limit * BYTES_PER_TOKEN]
    return encoded.decode("utf-8", "ignore")


class PromptCache:
    """Which prefixes of whole messages an account has sent to a model before, the 10,000 latest of all accounts."""

    def __init__(self, min_tokens: int) -> None:
        """Take the shortest prefix that counts, in tokens."""
        self._min_tokens = min_tokens
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def cached_tokens(
        self, account: str, model: str, messages: Sequence[tuple[str, str]], *, remember: bool = True
    ) -> int:
        """Give how many tokens of a prompt of (role, text) messages had been seen, in steps of 128; remember it."""
        digest = hashlib.sha256(repr((account, model)).encode())
        total = cached = 0
        for role, text in messages:
            digest.update(f"{role}\0{len(text)}\0{text}".encode("utf-8", "replace"))
            total += count_message(text)
            if total >= self._min_tokens and self._look(digest.digest(), remember=remember):
                cached = total
        return cached - cached % CACHE_STEP

    def _look(self, prefix: bytes, *, remember: bool) -> bool:
        known = prefix in self._seen
        if not remember:
            return known
        self._seen[prefix] = None
        self._seen.move_to_end(prefix)
        if len(self._seen) > CACHED_PREFIXES:
            self._seen.popitem(last=False)
        return known
