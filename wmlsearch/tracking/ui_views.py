"""How MLflow's UI shows a search: a saved view of its table of runs and its charts.

MLflow keeps a shared view as a tag of the experiment (see mlflow_patches). Without the view only the choice of columns
and charts is lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from wmlsearch.runs.names import BEST_DICE, TEST_DICE
from wmlsearch.tracking.mlflow_patches import MAX_EXPERIMENT_TAG, SHARED_VIEW_TAG


def view_tag(search: str, parameters: Sequence[str], objective: str) -> tuple[str, str]:
    """Return name and value of the experiment's tag that holds the view of a search.

    The table shows the search's runs, best first, with state, scores and the searched `parameters`; the charts show
    parallel coordinates of the trials, the `objective` by epoch, and scores.
    """
    columns = ["attributes.`Duration`", f"metrics.`{BEST_DICE}`", f"metrics.`{TEST_DICE}`"]
    columns += [*(f"params.`{name}`" for name in parameters), "tags.`kind`", "tags.`state`"]
    section = {"uuid": f"{search}-section", "name": search, "display": True, "isReordered": False, "deleted": False}
    charts: list[dict[str, Any]] = [
        {"type": "PARALLEL", "selectedParams": list(parameters), "selectedMetrics": [BEST_DICE], "showAllRuns": True,
         "displayName": "Trials: hyperparameters and best_dice"},
        {"type": "LINE", "metricKey": objective, "selectedMetricKeys": [objective], "xAxisKey": "step",
         "lineSmoothness": 0, "scaleType": "linear", "displayName": f"{objective} by epoch"},
        {"type": "BAR", "metricKey": BEST_DICE, "displayName": "best_dice"},
        {"type": "BAR", "metricKey": TEST_DICE, "displayName": "test_dice: sealed test patients"},
    ]  # fmt: skip
    common: dict[str, Any] = {
        "runsCountToCompare": 100,
        "metricSectionId": section["uuid"],
        "deleted": False,
        "isGenerated": False,
    }
    state: dict[str, Any] = {
        "searchFilter": f"tags.search = '{search}'",
        "orderByKey": f"metrics.`{BEST_DICE}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [section],
        "compareRunCharts": [{**common, "uuid": f"{search}-{place}", **chart} for place, chart in enumerate(charts)],
    }
    value = json.dumps(state)
    if len(value) > MAX_EXPERIMENT_TAG:  # with very many hyperparameters: the table without charts
        value = json.dumps({name: part for name, part in state.items() if not name.startswith("compareRun")})
    return SHARED_VIEW_TAG + search, value
