"""Search spaces: the values and ranges of hyperparameters, as a hyperparameter file gives them."""

from wmlsearch.space.configurations import different_configurations, vain_values
from wmlsearch.space.domains import Choices, Dimension, Range, Value, describe
from wmlsearch.space.search_space import SearchSpace, is_shipped
from wmlsearch.space.shipped_files import shipped, space_file

__all__ = [
    "Choices",
    "Dimension",
    "Range",
    "SearchSpace",
    "Value",
    "describe",
    "different_configurations",
    "is_shipped",
    "shipped",
    "space_file",
    "vain_values",
]
