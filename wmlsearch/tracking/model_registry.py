"""MLflow's model registry: exported models under one name, found again by an alias or a version."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.config import InputError
from wmlsearch.runs.redaction import without_password
from wmlsearch.tracking.client import connect, why

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "wml-unet"
ARTIFACT = "model"  # the folder of a run's artifacts that holds the exported model
SCHEME = "models:/"


def register(client: MlflowClient, run_id: str, folder: Path, alias: str, description: str = "") -> str:
    """Log an exported folder as artifact of an MLflow run, make a version of the model `MODEL` of it, and alias it.

    Called again for the same run it sends nothing. The alias only goes forward, from the highest version that it was
    ever at: older runs that are sent again don't take it, and who moves it back by hand keeps it there. Returns the
    version. Raises MLflow's own errors.
    """
    mine = [str(it.version) for it in client.search_model_versions(f"run_id = '{run_id}'") if it.name == MODEL]
    if not mine:
        client.log_artifacts(run_id, str(folder), ARTIFACT)
        if not client.search_registered_models(f"name = '{MODEL}'"):
            client.create_registered_model(MODEL, description="Models of `wmlsearch`, as exported folders")
        source = f"runs:/{run_id}/{ARTIFACT}"
        mine = [str(client.create_model_version(MODEL, source, run_id, description=description).version)]
    version = max(mine, key=int)
    model, mark = client.get_registered_model(MODEL), f"wmlsearch.{alias}"
    at = model.aliases.get(alias)
    # the mark tells a move by hand from a death between a version and its alias, which is made good
    highest = max(int(at), int(model.tags.get(mark, at))) if at else 0
    if int(version) > highest:
        client.set_registered_model_alias(MODEL, alias, version)
        client.set_registered_model_tag(MODEL, mark, version)
    return version


def fetch(model_uri: str, tracking_uri: str, to: Path) -> Path:
    """Download the exported model `models:/NAME@ALIAS` or `models:/NAME/VERSION` below `to`; returns its folder.

    Raises InputError where MLflow doesn't answer or has no such model, with the models that it has.
    """
    named = re.fullmatch(rf"{SCHEME}([^/@]+)(?:@([^/@]+)|/([1-9]\d*))", model_uri)
    if named is None:
        raise InputError(
            f"{model_uri}: must be {SCHEME}NAME@ALIAS or {SCHEME}NAME/VERSION, such as {SCHEME}{MODEL}@champion"
        )
    name, alias, number = named.groups()
    try:
        client = connect(tracking_uri)
        known = _known(client)
        version = known.get(name, {}).get(f"@{alias}" if alias else f"/{number}")
        if version is None:
            there = ", ".join(f"{SCHEME}{model}{end}" for model, ends in known.items() for end in ends)
            raise InputError(
                f"{model_uri}: no such model in {without_password(tracking_uri)} (there: {there or 'none'}); "
                "--mlflow-uri names another store"
            )
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow.artifacts import download_artifacts

        source = client.get_model_version_download_uri(name, version)
        return Path(download_artifacts(artifact_uri=source, dst_path=str(to), tracking_uri=tracking_uri))
    except InputError:
        raise
    except Exception as error:  # whatever MLflow and the stores behind it raise
        where = without_password(tracking_uri)
        raise InputError(f"{model_uri}: can't be fetched from {where} ({why(error, tracking_uri)})") from None


def _known(client: MlflowClient) -> dict[str, dict[str, str]]:
    """All models: how each of its versions can be named ("@champion", "/3"), and the version."""
    found: dict[str, dict[str, str]] = {}
    for model in client.search_registered_models():
        found[model.name] = {f"@{alias}": str(version) for alias, version in sorted(model.aliases.items())}
    for it in sorted(client.search_model_versions(), key=lambda it: int(it.version)):
        found.setdefault(it.name, {})[f"/{it.version}"] = str(it.version)
    return found
