"""Bodies that are `async def` give their results off the pool too. It must not know the pool."""

import asyncio
from typing import Any

import pytest
from celery import Celery

from workers.coroutine_task import CoroutineTask, wait

app = Celery("coroutines", task_cls=CoroutineTask, set_as_current=False)


@app.task(bind=True, name="tell")
async def tell(self: Any, word: str) -> tuple[str, bool]:
    """Give the argument and whether this is a direct call."""
    await asyncio.sleep(0)
    return word, self.request.called_directly


@app.task(name="fail_once", bind=True, autoretry_for=(OSError,), retry_kwargs={"countdown": 0})
async def fail_once(self: Any) -> int:
    """Fail at the first attempt."""
    if self.request.retries == 0:
        raise OSError("not yet")
    return int(self.request.retries)


@app.task(name="plain")
def plain(word: str) -> str:
    """Have no coroutine at all."""
    return word


def test_direct_call_gives_the_result_of_the_coroutine() -> None:
    assert tell("directly") == ("directly", True)


def test_eager_call_gives_the_result_and_has_its_request() -> None:
    assert tell.apply(("eagerly",)).get() == ("eagerly", False)


def test_autoretry_sees_what_the_coroutine_raises() -> None:
    assert fail_once.apply().get() == 1


def test_plain_body_stays_as_it_is() -> None:
    assert plain("as it is") == "as it is"


def test_future_can_be_waited_for() -> None:
    async def outer() -> int:
        future = asyncio.get_running_loop().create_future()
        future.set_result(7)
        return int(await future)

    assert wait(outer()) == 7


def test_waiting_on_a_running_loop_is_refused() -> None:
    async def outer() -> None:
        tell("on the loop")

    with pytest.raises(RuntimeError, match="running event loop"):
        asyncio.run(outer())
