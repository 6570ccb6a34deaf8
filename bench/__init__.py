"""What measures the promises; the system must not know it."""
