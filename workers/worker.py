"""Starts one worker process: the pool of a tier, or upkeep. It must not know how either works.

python -m workers.worker small
python -m workers.worker upkeep
"""

import argparse
import os
import socket
from functools import partial

os.environ["CELERY_CUSTOM_WORKER_POOL"] = "workers.pool:AsyncioPool"

from celery import signals
from celery.worker.consumer import consumer

from penstock import telemetry
from penstock.client.broker import DEAD_LETTER_QUEUE, INTAKE_QUEUE, tier_queues
from penstock.house import House, build_house
from penstock.routing import Catalogue
from workers import lifecycle, upkeep
from workers.app import app, settings

UPKEEP = "upkeep"
UPKEEP_CONCURRENCY = 8


def main() -> None:
    """Run until SIGTERM (drains) or SIGQUIT (does not)."""
    tiers = {tier.name: tier for tier in Catalogue.load_tiers(settings.config).tiers}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=[*tiers, UPKEEP])
    parser.add_argument("--concurrency", type=int, help="jobs in flight; the tier's own if not given")
    parser.add_argument("--name", help="the worker's name in Flower, before the host's")
    arguments = parser.parse_args()
    signals.setup_logging.connect(_configure_logging)
    if arguments.role == UPKEEP:
        upkeep.attach(app, settings)
        queues, concurrency = [INTAKE_QUEUE, DEAD_LETTER_QUEUE], UPKEEP_CONCURRENCY
    else:
        lifecycle.furnish(app, partial(_build, arguments.role))
        queues, concurrency = tier_queues(arguments.role), tiers[arguments.role].concurrency
    # Celery logs the body and the headers of a message that it does not know, and both may hold somebody's document.
    consumer.dump_body = lambda message, _body: f"{len(message.body)} bytes"
    consumer.UNKNOWN_TASK_ERROR = "a message for a task that there is not: %.64s%.0s%.0s%.0s"
    consumer.MESSAGE_DECODE_ERROR = "a message that cannot be decoded: %.0s[%.64s, %.64s]%.0s %s"
    worker = app.Worker(
        hostname=f"{arguments.name or arguments.role}@{socket.gethostname()}",
        pool="custom",
        queues=queues,
        concurrency=arguments.concurrency or concurrency,
        without_mingle=True,
        without_gossip=True,
    )
    worker.start()
    raise SystemExit(worker.exitcode)


def _configure_logging(**_: object) -> None:
    telemetry.configure_logging(settings.log_level, settings.log_format)


def _build(tier: str, worker: str) -> House:
    from penstock.providers.litellm import LiteLLMProvider

    return build_house(settings, LiteLLMProvider(), worker, tier)


if __name__ == "__main__":
    main()
