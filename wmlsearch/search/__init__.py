"""The hyperparameter search: the only folder with Ray, and with Optuna's samplers."""
