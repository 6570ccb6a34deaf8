"""Connections to the Redis of the gates. It must not know any key."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

ANSWER_TIMEOUT_S = 1.0
"""A Redis that does not answer by then is away: a job must not wait for it in its slot."""
CONNECTION_TIMEOUT_S = 10.0
"""Whoever waits so long for a connection waits for this process, which is busy, and not for Redis."""

CONNECTIONS = 16
"""Of one process: as many scripts run at once."""

CONNECTION: dict[str, Any] = {
    "socket_timeout": ANSWER_TIMEOUT_S,
    "socket_connect_timeout": ANSWER_TIMEOUT_S,
    "decode_responses": True,
}


def async_redis(url: str, *, connections: int = CONNECTIONS) -> "AsyncRedis":
    """Make the client of a worker's loop; who finds every connection in use waits for one."""
    from redis.asyncio import BlockingConnectionPool, Redis

    pool = BlockingConnectionPool.from_url(
        url, max_connections=connections, timeout=CONNECTION_TIMEOUT_S, retry=_once(asynchronous=True), **CONNECTION
    )
    return Redis.from_pool(pool)


def sync_redis(url: str, *, connections: int = 2) -> "Redis":
    """Make the client of a process without a loop: the feeder, a producer that asks why a job waits."""
    from redis import BlockingConnectionPool, Redis

    pool = BlockingConnectionPool.from_url(
        url, max_connections=connections, timeout=CONNECTION_TIMEOUT_S, retry=_once(asynchronous=False), **CONNECTION
    )
    return Redis.from_pool(pool)


def _once(*, asynchronous: bool) -> Any:
    """Try a command once again, over a new connection: who asks knows what to do when Redis is away."""
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return AsyncRetry(NoBackoff(), 1) if asynchronous else Retry(NoBackoff(), 1)
