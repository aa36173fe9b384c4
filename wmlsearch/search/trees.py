"""Regression trees of forests, fitted without scikit-learn's checks, which take longer than a small tree."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from sklearn import config_context
from sklearn.tree import ExtraTreeRegressor

MAX_FEATURES = 0.8  # share of the features among which the best split of a node is searched


def fit_trees(features: np.ndarray, targets: np.ndarray, seeds: Iterable[int]) -> list[ExtraTreeRegressor]:
    """Return an extremely randomised tree for each seed: as those of scikit-learn's ExtraTreesRegressor, bit for bit.

    Args:
        features: (N, features), without NaN.
        targets: (N,).
        seeds: The seed of each tree.
    """
    x, y = features.astype(np.float32, copy=False), targets[:, None]
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return [
            ExtraTreeRegressor(max_features=MAX_FEATURES, random_state=seed).fit(x, y, check_input=False)
            for seed in seeds
        ]


def predict_by_tree(trees: Iterable[ExtraTreeRegressor], features: np.ndarray) -> np.ndarray:
    """Return the prediction of each tree for each row of `features`, (trees, N)."""
    x = features.astype(np.float32, copy=False)
    return np.stack([tree.tree_.predict(x).reshape(len(x)) for tree in trees])
