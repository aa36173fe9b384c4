"""What default searches end with: whole searches of 20 trials on the hard phantom, each on a cohort of its own.

    python -m benchmarks.search_quality.searches                                   the table of searches.jsonl
    python -m benchmarks.search_quality.searches --record --work FOLDER
        [--repetitions 5] [--epochs 48]                                            run the searches it lacks

Repetition n writes a hard cohort with seed n, seals 48 of its 72 patients, and runs `wmlsearch tune` with seed n and
its defaults, but for two: the default epochs, as many steps as the paper's training had, take days on a few cores, and
so do the largest networks of the default space, so the space is small.yaml. The cohorts have large voxels, so lesions
are twice as wide. Searches know the shipped recordings, of which two are of hard cohorts with the seeds 101 and 102:
the patients are others, the generator is the same. A search that was interrupted goes on (`--continue`), and FOLDER may
be deleted once the row of a repetition is in searches.jsonl. "SD of runs" is that between the final runs of one
configuration: how much its mean Dice over the sealed patients differs from training to training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import wmlsearch
from benchmarks.verdict.rows import markdown
from wmlsearch.config import TrialConfig
from wmlsearch.runs.folders import SearchDir

RECORDED, SPACE = (Path(__file__).with_name(name) for name in ("searches.jsonl", "small.yaml"))
PATIENTS, SEALED, SIZE = 72, 48, 48
COHORT = (
    "--cohort", "hard", "--patients", PATIENTS, "--timepoints", 1, "--shape", f"{SIZE}x{SIZE}x16", "--lesion-size", 2,
)  # fmt: skip
TRIALS, EPOCHS = 20, 48


@dataclass(frozen=True)
class Ended:
    """A search that has ended, with its verdict."""

    repetition: int
    epochs: int  # at most, of a training
    champion: dict[str, Any]  # where it differs from the baseline; empty if it is the baseline
    outcome: str  # of claim (a)
    baseline: float | None  # mean Dice of its judgement runs over the sealed patients
    champion_dice: float | None
    difference: float | None
    low: float | None  # 95 % interval of the difference
    high: float | None
    detectable: float | None  # the smallest true difference that this design finds with 80 % probability
    hours: float
    run_sd: float | None = None  # between the judgement runs of one configuration; None without a claim, or not known


def run(repetition: int, epochs: int, work: Path) -> Ended:
    """Run a search to its end. Raises CalledProcessError if a command fails."""
    folder = work / f"{repetition}"
    if not (folder / "raw").exists():
        command("phantom", folder / "raw", *COHORT, "--seed", repetition)
    if not (folder / "prepared").exists():
        sealed = ",".join(f"{number:02d}" for number in range(PATIENTS - SEALED + 1, PATIENTS + 1))
        command("prepare", folder / "raw", folder / "prepared", "--size", SIZE, "--test-patients", sealed)
    command(
        "tune", SPACE, "--continue", "--name", f"{epochs}-epochs", "--out", folder / "runs", "--data",
        folder / "prepared", "--trials", TRIALS, "--epochs", epochs, "--seed", repetition,
    )  # fmt: skip
    return read(repetition, folder / "runs" / f"{epochs}-epochs")


def command(*words: object) -> None:
    """Run a command of wmlsearch."""
    subprocess.run([sys.executable, "-m", "wmlsearch", *map(str, words)], check=True)  # noqa: S603 - our own code


def read(repetition: int, folder: Path) -> Ended:
    """Return what a search ended with."""
    search, files = wmlsearch.load_search(folder), SearchDir(folder)
    status = files.status()
    champion, claim = search.champion, search.verdict.configuration if search.verdict else None
    if champion is None or status.ended is None:
        raise RuntimeError(f"{folder}: {search.state}, {search.reason or 'without a champion'}")
    baseline, chosen = TrialConfig().model_dump(), champion.config.model_dump()
    return Ended(
        repetition,
        search.settings.epochs,
        {name: value for name, value in chosen.items() if value != baseline[name]},
        claim.outcome if claim else "the baseline is the champion",
        claim.baseline if claim else None,
        claim.champion if claim else None,
        claim.difference if claim else None,
        claim.low if claim else None,
        claim.high if claim else None,
        claim.detectable if claim else None,
        (status.ended - files.record().created) / 3600,
        claim.run_sd if claim else None,
    )


def table(ended: Sequence[Ended]) -> str:
    """Return a table with a row for each search, and how many ended with "better", by epochs of a training."""
    ordered = sorted(ended, key=lambda each: (each.epochs, each.repetition))
    rows = [
        (
            each.epochs,
            each.repetition,
            each.outcome,
            number(each.baseline),
            number(each.champion_dice),
            f"{each.difference:+.3f} [{each.low:+.3f}, {each.high:+.3f}]" if each.difference is not None else "",
            number(each.detectable),
            number(each.run_sd),
            ", ".join(f"{name} {short(value)}" for name, value in each.champion.items()),
            f"{each.hours:.1f}",
        )
        for each in ordered
    ]
    head = (
        "epochs", "cohort", "claim (a)", "baseline", "champion", "difference [95 %]", "detectable", "SD of runs",
        "the champion's", "hours",
    )  # fmt: skip
    outcomes = [
        (epochs, [each.outcome for each in group]) for epochs, group in groupby(ordered, lambda each: each.epochs)
    ]
    counts = [f'"better" with {epochs} epochs: {found.count("better")} of {len(found)}' for epochs, found in outcomes]
    return "\n".join([markdown(head, rows), "", *counts])


def number(value: float | None) -> str:
    """Return a Dice as the table shows it."""
    return "" if value is None else f"{value:.3f}"


def short(value: object) -> str:
    """Return the value of a hyperparameter as the table shows it."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def recorded(path: Path = RECORDED) -> list[Ended]:
    """Return the recorded searches."""
    if not path.exists():
        return []
    return [Ended(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Print the table, after running the searches that it lacks with --record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="run the searches that are not in searches.jsonl")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where data and searches lie")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="number of searches (default: 5)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help=f"of a training (default: {EPOCHS})")
    given = parser.parse_args()
    if given.record and given.work is None:
        parser.error("--record needs --work FOLDER")
    done = {(each.epochs, each.repetition) for each in recorded()}
    for repetition in range(1, given.repetitions + 1) if given.record else ():
        if (given.epochs, repetition) not in done:
            ended = run(repetition, given.epochs, given.work)
            with RECORDED.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(ended)) + "\n")
    print(table(recorded()))


if __name__ == "__main__":
    main()
