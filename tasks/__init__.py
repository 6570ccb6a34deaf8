"""Which work exists: Celery tasks with thin bodies. It must not know who runs them, or on what pool."""
