"""What a search will cost, and how that compares with what it has used."""

import wmlsearch.cluster  # noqa: F401 - sets the environment that Ray reads when it is imported
