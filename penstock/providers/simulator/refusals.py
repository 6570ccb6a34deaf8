"""A request that is answered with an error, in OpenAI's form. It must not know how an answer is delivered."""

from dataclasses import dataclass, field

from penstock.providers.simulator.delivery import Answer


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 - the field's word: the request is refused, the simulator is well
    """One error answer: `message` never repeats text of the request."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def answer(self, headers: dict[str, str]) -> Answer:
        """Give OpenAI's error object as an answer, with `headers` beside its own."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return Answer.json({"error": error}, status=self.status, headers={**headers, **self.headers})
