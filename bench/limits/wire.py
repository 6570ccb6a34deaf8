"""What a peer sends for a document: OpenAI's protocol. It must not know who sends it."""

import json
from functools import cache

from bench.limits.semantics import MODEL
from bench.limits.texts import Document, messages, prompt


@cache
def request_body(document: Document) -> bytes:
    """Give the body of a chat request, with the messages and the bound that Penstock sends."""
    content = {
        "model": MODEL,
        "messages": [message.model_dump() for message in messages(document)],
        "max_tokens": prompt().max_tokens,
    }
    return json.dumps(content).encode()
