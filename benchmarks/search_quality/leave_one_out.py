"""What a search gains on real patients: each of three is sealed once, and the configuration is found without it.

    python -m benchmarks.search_quality.leave_one_out                                 the table of leave_one_out.jsonl
    python -m benchmarks.search_quality.leave_one_out --record --ms-flair FOLDER      train what it lacks

The found configuration of a sealed patient is the one of recordings/ms-flair.jsonl with the highest objective on the
patient that validates; the sealed patient has no part in it. It and the baseline are trained anew with three seeds that
the recording does not have. An ablation is the found configuration with one group of its hyperparameters as in the
baseline. A training is scored as in the recording: the sealed Dice of its best epoch on the patient that validates.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_quality.sealed_record import HERE, SPACE, Key, read, train
from benchmarks.search_quality.sealed_tasks import SEALED_TASKS, DividedData
from benchmarks.verdict.rows import markdown
from wmlsearch.config import TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.space import SearchSpace

TASK = "ms-flair"
RECORDED = Path(__file__).with_suffix(".jsonl")
SEEDS = (100, 101, 102)
BASELINE, FOUND = "baseline", "found configuration"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "input": ("input_slices", "intensity"),
    "network": ("depth", "base_channels", "network", "norm", "norm_momentum", "dropout"),
    "loss": ("loss", "dice_over", "tversky_alpha"),
    "optimisation": ("optimizer", "learning_rate", "weight_decay", "batch_size", "schedule", "ema"),
    "sampling and augmentation": ("lesion_share", "augment"),
}


@dataclass(frozen=True)
class Run:
    """A training, and its Dice of the sealed patient."""

    division: int
    number: int  # of the found configuration in the recording
    what: str
    seed: int
    sealed: float


def found(division: int) -> tuple[int, Mapping[str, Any]]:
    """Return number and hyperparameters of the configuration with the highest objective on the validation patient."""
    candidates = [each for each in read(TASK) if each.key.division == division and each.key.seed == 0]
    if not candidates:
        raise InputError(f"{TASK} has no recording: python -m benchmarks.search_quality.record --task {TASK}")
    best = max(candidates, key=lambda each: max(each.objective, default=0.0))
    return best.key.number, best.values


def variants(space: SearchSpace, chosen: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the baseline, the found configuration and its ablations: names and searched hyperparameters."""
    baseline = TrialConfig().model_dump()
    yield BASELINE, space.active_values(TrialConfig())
    yield FOUND, chosen
    for group, names in GROUPS.items():
        changed = {**chosen, **{name: baseline[name] for name in names}}
        config = TrialConfig.from_mapping({**space.fixed, **changed}, group)
        yield f"{group} as in the baseline", space.active_values(config)


def recorded(path: Path = RECORDED) -> list[Run]:
    """Return the recorded trainings."""
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def record(raw: Path, path: Path = RECORDED) -> None:
    """Train what the file lacks."""
    space, task = SearchSpace.read(HERE / SPACE), SEALED_TASKS[TASK]
    done = {(run.division, run.number, run.what, run.seed) for run in recorded(path)}
    with tempfile.TemporaryDirectory() as folder:
        data = [DividedData.open(each, "cpu") for each in task.prepare(Path(folder), raw)]
        for division, divided in enumerate(data):
            number, chosen = found(division)
            for what, values in variants(space, chosen):
                for seed in SEEDS:
                    if (division, number, what, seed) in done:
                        continue
                    training = train(space, values, divided, task.epochs, Key(number, seed, division))
                    run = Run(division, number, what, seed, round(training.kept, 4))
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(run)) + "\n")
                    print(run, flush=True)


def table(runs: Sequence[Run]) -> str:
    """Return the table: Dice of each sealed patient, mean and standard deviation over seeds, and the mean over all."""
    task = SEALED_TASKS[TASK]
    chosen = [found(division)[0] for division in range(len(task.divisions))]
    current = [run for run in runs if run.number == chosen[run.division]]
    rows = []
    for what in dict.fromkeys(run.what for run in current):
        scores = [
            np.array([run.sealed for run in current if (run.what, run.division) == (what, division)])
            for division in range(len(chosen))
        ]
        if all(len(of_one) > 1 for of_one in scores):
            means = [of_one.mean() for of_one in scores]
            spread = [f"{of_one.mean():.3f} ± {of_one.std(ddof=1):.3f}" for of_one in scores]
            rows.append((what, *spread, f"{np.mean(means):.3f}"))
    patients = [
        f"sealed {division.sealed[0]} (configuration {number})"
        for division, number in zip(task.divisions, chosen, strict=True)
    ]
    return markdown(("trained", *patients, "mean"), rows)


def main() -> None:
    """Print the table, after training what it lacks with --record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="train what leave_one_out.jsonl lacks")
    parser.add_argument("--ms-flair", type=Path, metavar="FOLDER", help="real patients in BIDS layout")
    given = parser.parse_args()
    if given.record and given.ms_flair is None:
        parser.error("--record needs --ms-flair FOLDER")
    try:
        if given.record:
            record(given.ms_flair)
        print(table(recorded()))
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
