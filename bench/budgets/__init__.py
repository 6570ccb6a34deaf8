"""Budgets under load: what sixteen processes overspend, and how many calls a second are held and settled.

Everything is the product's own, down to the Journal of a worker; only the provider between the two steps is left out.
"""
