"""Sphinx configuration of the documentation; `make docs` builds it into docs/_build/html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "wmlsearch"
author = "the wmlsearch authors"
copyright = author

extensions = ["myst_parser", "sphinx_click", "config_reference"]
exclude_patterns = ["_build"]
nitpicky = True
default_role = "code"  # of `words` in the help of commands
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the changelog and the benchmarks are included below a heading of their page

html_theme = "furo"
html_title = "wmlsearch"
html_copy_source = False
html_show_sourcelink = False
smartquotes = False  # it would make dashes of the hyphens of options
