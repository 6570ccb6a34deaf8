"""What a call uses up of each quota, under each rule. It must not know what is left."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Resource = Literal["requests", "tokens", "input_tokens", "output_tokens"]
Rule = Literal["max(prompt, max_tokens)", "prompt + max_tokens", "input, output"]


@dataclass(frozen=True, slots=True)
class Charge:
    """What was taken, and at which monotonic time."""

    at_s: float
    amounts: Mapping[Resource, int]


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request brings, in tokens: `cached` are those of the prompt that were seen before."""

    prompt: int
    max_tokens: int = 0
    cached: int = 0

    def amounts(self, rule: Rule) -> Mapping[Resource, int]:
        """Give what admission takes; output that is charged as produced is not known yet."""
        match rule:
            case "max(prompt, max_tokens)":
                return {"requests": 1, "tokens": max(self.prompt, self.max_tokens)}
            case "prompt + max_tokens":
                return {"requests": 1, "tokens": self.prompt + self.max_tokens}
            case "input, output":
                return {"requests": 1, "input_tokens": self.prompt - self.cached, "output_tokens": 0}
