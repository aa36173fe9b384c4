"""`wmlsearch prepare` with all cores, compared with a single process: time and memory.

    python -m benchmarks.prepare

Volumes have 256 x 256 x 180 voxels. Two sizes of the cohort show whether memory grows with it. Memory is the
proportional set size of the process and its workers, measured ten times a second; its unit is a volume's voxels as
float32 (47 MB). The libraries' memory is that of preparing the same cohort at a 64th of the voxels. The phantom is made
from a small one by splitting voxels and adding noise. A cohort of 60:

    python -c "from benchmarks import prepare, table; print(table.table(prepare.measure((30, 60))))"
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.processes import call, descendants, memory
from benchmarks.table import Row, show
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare

VOLUMES = (5, 10)
SMALL = (64, 64, 45)
FACTOR = 4  # along each axis
VOLUME_BYTES = 4 * FACTOR**3 * SMALL[0] * SMALL[1] * SMALL[2]
LIMIT_S_PER_VOLUME = 60
SCALING = 0.75  # of the number of cores
MAX_HELD = 5  # volumes in memory, for the process and each of its workers


def measure(volumes: tuple[int, int] = VOLUMES) -> list[Row]:
    """Time of the larger cohort with all cores and with one process; memory of both cohorts with all cores."""
    few, many = volumes
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        small, large = _cohort(Path(folder), many)
        libraries = {jobs: _prepare(small, jobs)[1] for jobs in (1, cores)}
        before = _prepare(_first(large, few), cores)[1]
        (seconds, peak), (seconds_alone, peak_alone) = (_prepare(large, jobs) for jobs in (cores, 1))
    held, held_alone = (peak - libraries[cores]) / VOLUME_BYTES, (peak_alone - libraries[1]) / VOLUME_BYTES
    shape = " x ".join(str(n * FACTOR) for n in SMALL)
    return [
        Row(
            f"`prepare`, {many} volumes of {shape}, {cores} cores",
            f"{seconds:.1f} s",
            f"one process: {seconds_alone:.1f} s",
            seconds_alone / seconds,
            f"scales with cores: at least {SCALING * cores:.3g}",
            seconds_alone / seconds >= SCALING * cores,
        ),
        Row(
            f"`prepare`, peak memory of {many} volumes",
            f"{peak / 1e6:.0f} MB",
            f"{few} volumes: {before / 1e6:.0f} MB",
            before / peak,
            "does not grow with the cohort",
            peak < 1.1 * before,
        ),
        Row(
            f"`prepare`, peak memory beside the libraries', {cores} workers",
            f"{held:.1f} volumes",
            f"one process: {held_alone:.1f} volumes",
            held_alone / held,
            f"at most {MAX_HELD} volumes a process",
            held <= MAX_HELD * (cores + 1),
        ),
    ]


def _prepare(raw: Path, jobs: int) -> tuple[float, int]:
    """Run `prepare`, and return its seconds and the peak bytes of its processes."""
    peak = 0

    def watch(pid: int) -> None:
        nonlocal peak
        peak = max(peak, sum(memory(process) for process in (pid, *descendants(pid))))

    with tempfile.TemporaryDirectory(dir=raw.parent) as out:
        limit_s = LIMIT_S_PER_VOLUME * sum(1 for _ in raw.glob("sub-*"))
        seconds = call(prepared_in, str(raw), f"{out}/prepared", jobs, limit_s=limit_s, watch=watch)
    return seconds, peak


def prepared_in(raw: str, out: str, jobs: int) -> float:
    """Run `prepare`, and return its seconds without imports."""
    start = time.perf_counter()
    prepare(Path(raw), Path(out), PrepareOptions(jobs=jobs))
    return time.perf_counter() - start


def _cohort(folder: Path, volumes: int) -> tuple[Path, Path]:
    """Write a phantom cohort with small volumes and the same one with large volumes."""
    small = write_phantom(folder / "small", patients=volumes, timepoints=1, shape=SMALL)
    large = Path(shutil.copytree(small, folder / "large"))
    rng = np.random.default_rng(0)
    for path in sorted(large.rglob("*.nii.gz")):
        _enlarge(path, rng)
    return small, large


def _first(raw: Path, volumes: int) -> Path:
    """Copy the first patients of a cohort into a new one."""
    other = {f"sub-{number:02d}" for number in range(1, volumes + 1)}

    def leave_out(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith("sub-") and name.split("_")[0] not in other]

    return Path(shutil.copytree(raw, raw.with_name(f"{raw.name}-{volumes}"), ignore=leave_out))


def _enlarge(path: Path, rng: np.random.Generator) -> None:
    image: Any = nib.load(path)
    voxels = np.asarray(image.dataobj)
    for axis in range(3):
        voxels = voxels.repeat(FACTOR, axis)
    if "mask" not in path.name:
        voxels = voxels + rng.integers(0, 8, voxels.shape, voxels.dtype)
    affine = image.affine @ np.diag([*[1 / FACTOR] * 3, 1])
    affine[:3, 3] += affine[:3, :3].sum(axis=1) * (1 - FACTOR) / 2  # the centre of the first voxel
    nib.save(nib.Nifti1Image(voxels, affine), path)


if __name__ == "__main__":
    show(__doc__, measure)
