"""The Celery app that Flower looks through: `celery -A workers.flower flower`. It must not know a result.

A result is a tenant's text, and Flower's API would give it to whoever may look at the queues.
"""

from workers import flower_pages
from workers.app import app

flower_pages.add()
app.conf.result_backend = "disabled://"
