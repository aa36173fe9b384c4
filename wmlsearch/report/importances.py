"""The importance of each hyperparameter in a search, computed by Optuna."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from wmlsearch.config import TrialConfig
from wmlsearch.runs.folders import RunDir
from wmlsearch.runs.leaderboard import Entry, Leaderboard
from wmlsearch.runs.names import natural_key
from wmlsearch.runs.schema import GOOD
from wmlsearch.search.distributions import distribution
from wmlsearch.space import SearchSpace

MIN_TRIALS = 4  # with fewer trials the importance estimate has almost nothing to compare


def importances(board: Leaderboard, space: SearchSpace) -> tuple[dict[str, float], str]:
    """Return the importance of each searched hyperparameter, the largest first; and their basis, or why there are none.

    Optuna's PED-ANOVA (arXiv 2304.10255) measures how much the best tenth of the trials differs from all trials in a
    hyperparameter. It takes conditional hyperparameters (arXiv 2601.20800), is deterministic, and uses only which
    trials are best, so a trial that was stopped early counts with its best epoch so far. Left out are trials without a
    value, children of population based training, which share their parents' values, and configurations outside the
    space, such as the baseline may be.
    """
    entries = [entry for entry in board.trials if entry.value is not None and entry.state in GOOD and not entry.parent]
    inside = [entry for entry in entries if not space.mismatches(_config(entry))]
    if len(inside) < MIN_TRIALS:
        return {}, f"at least {MIN_TRIALS} trials inside the space with a value are needed, but there are {len(inside)}"
    if len({entry.value for entry in inside}) < 2:
        return {}, f"all {len(inside)} trials have the same value"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for entry in sorted(inside, key=lambda entry: natural_key(entry.name)):
        distributions = {name: distribution(space.dimensions[name].domain) for name in entry.config}
        study.add_trial(
            optuna.trial.create_trial(params=dict(entry.config), distributions=distributions, value=entry.value)
        )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # few trials have a conditional one
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    outside = len(entries) - len(inside)
    note = f"from {len(inside)} trials" + (f" ({outside} outside the space left out)" if outside else "")
    return {name: float(share) for name, share in shares.items()}, note


def _config(entry: Entry) -> TrialConfig:
    return RunDir(Path(entry.path)).record().config
