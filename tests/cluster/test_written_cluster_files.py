"""`wmlsearch cluster-file` writes files that need no checkout, also from a wheel."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from paths import REPOSITORY

from wmlsearch.cli import main
from wmlsearch.cli.cluster_file import cluster_file
from wmlsearch.cluster.cluster_files import IMAGE, IMAGE_FOLDER, KINDS, SOURCE, write_cluster_file
from wmlsearch.errors import InputError

SOURCE_ON_MACHINES = "~/wmlsearch-source/"


def write(*words: str) -> Result:
    return CliRunner().invoke(main, ["cluster-file", *words])


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_file_is_the_shipped_one_for_this_installation(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = write(kind)
    assert done.exit_code == 0, done.output
    name = KINDS[kind].name
    text, shipped = Path(name).read_text(), (REPOSITORY / KINDS[kind].shipped_as).read_text()
    assert "this repository" not in text.lower()
    assert "clusters/" not in text
    assert len(text.splitlines()) == len(shipped.splitlines())
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == f"wrote {name}"
    following = lines[lines.index(f"next: change the lines of {name} that say CHANGE, then") + 1 :]
    assert following == KINDS[kind].next_steps(Path(name))
    if name.endswith(".yaml"):
        written, original = list(yaml.safe_load_all(text)), list(yaml.safe_load_all(shipped))
        for part in (*written, *original):
            part.pop("file_mounts", None)
        assert written == original


@pytest.mark.parametrize("kind", ["aws", "on-prem"])
def test_the_machines_get_the_installed_source(kind: str, tmp_path: Path) -> None:
    write_cluster_file(kind, tmp_path)
    mounts = yaml.safe_load((tmp_path / KINDS[kind].name).read_text())["file_mounts"]
    source = {key.removeprefix(SOURCE_ON_MACHINES): Path(value) for key, value in mounts.items() if "source" in key}
    assert tuple(source) == SOURCE
    assert source["wmlsearch"] == REPOSITORY / "wmlsearch"
    assert all(place.is_absolute() and place.exists() for place in source.values())


def test_a_folder_with_a_difficult_name(tmp_path: Path) -> None:
    installed = tmp_path / 'my "lab" #1'
    installed.mkdir()
    for name in ("wmlsearch", "search_spaces", "clusters"):
        shutil.copytree(REPOSITORY / name, installed / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("cluster.yaml", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, installed)
    words = [sys.executable, "-c", "from wmlsearch.cli import main; main()", "cluster-file", "aws"]
    subprocess.run(words, cwd=installed / "clusters", env={"PYTHONPATH": str(installed)}, check=True)
    mounts = yaml.safe_load((installed / "clusters" / "cluster.yaml").read_text())["file_mounts"]
    assert mounts[f"{SOURCE_ON_MACHINES}wmlsearch"] == str(installed / "wmlsearch")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_overwritten(kind: str, tmp_path: Path) -> None:
    taken = tmp_path / KINDS[kind].name
    taken.write_text("mine")
    done = write(kind, str(tmp_path))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"wmlsearch: {taken}: exists already and is not overwritten; ")
    (again,) = re.findall(r"`wmlsearch (.*)`", done.stderr)
    assert main.commands["cluster-file"].make_context("cluster-file", shlex.split(again)[1:]).params["kind"] == kind
    assert [path.name for path in tmp_path.iterdir()] == [taken.name]
    assert taken.read_text() == "mine"


def test_the_folder_of_the_image_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / IMAGE_FOLDER).mkdir()
    with pytest.raises(InputError, match=f"{IMAGE_FOLDER}: exists already"):
        write_cluster_file("kuberay", tmp_path)
    assert not (tmp_path / "kuberay.yaml").exists()


def test_a_file_of_another_name(tmp_path: Path) -> None:
    done = write("on-prem", str(tmp_path / "new" / "lab.yaml"))
    assert done.exit_code == 0
    text = (tmp_path / "new" / "lab.yaml").read_text()
    assert "#   ray up lab.yaml\n" in text
    assert f"ray up {tmp_path}/new/lab.yaml" in done.stdout


def test_the_command_line_has_all_kinds() -> None:
    (kinds, _) = cluster_file.params
    assert list(kinds.type.choices) == list(KINDS)


def test_the_image_is_that_of_the_manifest(tmp_path: Path) -> None:
    write_cluster_file("kuberay", tmp_path)
    images = set(re.findall(r"image: &image (\S+)", (tmp_path / "kuberay.yaml").read_text()))
    assert images == {IMAGE}


def wheel_of(source: Path, out: Path) -> set[str]:
    """Build a wheel as `pip install` does, unpack it into `out`, and return the names of its files."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)], check=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out)
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_files_written_by_a_wheel_install_the_same_package(tmp_path: Path) -> None:
    """A wheel has all that it needs: from its files for a cluster, wmlsearch is built again."""
    source = tmp_path / "source"
    source.mkdir()
    for name in (*SOURCE, "clusters", "cluster.yaml"):
        place = REPOSITORY / name
        copy = shutil.copytree if place.is_dir() else shutil.copyfile
        copy(place, source / name)
    installed = wheel_of(source, tmp_path / "installed")
    for name in ("cluster.yaml", "clusters/kuberay.yaml", "clusters/Dockerfile", "pyproject.toml", "constraints.txt"):
        packed = tmp_path / "installed" / "wmlsearch" / "cluster_files" / name
        assert packed.read_bytes() == (REPOSITORY / name).read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    environment = {"PYTHONPATH": str(tmp_path / "installed")}
    for kind in KINDS:
        words = [sys.executable, "-m", "wmlsearch", "cluster-file", kind, str(out)]
        subprocess.run(words, env=environment, cwd=tmp_path, check=True, capture_output=True)
    mounts = yaml.safe_load((out / "cluster.yaml").read_text())["file_mounts"]
    assert all(Path(place).exists() for place in mounts.values() if not place.startswith("~"))
    assert mounts[f"{SOURCE_ON_MACHINES}wmlsearch"] == str(tmp_path / "installed" / "wmlsearch")
    again = wheel_of(out / IMAGE_FOLDER, tmp_path / "again")
    assert installed - again == {name for name in installed if re.search(r"cluster_files/cluster", name)}
    assert again <= installed
    words = [sys.executable, "-m", "wmlsearch", "cluster-file", "aws", "elsewhere"]
    environment = {"PYTHONPATH": str(tmp_path / "again")}
    done = subprocess.run(words, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "cluster.yaml: is missing, so this installation of wmlsearch cannot write cluster files" in done.stderr
