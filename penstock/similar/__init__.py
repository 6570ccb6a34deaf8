"""The semantic tier of the cache: an answer given again to an instruction that means the same. It must not know a job.

Only a tenant that asked for it has it, only the variable that a prompt marks as the user's instruction may differ, and
only where the guards of `penstock.similarity` and a small distance of embeddings agree. See docs/semantic-cache.md.
"""
