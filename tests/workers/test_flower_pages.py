"""The page of batches in Flower, asked for over HTTP: it shows them, escapes them, and asks who looks."""

import asyncio
from base64 import b64encode
from collections.abc import Iterator

import pytest
import redis
from celery import Celery
from flower import urls
from flower.app import Flower
from flower.options import default_options
from flower.urls import handlers
from flower.urls import settings as flower_settings
from sqlalchemy import Engine
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.template import DictLoader
from tornado.testing import bind_unused_port

from penstock.client import Client
from penstock.client.doorbell import Doorbell
from penstock.jobs.execution import Outcome
from penstock.jobs.queries import Filter
from penstock.reasons import Reason
from penstock.schemas import JobState
from penstock.settings import Settings, default_settings
from tests.batches.conftest import REQUEST, documents
from tests.batches.runs import end, run_some, succeed
from tests.jobs import rows
from workers import flower_pages
from workers.upkeep import tend

HOSTILE = """<script>alert("it's")</script>{{ 7 * 7 }}"""
ESCAPED = "&lt;script&gt;alert(&quot;it&#x27;s&quot;)&lt;/script&gt;{{ 7 * 7 }}"


@pytest.fixture
def client(
    settings: Settings, engine: Engine, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """Give a client beside Flower, on empty services."""
    assert settings.database_url is not None
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setattr(flower_pages, "look", flower_pages.Look())
    default_settings.cache_clear()
    with Client(settings) as client:
        yield client
    flower_pages.look.engine.dispose()
    default_settings.cache_clear()


@pytest.fixture(autouse=True)
def flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Flower show the pages while a test runs."""
    routes, options = list(handlers), dict(flower_settings)
    monkeypatch.setattr("flower.app.default_handlers", routes)
    monkeypatch.setattr("flower.urls.settings", options)
    monkeypatch.setattr(flower_pages, "handlers", routes)
    monkeypatch.setattr(flower_pages, "settings", options)
    flower_pages.add()


@pytest.fixture
def password() -> Iterator[str]:
    """Have Flower ask for a password."""
    default_options.basic_auth = ["user:password"]
    yield "Basic " + b64encode(b"user:password").decode()
    default_options.basic_auth = []


def ask(path: str, **headers: str) -> HTTPResponse:
    """Ask Flower for a page."""

    async def asked() -> HTTPResponse:
        app = Flower(capp=Celery(broker="memory://"), io_loop=IOLoop.current(), **urls.settings)
        server = HTTPServer(app)
        socket, port = bind_unused_port()
        server.add_sockets([socket])
        try:
            return await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}{path}", headers=headers, raise_error=False)
        finally:
            server.stop()
            await server.close_all_connections()
            app.executor.shutdown()

    return asyncio.run(asked())


def page(**headers: str) -> str:
    """Give the page of batches."""
    answer = ask("/batches", **headers)
    assert answer.code == 200
    return answer.body.decode()


def test_flowers_own_templates_are_kept_and_its_bar_has_the_link() -> None:
    found = flower_pages.templates()
    assert "reverse_url('batches')" in found["navbar.html"]
    own = DictLoader(found)
    assert [own.load(name).name for name in ("tasks.html", "batches.html")] == ["tasks.html", "batches.html"]


def test_another_bar_than_is_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_pages, "END_OF_LINKS", "</no such list>")
    with pytest.raises(LookupError, match=r"Flower's navbar\.html has changed"):
        flower_pages.templates()


def test_without_a_batch_the_page_says_so(client: Client) -> None:
    assert client.batches() == []
    shown = page()
    assert "No batch was begun" in shown
    assert '<a class="nav-link active"\nhref="/batches">Batches</a>' in shown


def test_how_far_a_batch_is(client: Client, engine: Engine) -> None:
    items = documents(5)
    items[4] = {"document": ""}
    client.batch("night", REQUEST, items, max_cost=10**9)
    succeed(engine, run_some(engine, 1))
    cells = [cell.strip() for cell in page().split("<tbody>")[1].replace("</td>", "<td>").split("<td>")]
    shown = [cell for cell in cells if cell and not cell.startswith("<")]
    assert shown[:2] == ["acme", "night"]
    assert "1 of 4" in page()
    assert shown[2:6] == ["3", "0", "0", "1"]
    assert shown[-2:] == ["$0.00", "$1.00"]


def test_what_ended_long_ago_is_read_once_and_anew_when_it_goes_on(client: Client, engine: Engine) -> None:
    client.batch("night", REQUEST, documents(2))
    end(engine, run_some(engine, 2), Outcome.DEAD, reason=Reason.BAD_REQUEST)
    tend(engine, Doorbell(""))
    look = flower_pages.Look()
    rows.execute(engine, "UPDATE batches SET ended_at = now() - interval '2 hours'")
    assert look.batches()[0].jobs == {JobState.DEAD: 2}
    rows.execute(engine, "UPDATE jobs SET state = 'cancelled' WHERE batch_number = 1")
    assert look.batches()[0].jobs == {JobState.DEAD: 2}
    client.replay([job.id for job in client.find(Filter())])
    assert look.batches()[0].jobs == {JobState.CANCELLED: 1, JobState.QUEUED: 1}
    look.engine.dispose()


def test_what_a_batch_is_called_is_text(client: Client, engine: Engine) -> None:
    client.batch(HOSTILE, REQUEST, documents(1))
    rows.execute(engine, "UPDATE batches SET state = 'stopped', reason = :reason", reason=HOSTILE)
    shown = page()
    assert HOSTILE not in shown
    assert f"<td>{ESCAPED}</td>" in shown
    assert f'<td title="{ESCAPED}">stopped</td>' in shown


def test_nobody_looks_without_the_password(client: Client, password: str) -> None:
    client.batch("night", REQUEST, documents(1))
    for headers in ({}, {"Authorization": "Basic " + b64encode(b"user:no").decode()}):
        answer = ask("/batches", **headers)
        assert (answer.code, answer.body) == (401, b"Access denied")
    assert "engine" not in vars(flower_pages.look)  # nobody looked
    assert "night" in page(Authorization=password)
