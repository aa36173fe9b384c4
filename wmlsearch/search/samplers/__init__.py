"""Samplers of our own, beside those of Optuna."""
