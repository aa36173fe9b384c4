"""The hyperparameter search: Ray Tune and Optuna, trial workers, worker groups, final training runs."""

import wmlsearch.cluster  # noqa: F401 - sets the environment that Ray reads when it is imported
