"""Sphinx configuration of the documentation; `make docs` builds it into docs/_build/html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "wmlsearch"
author = "the wmlsearch authors"
copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "config_reference"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other packages in the signatures of the Python reference
default_role = "code"  # of `words` in the help of commands
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the changelog and the benchmarks are included below a heading of their page

nb_execution_mode = "off"  # the tests run the notebooks; the pages show the outputs that are stored in them
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True

html_theme = "furo"
html_title = "wmlsearch"
html_copy_source = False
html_show_sourcelink = False
smartquotes = False  # it would make dashes of the hyphens of options
