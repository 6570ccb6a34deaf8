"""Whether two instructions ask for the same thing, and whether two answers say the same. It must not know embeddings.

Pure, and on the safe side: what it does not know makes two instructions different.
"""

from penstock.similarity.agreement import agreement
from penstock.similarity.guards import Guard, refusal

__all__ = ["Guard", "agreement", "refusal"]
