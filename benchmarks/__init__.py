"""Timings as ratios against a reference that is measured in the same run."""

import wmlsearch.search  # noqa: F401 - sets Ray's environment before any of these modules imports Ray
