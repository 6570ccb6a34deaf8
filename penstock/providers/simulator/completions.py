"""OpenAI's form of a chat answer, whole and streamed. It must not know how the text was made."""

import json
import re
from dataclasses import dataclass
from typing import Any

from penstock.providers.simulator.delivery import Answer
from penstock.schemas import Usage

FINGERPRINT = "fp_simulator"
DONE = b"data: [DONE]\n\n"

_CHUNK = re.compile(r"(?:\S+\s*|\s+){1,6}")


@dataclass(frozen=True)
class Completion:
    """One answer of a chat model; without a choice where `has_choice` is False."""

    id: str
    created: int
    model: str
    content: str | None
    finish_reason: str
    usage: Usage
    has_choice: bool = True

    def whole(self, headers: dict[str, str]) -> Answer:
        """Give one JSON body."""
        message = {"role": "assistant", "content": self.content, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        body = self._object("chat.completion", choice if self.has_choice else None)
        return Answer.json({**body, "usage": usage_object(self.usage)}, headers=headers)

    def streamed(self, headers: dict[str, str], *, include_usage: bool, ms_per_token: float) -> Answer:
        """Give server-sent events of about six words, at the pace of `ms_per_token` milliseconds a token."""
        texts = _CHUNK.findall(self.content or "")
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": ""},
            *({"content": text} for text in texts),
            {},
        ]
        events = [self._event(delta, include_usage=include_usage) for delta in deltas]
        if include_usage:
            body = self._object("chat.completion.chunk", None)
            events.append(_encode({**body, "usage": usage_object(self.usage)}))
        pause_ms = ms_per_token * self.usage.output_tokens / max(1, len(texts))
        own = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        return Answer(200, {**own, **headers}, (*events, DONE), pause_ms=pause_ms)

    def _event(self, delta: dict[str, Any], *, include_usage: bool) -> bytes:
        finish_reason = None if delta else self.finish_reason
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        body = self._object("chat.completion.chunk", choice if self.has_choice else None)
        return _encode({**body, "usage": None} if include_usage else body)

    def _object(self, kind: str, choice: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [] if choice is None else [choice],
        }


def usage_object(usage: Usage) -> dict[str, Any]:
    """Give usage as OpenAI writes it: the prompt includes what was cached."""
    prompt = usage.input_tokens + usage.cached_input_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
    }


def _encode(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"
