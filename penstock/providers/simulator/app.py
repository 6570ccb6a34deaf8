"""The simulator as an ASGI app: which path leads where. It must not know what happens there."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.clock import Clock
from penstock.providers.simulator.config import SimulatorConfig
from penstock.providers.simulator.control import Control, Handler
from penstock.providers.simulator.models import ChatEndpoint, EmbeddingEndpoint
from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.state import State


def create_app(config: SimulatorConfig, clock: Clock) -> Starlette:
    """Make a simulator with a state of its own. Faults need a server that lends its transport: see server.py."""
    state = State(config, clock)
    control = Control(state)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", ChatEndpoint(state), methods=["POST"]),
            Route("/v1/embeddings", EmbeddingEndpoint(state), methods=["POST"]),
            Route("/v1/models", _endpoint(control.models), methods=["GET"]),
            Route("/invoice", _endpoint(control.invoice), methods=["GET"]),
            Route("/stats", _endpoint(control.stats), methods=["GET"]),
            Route("/accepted", _endpoint(control.accepted), methods=["GET"]),
            Route("/health", _endpoint(control.health), methods=["GET"]),
            Route("/reset", _endpoint(control.reset), methods=["POST"]),
            Route("/limits", _endpoint(control.post_limits), methods=["POST"]),
            Route("/faults", _endpoint(control.post_faults), methods=["POST"]),
            Route("/faults", _endpoint(control.list_faults), methods=["GET"]),
            Route("/faults", _endpoint(control.clear_faults), methods=["DELETE"]),
        ]
    )


class _Endpoint:
    """A handler as an ASGI app: Starlette's own adapter knows only its own responses."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            delivery = await self.handler(Request(scope, receive))
        except Refusal as refusal:
            delivery = refusal.answer({})
        await delivery(scope, receive, send)


def _endpoint(handler: Handler) -> ASGIApp:
    return _Endpoint(handler)
