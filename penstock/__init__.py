"""Penstock: everything the system knows about AI requests. It must not know Celery, the client's door excepted."""
