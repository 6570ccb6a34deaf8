"""Everything dies by chance while jobs are under way: nothing is lost, bought twice or overspent, beside plain Celery.

What was accepted is written down by whoever submitted it; what was bought is read from the provider's own invoice.
"""
