"""Who does the work: the Celery app, its queues and its pool. It must not be known to `tasks` or `penstock`."""
