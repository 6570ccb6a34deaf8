"""The simulator as an ASGI app: which path leads where. It must not know what happens there."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.clock import Clock
from penstock.providers.simulator.batch_endpoints import BatchEndpoints, Faulty
from penstock.providers.simulator.config import SimulatorConfig
from penstock.providers.simulator.control import Control, Handler
from penstock.providers.simulator.models import ChatEndpoint, EmbeddingEndpoint
from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.state import State
from penstock.providers.simulator.uploads import FileEndpoints


def create_app(config: SimulatorConfig, clock: Clock) -> Starlette:
    """Make a simulator with a state of its own. Faults need a server that lends its transport: see server.py."""
    state = State(config, clock)
    control = Control(state)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", ChatEndpoint(state), methods=["POST"]),
            Route("/v1/embeddings", EmbeddingEndpoint(state), methods=["POST"]),
            Route("/v1/models", _endpoint(control.models), methods=["GET"]),
            *_batch_routes(state),
            Route("/invoice", _endpoint(control.invoice), methods=["GET"]),
            Route("/stats", _endpoint(control.stats), methods=["GET"]),
            Route("/accepted", _endpoint(control.accepted), methods=["GET"]),
            Route("/health", _endpoint(control.health), methods=["GET"]),
            Route("/reset", _endpoint(control.reset), methods=["POST"]),
            Route("/limits", _endpoint(control.post_limits), methods=["POST"]),
            Route("/batch-pace", _endpoint(control.post_batch_pace), methods=["POST"]),
            Route("/faults", _endpoint(control.post_faults), methods=["POST"]),
            Route("/faults", _endpoint(control.list_faults), methods=["GET"]),
            Route("/faults", _endpoint(control.clear_faults), methods=["DELETE"]),
        ]
    )


def _batch_routes(state: State) -> list[Route]:
    """Give the routes of files and batches, each with the name by which a fault can strike it alone."""
    files, batches = FileEndpoints(state), BatchEndpoints(state)
    operations: list[tuple[str, str, str, Handler]] = [
        ("POST", "/v1/files", "files.create", files.create),
        ("GET", "/v1/files", "files.list", files.list),
        ("GET", "/v1/files/{id}", "files.retrieve", files.retrieve),
        ("GET", "/v1/files/{id}/content", "files.content", files.content),
        ("DELETE", "/v1/files/{id}", "files.delete", files.delete),
        ("POST", "/v1/batches", "batches.create", batches.create),
        ("GET", "/v1/batches", "batches.list", batches.list),
        ("GET", "/v1/batches/{id}", "batches.retrieve", batches.retrieve),
        ("POST", "/v1/batches/{id}/cancel", "batches.cancel", batches.cancel),
    ]
    return [
        Route(path, _endpoint(Faulty(state, operation, handler)), methods=[method])
        for method, path, operation, handler in operations
    ]


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
