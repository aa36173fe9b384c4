"""wmlsearch: distributed hyperparameter search for white matter lesion segmentation."""

__version__ = "0.2.0"
