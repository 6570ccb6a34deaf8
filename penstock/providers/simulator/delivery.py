"""How bytes reach a client, or do not. It must not know what they mean.

A server lends its transport as `scope["state"]["transport"]` (see server.py): ASGI itself has no way to close.
"""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from starlette.types import Receive, Scope, Send

LINGER_ZERO = struct.pack("ii", 1, 0)


class Delivery(Protocol):
    """Something an ASGI server can be given in place of a response; `status` is None when no status line goes out."""

    @property
    def status(self) -> int | None:
        """Give the HTTP status that the client will see."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Deliver it."""
        ...


@dataclass(frozen=True)
class Answer:
    """An HTTP answer in pieces, `pause_ms` apart. A `truncated` one ends with the connection, not with its body."""

    status: int
    headers: dict[str, str]
    pieces: tuple[bytes, ...]
    pause_ms: float = 0.0
    truncated: bool = False

    @classmethod
    def json(cls, content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Self:
        """Make an answer of one JSON body."""
        return cls.whole(json.dumps(content).encode(), "application/json", status=status, headers=headers)

    @classmethod
    def whole(cls, body: bytes, media: str, *, status: int = 200, headers: dict[str, str] | None = None) -> Self:
        """Make an answer of one body with its length declared."""
        own = {"content-type": media, "content-length": str(len(body))}
        return cls(status, {**own, **(headers or {})}, (body,))

    def cut(self) -> Self:
        """Keep the first half of the body, and the headers as they are."""
        body = b"".join(self.pieces)
        return replace(self, pieces=(body[: len(body) // 2],), truncated=True)

    def dripped(self, interval_ms: float) -> Self:
        """Send one byte at a time, `interval_ms` milliseconds apart."""
        body = b"".join(self.pieces)
        return replace(self, pieces=tuple(bytes([byte]) for byte in body), pause_ms=interval_ms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces until the client goes."""
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for number, piece in enumerate(self.pieces, 1):
            if _transport(scope).is_closing():
                return
            more = self.truncated or number < len(self.pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            if more and self.pause_ms:
                await asyncio.sleep(self.pause_ms / 1000)
        if self.truncated:
            await Closed()(scope, receive, send)


@dataclass(frozen=True)
class Closed:
    """The connection ends here: in order (FIN), or by a TCP reset."""

    reset: bool = False
    status: None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Close, and wait until the server has seen it: it would send a 500 otherwise."""
        transport = _transport(scope)
        if self.reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            transport.abort()
        else:
            transport.close()
        await _client_gone(receive)


@dataclass(frozen=True)
class Hung:
    """Nothing happens until the client goes, or for `hold_s` seconds; then the connection is closed."""

    hold_s: float | None = None
    status: None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the connection."""
        try:
            async with asyncio.timeout(self.hold_s):
                await _client_gone(receive)
        except TimeoutError:
            await Closed()(scope, receive, send)


def _transport(scope: Scope) -> Any:
    return scope["state"]["transport"]


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
