"""Optuna's samplers with the options that a search uses."""

from __future__ import annotations

import warnings
from typing import Any

import optuna

from wmlsearch.search.samplers.forest import STARTUP_TRIALS


def make_sampler(kind: str, seed: int, study_seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler for one trial, with all options that depend on Optuna's version pinned.

    tpe: multivariate within each branch of the conditions, and aware of running trials. qmc: the next point of one
    scrambled sequence, which `study_seed` gives. gp, cmaes and qmc draw conditional dimensions at random, and cmaes
    also choices.

    Args:
        kind: A value of `RunSettings.sampler`, but not `forest`.
        seed: The seed of this trial. All randomness but that of qmc's sequence comes from it.
        study_seed: The seed of the search.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        random = optuna.samplers.RandomSampler(seed=seed)
        if kind == "random":
            return random
        if kind in ("gp", "cmaes"):
            model: Any = optuna.samplers.GPSampler if kind == "gp" else optuna.samplers.CmaEsSampler
            return model(
                seed=seed,
                independent_sampler=random,
                n_startup_trials=STARTUP_TRIALS,
                warn_independent_sampling=False,
            )
        if kind == "qmc":
            return optuna.samplers.QMCSampler(
                scramble=True, seed=study_seed, independent_sampler=random, warn_independent_sampling=False
            )
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )
