"""MLflow's model registry on a real store: a version for each run, moving aliases, unchanged folders."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from wmlsearch.errors import InputError
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.model_registry import MODEL, fetch, register
from wmlsearch.tracking.uri import default_uri


@pytest.fixture
def uri(empty: Path, tmp_path: Path) -> str:
    shutil.copy(empty, tmp_path)
    return default_uri(tmp_path)


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return connect(uri)


def run_of(client: MlflowClient, tmp_path: Path, made_ms: int | None = None) -> str:
    existing = client.get_experiment_by_name("wmlsearch")
    experiment = (
        existing.experiment_id if existing else client.create_experiment("wmlsearch", (tmp_path / "a").as_uri())
    )
    return str(client.create_run(experiment, made_ms).info.run_id)


def folder(path: Path, text: str) -> Path:
    """Write a folder to register: files without MLflow's metadata."""
    path.mkdir()
    (path / "model.json").write_text(text)
    (path / "member-0.safetensors").write_bytes(text.encode() * 3)
    return path


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_register_and_fetch_by_alias_and_version(client: MlflowClient, uri: str, tmp_path: Path) -> None:
    old, new = folder(tmp_path / "old", "old"), folder(tmp_path / "new", "new")
    first, second = run_of(client, tmp_path), run_of(client, tmp_path)
    assert register(client, first, old, "champion", "of search s") == "1"
    assert register(client, second, new, "champion") == "2"  # the alias moves
    assert register(client, first, old, "baseline") == "1"
    wanted = {f"{MODEL}@champion": new, f"{MODEL}/2": new, f"{MODEL}@baseline": old, f"{MODEL}/1": old}
    for number, (name, exported) in enumerate(wanted.items()):
        fetched = fetch(f"models:/{name}", uri, tmp_path / f"to-{number}")
        assert fetched.is_relative_to(tmp_path / f"to-{number}")
        assert content(fetched) == content(exported)
    version = client.get_model_version(MODEL, "1")
    assert (version.run_id, version.description) == (first, "of search s")


def test_registering_twice_makes_one_version(client: MlflowClient, uri: str, tmp_path: Path) -> None:
    run_id, exported = run_of(client, tmp_path), folder(tmp_path / "f", "x")
    assert [register(client, run_id, exported, "champion") for _ in range(3)] == ["1"] * 3
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    register(client, run_id, exported, "second")
    assert client.get_registered_model(MODEL).aliases.keys() == {"champion", "second"}


def at(client: MlflowClient) -> str:
    """Return the version of the alias `champion`."""
    return str(client.get_model_version_by_alias(MODEL, "champion").version)


def test_alias_only_moves_forward(client: MlflowClient, tmp_path: Path) -> None:
    """After an older search is synced again, the alias stays at the newest model, or where a user set it."""
    exported = folder(tmp_path / "f", "x")
    first, second, third = (run_of(client, tmp_path) for _ in range(3))
    for run_id in (first, second):
        register(client, run_id, exported, "champion")
    assert register(client, first, exported, "champion") == "1"
    assert at(client) == "2"
    client.set_registered_model_alias(MODEL, "champion", "1")
    for run_id in (second, first):
        register(client, run_id, exported, "champion")
    assert at(client) == "1", "as it was set by hand"
    register(client, third, exported, "champion")
    assert at(client) == "3", "a new model"
    client.delete_registered_model_alias(MODEL, "champion")
    for run_id in (first, second, third):
        register(client, run_id, exported, "champion")
    assert at(client) == "3", "one that is missing goes to the newest of those that are sent"


def test_a_model_that_was_made_earlier_does_not_take_the_alias(client: MlflowClient, tmp_path: Path) -> None:
    """A new store gets the searches in the order of their names, or an old one long after a new one."""
    exported = folder(tmp_path / "f", "x")
    newer, older, newest = (run_of(client, tmp_path, made_ms) for made_ms in (2_000, 1_000, 3_000))
    assert [register(client, run_id, exported, "champion") for run_id in (newer, older)] == ["1", "2"]
    assert at(client) == "1"
    client.set_registered_model_alias(MODEL, "champion", "2")
    for run_id in (older, newer):
        register(client, run_id, exported, "champion")
    assert at(client) == "2", "as it was set by hand"
    register(client, newest, exported, "champion")
    assert at(client) == "3"
    client.delete_model_version(MODEL, "3")  # and with it the alias
    register(client, older, exported, "champion")
    register(client, newer, exported, "champion")
    assert at(client) == "1"
    by_hand = str(client.create_model_version(MODEL, exported.as_uri()).version)  # of no run
    client.set_registered_model_alias(MODEL, "champion", by_hand)
    client.delete_registered_model_tag(MODEL, "wmlsearch.champion")
    register(client, older, exported, "champion")
    assert at(client) == "2"


def test_register_after_a_crash_between_version_and_alias(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    exported, first, second = folder(tmp_path / "f", "x"), run_of(client, tmp_path), run_of(client, tmp_path)
    register(client, first, exported, "champion")
    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            register(client, second, exported, "champion")
    assert at(client) == "1"
    for run_id, version in ((first, "1"), (second, "2"), (first, "2")):
        register(client, run_id, exported, "champion")
        assert at(client) == version


def test_missing_models_and_versions(client: MlflowClient, uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        fetch("models:/wml-unet@champion", uri, tmp_path / "to")
    assert str(error.value) == (
        f"models:/wml-unet@champion: no such model in {uri} (it has: none); give another model, or another "
        "store with --mlflow-uri"
    )
    register(client, run_of(client, tmp_path), folder(tmp_path / "f", "x"), "champion")
    for name in ("models:/wml-unet@baseline", "models:/wml-unet/2", "models:/other'/1"):
        with pytest.raises(InputError, match=r"\(it has: models:/wml-unet@champion, models:/wml-unet/1\)"):
            fetch(name, uri, tmp_path / "to")
    for name in ("models:/wml-unet", "models:/wml-unet/latest", "models:/a/b@c"):
        with pytest.raises(InputError, match=re.escape(f"{name}: must be models:/NAME@ALIAS or models:/NAME/VERSION")):
            fetch(name, uri, tmp_path / "to")


def test_missing_artifacts(client: MlflowClient, uri: str, tmp_path: Path) -> None:
    register(client, run_of(client, tmp_path), folder(tmp_path / "f", "x"), "champion")
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="models:/wml-unet@champion: cannot be fetched from sqlite"):
        fetch("models:/wml-unet@champion", uri, tmp_path / "to")
