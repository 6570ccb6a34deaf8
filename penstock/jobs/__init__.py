"""The life of a job, as statements on its row. It must not know the broker, a provider, or who calls.

Every function takes a `Connection` inside the caller's transaction. Each step is one conditional statement: what a
later run has taken over cannot be changed by an earlier one.
"""
