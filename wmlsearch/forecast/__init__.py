"""What a search will cost, and how that compares with what it cost."""

import wmlsearch.cluster  # noqa: F401 - sets the environment that Ray reads when it is imported
