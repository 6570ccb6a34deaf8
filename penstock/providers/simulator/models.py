"""The two kinds of models: chat and embeddings. It must not know limits, keys or money."""

import json
from typing import Literal
from uuid import uuid4

from penstock.providers.simulator.answers import cite, embed, encode_vector, find_document
from penstock.providers.simulator.bodies import ChatRequest, EmbeddingRequest
from penstock.providers.simulator.calls import Call, Done, ModelEndpoint
from penstock.providers.simulator.charges import Demand
from penstock.providers.simulator.completions import Completion
from penstock.providers.simulator.config import ModelConfig
from penstock.providers.simulator.delivery import Answer
from penstock.providers.simulator.faults import Fault
from penstock.providers.simulator.instances import break_schema, check_schema, make_instance
from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.tokens import count_tokens, cut_to_tokens
from penstock.schemas import Usage

MAX_INPUTS = 2048


class ChatEndpoint(ModelEndpoint[ChatRequest]):
    """POST /v1/chat/completions."""

    kind: Literal["chat", "embedding"] = "chat"
    body = ChatRequest

    def demand(self, call: Call, body: ChatRequest, model: ModelConfig) -> Demand:
        """Bring the prompt and the most tokens that the answer may have; 0 where the client does not say."""
        most = body.limit or 0
        if most > model.max_output:
            message = f"max_tokens is too large: this model gives at most {model.max_output} completion tokens."
            raise Refusal(400, message, code="invalid_value", param="max_tokens")
        _check_context(body.prompt_tokens, most, model, "messages")
        if body.response_format.json_schema:
            check_schema(body.response_format.json_schema.json_schema)
        return Demand(body.prompt_tokens, most, self._cached_tokens(call, body, remember=False))

    async def work(self, call: Call, body: ChatRequest, model: ModelConfig, fault: Fault | None) -> Done:
        """Summarise the document of the last user message, in the form that was asked for."""
        cached = self._cached_tokens(call, body, remember=True)  # before anything is awaited: as at admission
        question = _last_of_user(body)
        summary = await self.state.summariser.summary(find_document(question))
        text = _say(body, cite(question, summary))
        said = cut_to_tokens(text, body.limit or min(model.max_output, model.context_window - body.prompt_tokens))
        usage = Usage(
            input_tokens=body.prompt_tokens - cached, cached_input_tokens=cached, output_tokens=count_tokens(said)
        )
        completion = Completion(
            id=f"chatcmpl-{uuid4().hex}",
            created=int(self.state.clock.now().timestamp()),
            model=call.model,
            content=_break(body, fault) if fault and fault.name == "wrong_schema" else said,
            finish_reason="stop" if said == text else "length",
            usage=usage,
            has_choice=not (fault and fault.name == "empty_choices"),
        )
        return Done(usage, self._wait_ms(body, model, usage, fault), _deliver(call, body, model, completion))

    def _cached_tokens(self, call: Call, body: ChatRequest, *, remember: bool) -> int:
        messages = [(message.role, message.text) for message in body.messages]
        return self.state.prompt_cache.cached_tokens(call.account, call.model, messages, remember=remember)

    def _wait_ms(self, body: ChatRequest, model: ModelConfig, usage: Usage, fault: Fault | None) -> float:
        first_ms = model.latency.first_token_ms(self.state.latencies)
        rest_ms = 0.0 if body.stream else model.latency.ms_per_output_token * usage.output_tokens
        return first_ms + rest_ms + _extra_ms(fault)


class EmbeddingEndpoint(ModelEndpoint[EmbeddingRequest]):
    """POST /v1/embeddings."""

    kind: Literal["chat", "embedding"] = "embedding"
    body = EmbeddingRequest

    def demand(self, call: Call, body: EmbeddingRequest, model: ModelConfig) -> Demand:  # noqa: ARG002 - as for chat
        """Bring the tokens of all inputs."""
        if len(body.texts) > MAX_INPUTS:
            raise Refusal(400, f"Invalid 'input': at most {MAX_INPUTS} texts.", code="invalid_value", param="input")
        for text in body.texts:
            _check_context(count_tokens(text), 0, model, "input")
        return Demand(sum(map(count_tokens, body.texts)))

    async def work(self, call: Call, body: EmbeddingRequest, model: ModelConfig, fault: Fault | None) -> Done:
        """Embed every input."""
        encode = encode_vector if body.encoding_format == "base64" else list
        vectors = [None if fault and fault.name == "wrong_schema" else encode(embed(text)) for text in body.texts]
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        tokens = sum(map(count_tokens, body.texts))
        content = {
            "object": "list",
            "model": call.model,
            "data": [] if fault and fault.name == "empty_choices" else data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        wait_ms = model.latency.first_token_ms(self.state.latencies) + _extra_ms(fault)
        return Done(Usage(input_tokens=tokens), wait_ms, Answer.json(content, headers=call.answer_headers()))


def _check_context(prompt_tokens: int, most: int, model: ModelConfig, param: str) -> None:
    if prompt_tokens + most > model.context_window or (most == 0 and prompt_tokens == model.context_window):
        message = (
            f"This model's maximum context length is {model.context_window} tokens. However, you requested "
            f"{prompt_tokens + most} tokens ({prompt_tokens} in the {param}, {most} in the completion)."
        )
        raise Refusal(400, message, code="context_length_exceeded", param=param)


def _last_of_user(body: ChatRequest) -> str:
    texts = [message.text for message in body.messages if message.role == "user"]
    return texts[-1] if texts else body.messages[-1].text


def _say(body: ChatRequest, summary: str) -> str:
    if body.response_format.json_schema:
        made = make_instance(body.response_format.json_schema.json_schema, summary)
        return json.dumps(made, ensure_ascii=False)
    if body.response_format.type == "json_object":
        return json.dumps({"summary": summary}, ensure_ascii=False)
    return summary


def _break(body: ChatRequest, fault: Fault) -> str | None:
    schema = body.response_format.json_schema
    mode = fault.mode or ("json" if schema else "null")
    if mode == "null":
        return None
    return json.dumps(break_schema(schema.json_schema) if schema else {"unexpected": True})


def _deliver(call: Call, body: ChatRequest, model: ModelConfig, completion: Completion) -> Answer:
    if not body.stream:
        return completion.whole(call.answer_headers())
    return completion.streamed(
        call.answer_headers(),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        ms_per_token=model.latency.ms_per_output_token,
    )


def _extra_ms(fault: Fault | None) -> float:
    return fault.extra_ms if fault and fault.name == "latency" else 0.0
