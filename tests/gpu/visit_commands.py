"""The commands of `tests/gpu/visit`. `main` needs the standard library only: on the machine, what a stage needs is
installed after it starts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = (REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests" / "faults", Path(__file__).parent)
sys.path[:0] = [str(folder) for folder in FOLDERS if str(folder) not in sys.path]

from visit_parts import MIB, VisitError, install, installed_site, read_contents, split  # noqa: E402 - after the path is set
from visit_stages import (  # noqa: E402
    FAILED,
    MAX_LIMIT_S,
    PASSED,
    Machine,
    Result,
    Stage,
    note,
    results,
    run_stages,
    stop_on_signals,
)

PART_MIB = 50  # with the repository and what carries it, a part stays below 64 MiB
VERSIONS = ("torch", "triton", "ray", "optuna", "mlflow", "numpy", "monai", "nnunetv2")
INSTALL = "install"  # the stage before all others
PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
print(json.dumps([gpus, torch.__version__, torch.version.cuda]))
"""
# What of the project's dependencies this Python lacks, by the module that a cluster's head runs for the same purpose.
CHECK = """
import runpy, sys
print("\\n".join(runpy.run_path(sys.argv[1])["missing"](sys.argv[2:])))
"""


@dataclass(frozen=True)
class Planned:
    """A stage as the command line names it. `visit_jobs.JOBS` has what it does."""

    name: str
    what: str
    on_cpu: bool = False  # whether it can be tried on a CPU


PLAN = (
    Planned("tests", "`tests/gpu`, without the compiled network"),
    Planned("search", "a search with ASHA, one trial on a GPU, MLflow on SQLite, a verdict", on_cpu=True),
    Planned("search-auto", "the same with `--trials-per-gpu auto`"),
    Planned("killed-worker", "a search; processes of trials are killed", on_cpu=True),
    Planned("cuda-error", "a search; a CUDA error in one process", on_cpu=True),
    Planned("broken-gpu", "a search; a CUDA error in each training", on_cpu=True),
    Planned("two-workers", "more workers in a trial than GPUs"),
    Planned("training", "benchmark `training`"),
    Planned("packing", "benchmark `packing`"),
    Planned("peak", "benchmark `peak`"),
    Planned("turnaround", "benchmark `turnaround`"),
    Planned("compiled", "`tests/gpu/test_gpu_compiled.py`"),
    Planned("kernels-triton", "benchmark `training`: Triton kernels beside PyTorch's layers"),
    Planned("kernels-compile", "benchmark `training`: the compiled network beside PyTorch's layers"),
    Planned("frameworks", "benchmark `frameworks`: plain PyTorch and MONAI", on_cpu=True),
    Planned("nnunet", "benchmark `frameworks`: nnU-Net v2", on_cpu=True),
)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 0 if all went well, 1 if a stage did not pass, 2 if nothing could be run."""
    given = parser().parse_args(words)
    try:
        status = given.run(given)
    except (VisitError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    visit = argparse.ArgumentParser(
        prog="tests/gpu/visit",
        description="What needs a GPU, in one visit to a machine that has one and may have no network.",
    )
    verbs = visit.add_subparsers(required=True, metavar="wheels|run|table")

    wheels = verbs.add_parser("wheels", help="download what that machine lacks, in parts of limited size")
    wheels.add_argument("folder", type=Path, metavar="FOLDER")
    wheels.add_argument("--python", default="3.12", help="Python of that machine (default: %(default)s)")
    wheels.add_argument("--glibc", default="2.28", help="its C library, at least (default: %(default)s)")
    wheels.add_argument("--arch", default="x86_64", help="its processor (default: %(default)s)")
    wheels.add_argument(
        "--installed",
        type=Path,
        metavar="FILE",
        help="what `pip freeze` prints there; these packages are left out where their version will do "
        "(default: only torch, triton and numpy are there)",
    )
    wheels.add_argument(
        "--part-mib", type=int, default=PART_MIB, metavar="N", help="size of a part, MiB (default: %(default)s)"
    )
    wheels.add_argument("--no-nnunet", dest="nnunet", action="store_false", help="leave out nnU-Net (some 80 MiB)")
    wheels.set_defaults(run=make_wheels)

    run = verbs.add_parser(
        "run", help="install the wheels and run the stages", epilog=f"stages: {', '.join(one.name for one in PLAN)}"
    )
    run.add_argument("stages", nargs="*", metavar="STAGE", help="run these only (default: all, in this order)")
    run.add_argument("--wheels", type=Path, metavar="FOLDER", help="with part-1, ... (default: nothing is installed)")
    run.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder of the results")
    run.add_argument(
        "--again", action="append", default=[], metavar="STAGE",
        help="run it although it has a result; `failed`: all that did not pass. May be repeated",
    )  # fmt: skip
    run.add_argument(
        "--cpu",
        action="store_true",
        help="try the script without a GPU: small searches, and a small comparison of frameworks",
    )
    run.set_defaults(run=run_visit)

    table = verbs.add_parser("table", help="print the results as Markdown")
    table.add_argument("out", type=Path, metavar="OUT")
    table.set_defaults(run=print_table)

    stage = verbs.add_parser("stage")  # without help: it is how `run` starts the process of a stage
    stage.add_argument("name")
    stage.add_argument("--cpu", action="store_true")
    stage.set_defaults(run=run_job)
    return visit


def make_wheels(given: argparse.Namespace) -> int:
    """`visit wheels`."""
    from visit_wheels import Target, download, read_installed

    if given.part_mib < 1:
        raise VisitError(f"--part-mib must be at least 1, but got {given.part_mib}")
    target = Target(given.python, given.glibc, given.arch)
    wheels = download(given.folder, target, read_installed(given.installed), given.nnunet)
    contents = split(given.folder, wheels, given.python, given.part_mib * MIB)
    for number in range(1, contents.parts + 1):
        pieces = [piece for wheel in contents.wheels for piece in wheel.pieces if piece.part == number]
        size = sum(piece.bytes for piece in pieces) / MIB
        print(f"{given.folder}/part-{number}: {len(pieces)} files, {size:.1f} MiB")
    print(f"{len(contents.wheels)} wheels for Python {contents.python}; carry all parts to {given.folder} there")
    return 0


def run_visit(given: argparse.Namespace) -> int:
    """`visit run`."""
    planned = _chosen(given.stages, given.cpu)
    again = _again(given.again, results(given.out) if given.out.is_dir() else {}, [one.name for one in planned])
    gpus, torch_version, cuda = probe()
    if not gpus and not given.cpu:
        raise VisitError(f"no GPU here (torch {torch_version}), so nothing was run; --cpu tries the script without one")
    stop = stop_on_signals()
    given.out.mkdir(parents=True, exist_ok=True)
    site = [install_stage(given.wheels, given.out, _card(gpus), cuda)] if given.wheels else []
    path = [*map(str, site), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    machine = Machine(_card(gpus), versions(site, cuda))
    script = str(Path(__file__).with_name("visit"))
    small = ["--cpu"] if given.cpu else []
    stages = [
        Stage(one.name, one.what, (sys.executable, script, "stage", one.name, *small), MAX_LIMIT_S) for one in planned
    ]
    environment = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    ended = run_stages(stages, given.out, machine, environment, again, stop)
    print()
    print_table(given)
    if stop.is_set():
        print("stopped; the same command goes on", file=sys.stderr)
    return 0 if all(result.state == PASSED for result in ended) else 1


def install_stage(wheels: Path, out: Path, card: str, cuda: str | None) -> Path:
    """Install the wheels, write the result of this stage, and return the folder.

    What is missing then does not end the visit: some stages may do without. Raises VisitError if nothing is installed.
    """
    before = results(out).get(INSTALL)
    if before and before.state == PASSED and (site := installed_site(wheels)):
        return site
    began, start = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic()
    site = install(wheels)
    lacks = missing(site)
    error = f"missing: {', '.join(lacks)}" if lacks else ""
    result = Result(
        stage=INSTALL,
        what="install what the machine lacks",
        state=FAILED if error else PASSED,
        began=began,
        seconds=round(time.monotonic() - start, 1),
        limit_s=MAX_LIMIT_S,
        card=card,
        versions=versions([site], cuda),
        numbers={"wheels": len(read_contents(wheels).wheels)},
        error=error,
    )
    result.write(out)
    print(f"{INSTALL}: {result.state} after {result.seconds:.0f} s{f': {error}' if error else ''}")
    return site


def missing(site: Path) -> list[str]:
    """Return which of the project's dependencies are not there, or in another version, with `site` on the path."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    checker = str(REPOSITORY / "wmlsearch" / "cluster" / "dependencies.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", CHECK, checker, *project["dependencies"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"what the check itself needs ({done.stderr.strip().splitlines()[-1]})"]
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def probe() -> tuple[list[str], str, str | None]:
    """Return the names of the GPUs, and the versions of torch and of its CUDA. Raises VisitError without torch.

    Another process asks, since this one must hold no memory of a GPU while the stages run.
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise VisitError(f"{sys.executable}: has no working torch ({reason}), so nothing was run")
    gpus, torch_version, cuda = json.loads(done.stdout.splitlines()[-1])
    return gpus, torch_version, cuda


def versions(site: Sequence[Path], cuda: str | None) -> dict[str, str]:
    """Return the versions of Python and of the main packages, those in `site` first."""
    path = [*map(str, site), *sys.path]
    found = {"Python": ".".join(map(str, sys.version_info[:3])), **({"CUDA": cuda} if cuda else {})}
    for name in VERSIONS:
        for distribution in metadata.distributions(name=name, path=path):
            found[name] = distribution.version
            break
    return found


def print_table(given: argparse.Namespace) -> int:
    """`visit table`."""
    from visit_table import tables

    if not given.out.is_dir():
        raise VisitError(f"{given.out}: there is no such folder; `tests/gpu/visit run --out {given.out}` makes it")
    print(tables(list(results(given.out).values())), end="")
    return 0


def run_job(given: argparse.Namespace) -> int:
    """`visit stage`: what a stage does, in a folder that is removed. SIGTERM ends it as an exception does."""

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        jobs = importlib.import_module("visit_jobs")
        with tempfile.TemporaryDirectory(prefix="visit-", ignore_cleanup_errors=True) as folder:
            jobs.JOBS[given.name](Path(folder), given.cpu)
    except Exception as error:
        traceback.print_exc()
        note(error=_one_line(error))
        return 1
    return 0


def _one_line(error: Exception) -> str:
    """Return the type and message of an error; of an assertion without message the line that failed."""
    text = " ".join(str(error).split())
    if not text:
        text = f"`{traceback.extract_tb(error.__traceback__)[-1].line}` does not hold"
    return f"{type(error).__name__}: {text}"[:500]


def _chosen(named: Sequence[str], cpu: bool) -> list[Planned]:
    """Return the stages to run, in their order. Raises VisitError."""
    stages = {one.name: one for one in PLAN}
    if unknown := [name for name in named if name not in stages]:
        raise VisitError(f"no such stage: {', '.join(unknown)}; there are {', '.join(stages)}")
    if cpu and (without := [name for name in named if not stages[name].on_cpu]):
        can = ", ".join(one.name for one in PLAN if one.on_cpu)
        raise VisitError(f"--cpu: {', '.join(without)} needs a GPU; these do not: {can}")
    return [one for one in PLAN if (one.name in named or not named) and (one.on_cpu or not cpu)]


def _again(named: Sequence[str], before: dict[str, Result], chosen: Sequence[str]) -> list[str]:
    """Return the stages to repeat. Raises VisitError."""
    if unknown := [name for name in named if name not in (*chosen, "failed")]:
        raise VisitError(f"--again: {', '.join(unknown)} is not among the stages to run: {', '.join(chosen)}")
    failed = [name for name, result in before.items() if result.state != PASSED] if "failed" in named else []
    return [*named, *failed]


def _card(gpus: Sequence[str]) -> str:
    """Return `NVIDIA H100`, or `2 x NVIDIA H100`."""
    counts = {name: gpus.count(name) for name in gpus}
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items()) or "no GPU"
