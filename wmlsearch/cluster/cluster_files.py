"""The shipped cluster files, written for a cluster of the user's own.

A checkout has them at its top and in `clusters/`, a wheel as package data. `ray up` installs wmlsearch on the machines
from its source, and so does the image for Kubernetes. The shipped files name that source by its place in a checkout.
The written ones name the installed package, so that they work without a checkout and from any folder.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.runs.files import atomic_folder, write_text
from wmlsearch.runs.wording import command
from wmlsearch.space import shipped

IMAGE = "REGISTRY/wmlsearch:2.60.0"  # as the manifest names it
IMAGE_FOLDER = "wmlsearch-image"  # beside the manifest for Kubernetes: what `docker build` needs
SOURCE = ("wmlsearch", "search_spaces", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
_MOUNT = re.compile(r"^(  ~/wmlsearch-source/\S+: )(\S+)$", re.MULTILINE)
_ACTIVATE = "source ~/wmlsearch-venv/bin/activate"  # the line of slurm.sbatch


@dataclass(frozen=True)
class ClusterFile:
    """A kind of cluster and its shipped file."""

    shipped_as: str  # path in a checkout
    next_steps: Callable[[Path], list[str]]  # commands to paste, for the path of the written file

    @property
    def name(self) -> str:
        return Path(self.shipped_as).name


def _ray_up(path: Path) -> list[str]:
    return [shlex.join(["ray", "up", _operand(path)]), command("tune", "--cluster", path, "--data", "prepared")]


KINDS = {
    "aws": ClusterFile("cluster.yaml", lambda path: ["ray get-auth-token --generate", *_ray_up(path)]),
    "on-prem": ClusterFile("clusters/on-prem.yaml", _ray_up),
    "slurm": ClusterFile("clusters/slurm.sbatch", lambda path: [shlex.join(["sbatch", _operand(path)])]),
    "kuberay": ClusterFile(
        "clusters/kuberay.yaml",
        lambda path: [
            shlex.join(["docker", "build", "-t", IMAGE, _operand(path.parent / IMAGE_FOLDER)]),
            shlex.join(["docker", "push", IMAGE]),
            shlex.join(["kubectl", "apply", "-f", str(path)]),
        ],
    ),
}


def write_cluster_file(kind: str, out: Path) -> list[Path]:
    """Write the cluster file of a kind, and for `kuberay` the folder of its image. Returns what was written.

    Args:
        kind: One of `KINDS`.
        out: A folder for a file of the shipped name, or, if it has a suffix, the file to write.

    Raises:
        InputError: something is there already, or this installation has no cluster files.
    """
    path = out if out.suffix and not out.is_dir() else out / KINDS[kind].name
    image = path.parent / IMAGE_FOLDER
    for target in (path, image) if kind == "kuberay" else (path,):
        if target.is_symlink() or target.exists():
            raise InputError(
                f"{target}: exists already and is not overwritten; move it away, or name another place: "
                f"`{command('cluster-file', kind, Path('my-cluster') / path.name)}`"
            )
    text = _for_this_installation(kind, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "kuberay":
        _write_image_folder(image)
    write_text(path, text)
    return [path, image] if kind == "kuberay" else [path]


def shipped_file(name: str) -> Path:
    """Return a file or folder of the source by its path in a checkout.

    Raises InputError if this installation was made without it, as those on the machines of a cluster are.
    """
    package = Path(str(resources.files("wmlsearch")))
    installed = package / "cluster_files"
    places = {"wmlsearch": package, "search_spaces": shipped()}
    path = places.get(name) or (installed if installed.is_dir() else package.parent) / name
    if not path.exists():
        raise InputError(
            f"{path}: is missing, so this installation of wmlsearch cannot write cluster files; use one made by pip or "
            "from a checkout"
        )
    return path


def _for_this_installation(kind: str, path: Path) -> str:
    """Return the text of a cluster file, with its own name, and the installed package as the source of wmlsearch."""
    text = shipped_file(KINDS[kind].shipped_as).read_text(encoding="utf-8")
    for pattern, replacement in (
        (r" -f clusters/Dockerfile (-t \S+) \.", rf" \1 {IMAGE_FOLDER}"),
        (r" +from the top of this repository$", ""),
        (r"from the top of this repository; needs", "needs"),
        (r"This repository, from the folder in which `ray up` is run,", "The wmlsearch that wrote this file,"),
        (re.escape(KINDS[kind].shipped_as), path.name.replace("\\", r"\\")),
    ):
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = _MOUNT.sub(lambda match: match[1] + json.dumps(str(shipped_file(match[2])), ensure_ascii=False), text)
    activate = Path(sys.prefix, "bin", "activate")
    if activate.is_file():
        text = text.replace(_ACTIVATE, f"source {shlex.quote(str(activate))}")
    return text


def _write_image_folder(folder: Path) -> None:
    """Write the Dockerfile and the source that it copies, so that the folder is all that `docker build` needs."""
    ignore = shutil.ignore_patterns("__pycache__", "cluster_files", "search_spaces")
    with atomic_folder(folder) as aside:
        aside.mkdir()
        shutil.copyfile(shipped_file("clusters/Dockerfile"), aside / "Dockerfile")
        for name in SOURCE:
            place = shipped_file(name)
            if place.is_dir():
                shutil.copytree(place, aside / name, ignore=ignore)
            else:
                shutil.copyfile(place, aside / name)


def _operand(path: Path) -> str:
    """Return a path that no program takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
