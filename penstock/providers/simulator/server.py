"""The simulator on a socket. It must not know what is served there."""

import asyncio
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from penstock.clock import Clock, SystemClock
from penstock.providers.simulator.app import create_app
from penstock.providers.simulator.config import SimulatorConfig

BACKLOG = 4096
GRACE_S = 2

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as HTTPProtocol
else:
    HTTPProtocol = AutoHTTPProtocol


class LendingProtocol(HTTPProtocol):
    """Uvicorn's HTTP protocol, lending its transport to the app, so that a fault can close a connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Put the transport into every scope of this connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class AnnouncingServer(uvicorn.Server):
    """A uvicorn server that says when it accepts requests."""

    def __init__(self, app: ASGIApp, announce: Callable[[], None]) -> None:
        """Take the app, and what to call once when it is served."""
        super().__init__(
            uvicorn.Config(
                app,
                http=LendingProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self.announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so."""
        await super().startup(sockets)
        self.announce()


def serve(
    config: SimulatorConfig, host: str, port: int, *, announce: Callable[[str], Any], clock: Clock | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; `announce` is called with the base URL when the server is ready.

    Port 0 chooses a free one. Raises OSError when the address is taken.
    """
    with _listen(host, port) as listener:
        url = _url(listener)
        AnnouncingServer(create_app(config, clock or SystemClock()), lambda: announce(url)).run([listener])


@contextmanager
def running(config: SimulatorConfig, *, clock: Clock | None = None) -> Generator[str, None, None]:
    """Serve from a thread on a free port of 127.0.0.1 while the context is open; give the base URL."""
    ready = threading.Event()
    with _listen("127.0.0.1", 0) as listener:
        server = AnnouncingServer(create_app(config, clock or SystemClock()), ready.set)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        ready.wait()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets whose protocol is named: without it answers wait 40 ms for an ACK
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
