"""The Celery app of the workers: `celery -A workers.app`. It must not know what a task does."""

from penstock.client.broker import make_app
from penstock.settings import default_settings
from workers.reconnection import RedisReconnection

settings = default_settings()

app = make_app(
    settings.require_broker_url(),
    task_cls="workers.coroutine_task:CoroutineTask",
    include=["tasks.attempts", "tasks.intake"],
)
app.set_default()
app.steps["consumer"].add(RedisReconnection)
app.conf.penstock_drain_timeout_s = settings.drain_timeout_s
