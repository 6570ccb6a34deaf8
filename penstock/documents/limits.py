"""How much one document may ask of us. It must not know what enforces it."""

from dataclasses import dataclass

_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of one document: its bytes, pages and characters, and the seconds and bytes that its parser may take.

    `memory_bytes` counts on top of what the parser's own code takes; it is enforced on Linux only.
    """

    max_bytes: int = 25 * _MEBIBYTE
    max_pages: int = 3_000
    max_characters: int = 5_000_000
    timeout_s: float = 30.0
    memory_bytes: int = 1024 * _MEBIBYTE

    @property
    def max_unpacked_bytes(self) -> int:
        """Give how large the parts of an archive may be together: real files, mostly images, stay far below this."""
        return 10 * self.max_bytes


DEFAULT_LIMITS = Limits()
