"""How Celery is set up on both sides of the broker, and how its queues are named. It must not know a job's row."""

from celery import Celery

from penstock.schemas import Lane

INTAKE_QUEUE = "celery"
DEAD_LETTER_QUEUE = "dead_letter"

ATTEMPT_TASK = "penstock.attempt"
DEAD_LETTER_TASK = "penstock.dead_letter"

VISIBILITY_TIMEOUT_S = 300
"""A message that a dead worker held is given to another after this; a job that runs longer is only rung twice."""
RECONNECT_S = 2


def tier_queue(tier: str, lane: Lane, *, is_retry: bool) -> str:
    """Name the queue of a job: retries have one of their own, between the two lanes."""
    return f"{tier}.retry" if is_retry else f"{tier}.{lane.value}"


def tier_queues(tier: str) -> list[str]:
    """Name the queues of a tier in the order in which its pool takes from them."""
    return [
        tier_queue(tier, Lane.INTERACTIVE, is_retry=False),
        tier_queue(tier, Lane.INTERACTIVE, is_retry=True),
        tier_queue(tier, Lane.BATCH, is_retry=False),
    ]


def make_app(broker_url: str, **options: object) -> Celery:
    """Make the Celery app; docs/decisions/celery-settings.md has the reason for each setting."""
    app = Celery("penstock", broker=broker_url, set_as_current=False, **options)
    app.conf.update(
        accept_content=["json"],
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_pool_acquire_timeout=5,
        broker_pool_limit=64,
        broker_transport_options=_transport_options(broker_url),
        enable_utc=True,
        event_queue_expires=60,
        result_backend="penstock.client.result_backend:JobsBackend",
        result_serializer="json",
        task_acks_late=True,
        task_create_missing_queues=True,
        task_default_queue=INTAKE_QUEUE,
        task_ignore_result=True,
        task_send_sent_event=False,
        task_serializer="json",
        task_track_started=True,
        timezone="UTC",
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_disable_prefetch=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
    )
    return app


def _transport_options(broker_url: str) -> dict[str, object]:
    reconnection: dict[str, object] = {
        "interval_start": 0.1,
        "interval_step": 0.2,
        "interval_max": 0.5,
        "connect_retries_timeout": RECONNECT_S,
    }
    if not broker_url.startswith("redis"):
        return reconnection
    return reconnection | {
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "queue_order_strategy": "priority",
        "socket_timeout": 15,
        "socket_connect_timeout": 5,
        "socket_keepalive": not broker_url.startswith("redis+socket"),
        "health_check_interval": 10,
    }
