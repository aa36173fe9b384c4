"""MLflow's model registry: exported models under one name, with an alias for each role."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.errors import InputError
from wmlsearch.runs.redaction import without_password
from wmlsearch.tracking.client import connected
from wmlsearch.tracking.problems import why

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

MODEL = "wml-unet"
ARTIFACT = "model"  # the folder of a run's artifacts that holds the exported model
SCHEME = "models:/"
ABOUT = (
    "Segments white matter lesions in FLAIR images. To use the champion of the latest search: `wmlsearch predict "
    f"{SCHEME}{MODEL}@champion IMAGE --out FOLDER`"
)


def register(client: MlflowClient, run_id: str, folder: Path, alias: str, description: str = "") -> str:
    """Log an exported folder as an artifact of an MLflow run, and register it as a version of MODEL with an alias.

    A second call for the same run sends nothing. The alias moves only to a model that was made later than each that it
    was ever at, whatever the order in which they are sent, and an alias that was moved by hand stays. Returns the
    version. Raises MLflow's own errors.
    """
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    numbers = [str(version.version) for version in versions if version.name == MODEL]
    if not numbers:
        client.log_artifacts(run_id, str(folder), ARTIFACT)
        if not client.search_registered_models(f"name = '{MODEL}'"):
            client.create_registered_model(MODEL, description=ABOUT)
        source = f"runs:/{run_id}/{ARTIFACT}"
        numbers = [str(client.create_model_version(MODEL, source, run_id, description=description).version)]
    version = max(numbers, key=int)
    model, mark = client.get_registered_model(MODEL), f"wmlsearch.{alias}"
    current = model.aliases.get(alias)
    # The tag records the version made last. Without it, an alias that was moved back by hand could not be told from one
    # that was not set because this process died after it had made the version.
    earlier = {str(current), str(model.tags.get(mark, current))} if current else set()
    if not earlier or _made(client, version) > max(_made(client, other) for other in earlier):
        client.set_registered_model_alias(MODEL, alias, version)
        client.set_registered_model_tag(MODEL, mark, version)
    return version


def _made(client: MlflowClient, version: str) -> tuple[int, int]:
    """Return when the model of a version was made (Unix milliseconds) and the version, to tell which model is later.

    A version that was deleted, or that has no run, counts as earlier than all others.
    """
    from mlflow.exceptions import MlflowException

    try:
        run_id = client.get_model_version(MODEL, version).run_id
        return int(client.get_run(run_id).info.start_time) if run_id else 0, int(version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return 0, int(version)


def fetch(model_uri: str, tracking_uri: str, to: Path) -> Path:
    """Download the exported model `models:/NAME@ALIAS` or `models:/NAME/VERSION` below `to`; return its folder.

    Raises InputError if MLflow does not answer, or has no such model.
    """
    parts = re.fullmatch(rf"{SCHEME}([^/@]+)(?:@([^/@]+)|/([1-9]\d*))", model_uri)
    if parts is None:
        raise InputError(
            f"{model_uri}: must be {SCHEME}NAME@ALIAS or {SCHEME}NAME/VERSION, such as {SCHEME}{MODEL}@champion"
        )
    name, alias, number = parts.groups()
    try:
        with connected(tracking_uri) as client:
            models = _registered(client)
            if name in models:  # servers before MLflow 2.10 leave aliases out of lists
                models[name] |= _by_alias(client.get_registered_model(name))
            version = models.get(name, {}).get(f"@{alias}" if alias else f"/{number}")
            if version is not None:
                from mlflow.artifacts import download_artifacts

                source = client.get_model_version_download_uri(name, version)
                return Path(download_artifacts(artifact_uri=source, dst_path=str(to), tracking_uri=tracking_uri))
        names = ", ".join(f"{SCHEME}{model}{suffix}" for model, suffixes in models.items() for suffix in suffixes)
        raise InputError(
            f"{model_uri}: no such model in {without_password(tracking_uri)} (it has: {names or 'none'}); "
            "give another model, or another store with --mlflow-uri"
        )
    except InputError:
        raise
    except Exception as error:  # whatever MLflow and the stores behind it raise
        where = without_password(tracking_uri)
        raise InputError(f"{model_uri}: cannot be fetched from {where} ({why(error, tracking_uri)})") from None


def _registered(client: MlflowClient) -> dict[str, dict[str, str]]:
    """Return the versions of all models: by model, then by suffix ("@champion", "/3")."""
    models: dict[str, dict[str, str]] = {}
    for model in client.search_registered_models():
        models[model.name] = _by_alias(model)
    for version in sorted(client.search_model_versions(), key=lambda version: int(version.version)):
        models.setdefault(version.name, {})[f"/{version.version}"] = str(version.version)
    return models


def _by_alias(model: RegisteredModel) -> dict[str, str]:
    """Return the versions of a model that have aliases, by suffix ("@champion")."""
    return {f"@{alias}": str(version) for alias, version in sorted(model.aliases.items())}
