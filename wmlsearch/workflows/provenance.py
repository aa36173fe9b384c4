"""What run folders record of their origin: data, configuration, settings, versions, commit."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from wmlsearch import __version__
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.slices import PreparedData
from wmlsearch.runs.names import SEARCH
from wmlsearch.runs.schema import DataRecord, RunRecord, SearchRecord, SpaceRecord, SplitCertificate, WarmStart
from wmlsearch.workflows.search_plan import SearchPlan


def versions() -> dict[str, str]:
    """Return the versions of wmlsearch, Python and the main libraries, and the git commit."""
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "ray", "optuna", "mlflow")}
    return {"wmlsearch": __version__, "python": platform.python_version(), **packages, "commit": _commit()}


def _commit() -> str:
    """Return the git commit of a checkout that runs in place, or ""."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607 - whatever git is on the path
    return result.stdout.strip()


def data_record(folder: Path, prepared: PreparedData) -> DataRecord:
    """Return what a run records of its data. A model cuts other images by the names of `Preprocessing`."""
    manifest = prepared.manifest
    record = DataRecord(
        name=folder.name,
        fingerprint=manifest.fingerprint,
        size=manifest.size,
        plane=manifest.plane,
        axis=manifest.axis,
        fit=manifest.fit,
        spacing_mm=manifest.spacing_mm,
        split=manifest.split_level,
        optimistic=manifest.optimistic,
    )
    if manifest.padding_background:
        record = record.model_copy(update={"padding_background": True})
    if manifest.axis is not None:
        return record
    several = any(len(volume.images) > 1 for volume in manifest.volumes)
    return record.model_copy(update={"scaled_by": "volume" if several else "picture"})


def certificate_record(manifest: Manifest) -> SplitCertificate:
    """Return the split certificate of a data set as a run records it."""
    checksums = sorted({volume.voxels_sha256 for volume in manifest.volumes} - {""})
    return SplitCertificate.model_validate_json(
        json.dumps({**asdict(manifest.certificate), "voxels_sha256": checksums})
    )


def run_record(name: str, kind: str, config: TrialConfig, settings: RunSettings, data: DataRecord) -> RunRecord:
    """Return what the folder of a run records before its first epoch."""
    return RunRecord(name=name, kind=kind, config=config, settings=settings, data=data, versions=versions())


def search_record(
    name: str,
    plan: SearchPlan,
    earlier_trials: int,
    left_out: Mapping[str, int],
    portfolio: Sequence[Mapping[str, Any]] = (),
) -> SearchRecord:
    """Return what `search.json` records before the first trial.

    Args:
        earlier_trials: Number of trials of earlier searches that the study starts with.
        left_out: Number of other trials that the study does not start with, by reason.
        portfolio: Configurations from experience for the trials after the baseline.
    """
    return SearchRecord(
        name=name,
        kind=SEARCH,
        space=SpaceRecord(
            source=plan.space.source, values=plan.space.to_mapping(), defaults=TrialConfig().model_dump()
        ),
        settings=plan.settings,
        data=plan.data_record,
        data_path=str(plan.data.resolve()),
        warm_start=WarmStart(taken=earlier_trials, left_out=dict(left_out)),
        portfolio=[dict(values) for values in portfolio],
        candidates_differ_in="training",
        shape=plan.placement.shape,
        storage=plan.placement.storage_without_password,
        ray_address=plan.placement.given_ray_address,
        packing=plan.packing.as_dict() if plan.packing else {},
        certificate=certificate_record(plan.manifest),
        versions=versions(),
    )
