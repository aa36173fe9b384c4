"""The code that `torch.compile` has made, in files that later trainings load instead of compiling, here or elsewhere.

A file holds what `torch.compiler.save_cache_artifacts` returns. Files lie in a folder for each combination of what code
depends on: hardware, versions and the shape of the network. torch checks each piece of it again by a key of its own, so
a file that does not fit costs time and changes no result. A file that cannot be used is ignored with a warning.

torch reads these files with pickle: whoever can write them can run programs as the user who trains.
"""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from wmlsearch.config import TrialConfig
from wmlsearch.model.torch_patches import keys_of_artifacts
from wmlsearch.runs.redaction import without_password

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FLAGS = ("flags", "Features")  # their names there, on x86 and ARM
_warned: set[str] = set()  # of this process


class ArtifactStore(Protocol):
    """Files in folders, wherever they are. All methods raise OSError."""

    def names(self, folder: str) -> Iterable[str]:
        """Return the names of the files in a folder, none if it does not exist."""

    def read(self, folder: str, name: str) -> bytes | None:
        """Return the content of a file, None if it does not exist."""

    def write(self, folder: str, name: str, content: bytes) -> None:
        """Write a file: readers see the old one or the new one, whole."""


@dataclass(frozen=True)
class CompiledFor:
    """What compiled code depends on, except for the number of images."""

    pytorch: str  # version
    python: str  # version
    device: str  # its name and what it can do
    threads: int  # of torch on a CPU; 0 on a GPU
    bfloat16: bool
    size: int  # pixels of each side of a slice
    network: dict[str, Any]  # hyperparameters

    @classmethod
    def of(cls, config: TrialConfig, size: int, bfloat16: bool, device: torch.device) -> CompiledFor:
        """Return what the code of a configuration's network depends on in this process."""
        names = (
            *("network", "depth", "base_channels", "input_slices", "up_kernel"),
            *("norm", "norm_momentum", "norm_epsilon"),
        )
        network = {name: getattr(config, name) for name in names}
        network["dropout_place"] = config.dropout_place if config.dropout else None  # code reads its probability
        return cls(
            pytorch=str(torch.__version__),
            python=platform.python_version(),
            device=_describe(device),
            threads=torch.get_num_threads() if device.type == "cpu" else 0,
            bfloat16=bfloat16,
            size=size,
            network=network,
        )

    @property
    def folder(self) -> str:
        """The name of the folder of this code."""
        return _digest(json.dumps(asdict(self), sort_keys=True).encode())[:24]


class _Header(BaseModel):
    """The first line of a file, as JSON. The artifacts follow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    made_for: CompiledFor
    sha256: str  # of the artifacts


class CompileCache:
    """The files with the code of one network."""

    def __init__(self, store: ArtifactStore, made_for: CompiledFor) -> None:
        self.store, self.made_for, self.folder = store, made_for, made_for.folder
        self.kept: set[tuple[str, str]] = set()  # kind and key of the artifacts that the files have

    def load(self) -> None:
        """Give torch the code in all files. Those that cannot be used are left out, each with a warning."""
        try:
            names = sorted(self.store.names(self.folder))
        except Exception as error:  # also of an object store's client, for an answer that it does not expect
            warn_once(f"stored compiled networks cannot be read, so networks are compiled again: {short_reason(error)}")
            return
        for name in names:
            try:
                content = self.store.read(self.folder, name)
                if content is not None:
                    info = torch.compiler.load_cache_artifacts(self._checked(content))
                    if info is None:
                        raise ValueError("PyTorch cannot read it")
                    self.kept |= keys_of_artifacts(info)
            except Exception as error:  # of many kinds, and everything can be compiled
                warn_once(f"the compiled network {self.folder}/{name} is ignored: {short_reason(error)}")

    def _checked(self, content: bytes) -> bytes:
        """Return the artifacts in a file. Raises ValueError if they are damaged, or of something else."""
        line, _, artifacts = content.partition(b"\n")
        try:
            header = _Header.model_validate_json(line)
        except ValidationError:
            raise ValueError("it is damaged, or of another version of wmlsearch") from None
        if header.made_for != self.made_for:
            raise ValueError("it was made for another network, machine or version of PyTorch")
        if header.sha256 != _digest(artifacts):
            raise ValueError("it is damaged")
        return artifacts

    def save(self, images: int, compiled_anew: bool) -> None:
        """Write a file with what torch has compiled or loaded since `forget_cache_artifacts`, if no file has it.

        Processes that compile the same at the same time write the same file. A failure is a warning.

        Args:
            images: Number of images in the batch that the code was compiled for; it names the file. The code may also
                serve other numbers.
            compiled_anew: Whether anything was compiled. If not, all code came from a file or from this machine's disk.
        """
        try:
            if (saved := torch.compiler.save_cache_artifacts()) is None:
                return
            artifacts, info = saved
            keys = keys_of_artifacts(info)
            if not compiled_anew and keys <= self.kept:
                return
            header = _Header(made_for=self.made_for, sha256=_digest(artifacts))
            content = header.model_dump_json().encode() + b"\n" + artifacts
            self.store.write(self.folder, f"{images}-images", content)
            self.kept |= keys
        except Exception as error:  # of many kinds, and training needs no file
            warn_once(f"a compiled network is not kept for later trainings: {short_reason(error)}")


def warn_once(text: str) -> None:
    """Warn, unless this process has had the same warning before."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=2)


def short_reason(error: BaseException) -> str:
    """Return the first line of what caused an error, with its kind and without a password."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {without_password(lines[0])[:200] if lines else 'without a text'}"


def _describe(device: torch.device) -> str:
    """Return the name of a device and what its code may use."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        runtime = f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"HIP {torch.version.hip}"
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, {runtime}"
    flags = ""
    if _CPU_INFO.exists():
        pairs = [line.partition(":") for line in _CPU_INFO.read_text(errors="replace").splitlines()]
        flags = next((value.strip() for name, _, value in pairs if name.strip() in _CPU_FLAGS), "")
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {flags}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
