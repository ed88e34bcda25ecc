"""`python -m stillhouse` is the command line."""

from stillhouse.cli import main

main()
