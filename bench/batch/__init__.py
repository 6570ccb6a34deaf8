"""A night batch: forecast, killed, resumed, capped, poisoned, beside a person who waits, and once more from the cache.

Only what `python -m bench batch` runs stands in these files.
"""
