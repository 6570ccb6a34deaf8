"""The simulator, noting when each call came and how it was answered. It must not know who calls.

`python -m bench.limits.simulator CONFIG` prints its address and serves until SIGTERM. `GET /arrivals` gives rows of
monotonic seconds, the client's own id of the request, and the status of the answer, or null before it.
"""

import json
import socket
import sys
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.clock import SystemClock
from penstock.providers.simulator.app import create_app
from penstock.providers.simulator.config import load_config
from penstock.providers.simulator.server import AnnouncingServer

BACKLOG = 1024


class Arrivals:
    """Stands before the simulator's app and passes everything on."""

    def __init__(self, app: ASGIApp) -> None:
        """Start with none."""
        self._app = app
        self._clock = SystemClock()
        self._rows: list[list[float | str | int | None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note a call to a model; answer for `/arrivals`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == "/arrivals":
            await Response(json.dumps(self._rows), media_type="application/json")(scope, receive, send)
        elif scope["path"].startswith("/v1/"):
            await self._note(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _note(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = Headers(scope=scope).get("x-client-request-id", "")
        row: list[float | str | int | None] = [self._clock.monotonic_s(), request_id, None]
        self._rows.append(row)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                row[2] = message["status"]
            await send(message)

        await self._app(scope, receive, noting)


def main() -> None:
    """Serve on a free port of the loopback address."""
    app = Arrivals(create_app(load_config(Path(sys.argv[1])), SystemClock()))
    # The protocol is named, or asyncio leaves Nagle's algorithm on.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        AnnouncingServer(app, lambda: print(url, flush=True)).run([listener])


if __name__ == "__main__":
    main()
