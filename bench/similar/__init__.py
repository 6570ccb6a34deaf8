"""Whether one answer may serve two instructions: right and false hits, by distance and with guards, over 269 pairs.

See docs/semantic-cache.md for what the figures are used for.
"""
