"""Many requests as one piece of work. It must not know how a single one is answered."""
