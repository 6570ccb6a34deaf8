"""Documents of exactly so many tokens, cut from the samples, always the same ones. It must not know who is sent them.

A token is four bytes here, as the simulator counts. There are a few variants of each size: each is summarised once by
the simulator, which then remembers it, so that its work is no part of what is measured.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from penstock.prompts import Prompt, PromptLibrary
from penstock.schemas import Message

PROMPT = "bench_summary"
PROMPTS = Path(__file__).parent / "prompts"
SAMPLES = Path(__file__).parent.parent.parent / "samples"
VARIANTS = 4
BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
STEP = 9973


@dataclass(frozen=True)
class Document:
    """Which text: its tokens, and which of the variants of that size."""

    tokens: int
    variant: int

    @property
    def text(self) -> str:
        """Give the text: words of the samples from some place on, of `tokens` tokens to the byte."""
        source = _source()
        start = (self.tokens + self.variant) * STEP % len(source)
        size = self.tokens * BYTES_PER_TOKEN
        repeated = source[start:] + source * (1 + size // len(source))
        return repeated[:size].strip().ljust(size, ".")


@cache
def prompt() -> Prompt:
    """Read the prompt by which all of them are asked."""
    return PromptLibrary.load(PROMPTS).find(PROMPT)


@cache
def messages(document: Document) -> tuple[Message, ...]:
    """Give what is sent for a document, which every peer sends alike."""
    return prompt().render({}, document.text).messages


@cache
def prompt_tokens(document: Document) -> int:
    """Count the tokens of the whole call, as the simulator does."""
    sizes = [len(message.content.encode()) for message in messages(document)]
    return sum(-(-size // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE for size in sizes)


@cache
def _source() -> str:
    paths = sorted(path for path in SAMPLES.iterdir() if path.suffix in {".txt", ".md"} and path.stem != "README")
    whole = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in paths)
    return whole.encode("ascii", "ignore").decode()
