"""`python -m wmlsearch`."""

from wmlsearch.cli import main

main(prog_name="wmlsearch")
