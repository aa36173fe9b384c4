"""Records of searches and runs with only the fields that a test is about; the others have some value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.schema import DataRecord, EpochRow, FolderRecord, RunRecord, SearchRecord

DATA = {"name": "prepared", "fingerprint": "f" * 64, "optimistic": False}
DATA_RECORD = DataRecord.model_validate(DATA)


def run_record(values: Mapping[str, Any] | FolderRecord | None = None, **changes: Any) -> RunRecord:
    """Return the record of a run, from the plain values of a `config.json`."""
    return RunRecord.model_validate({"kind": "trial", "config": {}, **_shared(values, changes)})


def search_record(values: Mapping[str, Any] | FolderRecord | None = None, **changes: Any) -> SearchRecord:
    """Return the record of a search, from the plain values of a `search.json`."""
    shared = _shared(values, changes)
    space = shared.pop("space", {"source": "a test", "values": {"depth": {"choices": [1, 2]}}})
    space = {"defaults": TrialConfig().model_dump(), **space}
    return SearchRecord.model_validate({"kind": "search", "space": space, **shared})


def _shared(values: Mapping[str, Any] | FolderRecord | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    given = {**(values.as_json() if isinstance(values, FolderRecord) else values or {}), **changes}
    return {"name": "s", "settings": RunSettings().model_dump(), **given, "data": {**DATA, **given.get("data", {})}}


def epoch_row(values: Mapping[str, Any]) -> EpochRow:
    """Return a line of `metrics.jsonl` from its plain values; time and end may be left out."""
    return EpochRow.from_json({"time": 0.0, "ended": None, **values})


def prepared_again(data: Path, folder: Path) -> Path:
    """Copy a prepared data set as a newer version would prepare it: equal slices and fingerprint, another manifest."""
    shutil.copytree(data, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for volume in manifest["volumes"]:
        volume["site"] = "a new site"
    path.write_text(json.dumps(manifest))
    return folder
