"""Whether one answer may serve two instructions: right and false hits, by distance and with guards, over 266 pairs.

See docs/semantic-cache.md for what the figures are used for.
"""
