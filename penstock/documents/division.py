"""When a document is too long for one call, and how large its parts may be. It must not know whose limits these are.

A capacity is what the largest call may have in tokens, prompt and answer together. Counts of a local tokenizer may be
wrong for the model, so no call is planned up to the brim, and a part leaves more room than a whole document does.
"""

from math import ceil

LONG_SHARE = 0.8
PART_SHARE = 0.6


def is_long(tokens: int, capacity: int) -> bool:
    """Tell whether a call of so many tokens, prompt and answer, is divided."""
    return tokens > LONG_SHARE * capacity


def room_for_part(capacity: int, prompt: int, max_tokens: int) -> int | None:
    """Give the tokens that a part may have beside its prompt and answer; None where it would be no longer than that."""
    room = int(PART_SHARE * capacity) - prompt - max_tokens
    return room if room > max_tokens else None


def estimate_tokens(document: int, max_tokens: int, capacity: int) -> int:
    """Estimate the tokens of all calls: the document and the answers to its parts, which are read once more."""
    room = room_for_part(capacity, 0, max_tokens)
    if room is None or not is_long(document + max_tokens, capacity):
        return document + max_tokens
    return document + 2 * ceil(document / room) * max_tokens + max_tokens
