"""Which hyperparameters made the difference in a search, by Optuna."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from wmlsearch.config import TrialConfig
from wmlsearch.runs.folders import GOOD, RunDir
from wmlsearch.runs.leaderboard import Leaderboard
from wmlsearch.search.distributions import distribution
from wmlsearch.space import SearchSpace

FEWEST = 4  # trials; of fewer, even the evaluator's best tenth is a single one beside hardly any other


def importances(board: Leaderboard, space: SearchSpace) -> tuple[dict[str, float], str]:
    """Each searched hyperparameter's share, the largest first, and on what they rest or why there are none.

    Optuna's PED-ANOVA (arXiv 2304.10255): how much the best tenth of trials differs from all in a hyperparameter. It
    takes conditional ones (arXiv 2601.20800), uses no chance, and asks only which trials are best, so that one that was
    stopped early may count with its best epoch so far. Left out are trials without a value, children of pbt, which
    share their parents' values, and points outside the space, as the paper's may be.
    """
    known = [entry for entry in board.trials if entry.value is not None and entry.state in GOOD and not entry.parent]
    inside = [e for e in known if not space.outside(TrialConfig(**RunDir(Path(e.path)).about()["config"]))]
    if len(inside) < FEWEST:
        return {}, f"at least {FEWEST} trials of the space with a value are needed, and there are {len(inside)}"
    if len({entry.value for entry in inside}) < 2:
        return {}, f"all {len(inside)} trials have the same value"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for entry in sorted(inside, key=lambda it: it.name):
        distributions = {name: distribution(space.dimensions[name].domain) for name in entry.config}
        study.add_trial(
            optuna.trial.create_trial(params=dict(entry.config), distributions=distributions, value=entry.value)
        )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that few trials have a conditional one
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    outside = len(known) - len(inside)
    note = f"of {len(inside)} trials" + (f" ({outside} outside the space left out)" if outside else "")
    return {name: float(share) for name, share in shares.items()}, note
