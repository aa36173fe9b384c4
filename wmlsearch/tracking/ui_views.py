"""How MLflow's UI shows a search: a saved view of its runs table and charts.

MLflow stores a shared view as a tag of the experiment. The form of that tag is MLflow's own and undocumented;
tests/tracking/test_ui_views.py opens a view in a browser and fails when the form changes. Without the view only the
choice of columns is lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

TAG = "mlflow.sharedViewState."
LIMIT = 5000  # characters of a tag's value
BEST, TEST = "best_dice", "test_dice"


def view_tag(search: str, parameters: Sequence[str]) -> tuple[str, str]:
    """The experiment's tag that holds the view of a search: its name and its value.

    The table has the search's runs, the best first, with state, scores and the searched `parameters`; the charts have
    parallel coordinates of the trials, and learning curves.
    """
    columns = ["attributes.`Duration`", f"metrics.`{BEST}`", f"metrics.`{TEST}`"]
    columns += [*(f"params.`{name}`" for name in parameters), "tags.`state`"]
    section = {"uuid": f"{search}-section", "name": search, "display": True, "isReordered": False, "deleted": False}
    charts: list[dict[str, Any]] = [
        {"type": "PARALLEL", "selectedParams": list(parameters), "selectedMetrics": [BEST], "showAllRuns": True,
         "displayName": "Trials: hyperparameters and best_dice"},
        {"type": "LINE", "metricKey": "val_dice_best", "selectedMetricKeys": ["val_dice_best"], "xAxisKey": "step",
         "lineSmoothness": 0, "scaleType": "linear", "displayName": "val_dice_best by epoch"},
        {"type": "BAR", "metricKey": BEST, "displayName": "best_dice"},
        {"type": "BAR", "metricKey": TEST, "displayName": "test_dice: sealed test patients"},
    ]  # fmt: skip
    common: dict[str, Any] = {
        "runsCountToCompare": 100,
        "metricSectionId": section["uuid"],
        "deleted": False,
        "isGenerated": False,
    }
    state: dict[str, Any] = {
        "searchFilter": f"tags.search = '{search}'",
        "orderByKey": f"metrics.`{BEST}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [section],
        "compareRunCharts": [{**common, "uuid": f"{search}-{place}", **it} for place, it in enumerate(charts)],
    }
    value = json.dumps(state)
    if len(value) > LIMIT:  # of very many hyperparameters: the table alone
        value = json.dumps({name: it for name, it in state.items() if not name.startswith("compareRun")})
    return TAG + search, value


def page(experiment_id: str, search: str) -> str:
    """Where MLflow's pages show a search, behind the server's address."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={search}"
