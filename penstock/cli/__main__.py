"""`python -m penstock.cli`. It must not know more than where the command begins."""

from penstock.cli import main

main()
