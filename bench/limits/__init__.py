"""The provider's quota: used to the last token, never exceeded, shared fairly, beside two peers under the same load.

Everything is measured from the provider's side: what came, when, how it was answered, and what it will be paid for.
"""
