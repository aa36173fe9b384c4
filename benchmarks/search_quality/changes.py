"""What a change to a configuration gains on hard cohorts: real trainings, scored on sealed patients.

    python -m benchmarks.search_quality.changes                                     the table of changes.jsonl
    python -m benchmarks.search_quality.changes --record [--cohorts 2] [--part 1/2]   train what it lacks

The configurations are the baseline, a recipe put together by hand, the same with residual blocks, and changes to each.
The cohorts are like those of searches.py with other seeds: 48 patients, of whom 19 train, 5 validate and 24 are sealed.
Each configuration is trained once on each cohort, and scored by its best epoch, that with the highest objective on the
patients that validate, with the threshold that those choose. "gain" is the difference to the configuration that was
changed, paired by patient, with an interval by bootstrap over the patients of all cohorts. It says how patients differ,
and little of how trainings with other seeds would. Two recorders may share the work: `--part 1/2` and `--part 2/2`.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t

from benchmarks.search_quality.outcome import interval
from benchmarks.search_quality.sealed_tasks import DividedData, Division, SealedTask
from benchmarks.verdict.rows import markdown
from wmlsearch.config import TrialConfig
from wmlsearch.model.metrics import BINS, patient_dice
from wmlsearch.model.steps import Diverged
from wmlsearch.model.training import Trainer
from wmlsearch.model.validation import Validation

RECORDED = Path(__file__).with_suffix(".jsonl")
OBJECTIVE = "val_dice_patients_best"
FIRST_COHORT = 101  # seed of the first cohort: the searches have the first ones
EPOCHS, SEED, PRECISION = 30, 0, "auto"
BASELINE, RECIPE, RESIDUAL = "the baseline", "the recipe", "the recipe, residual"
RECIPE_VALUES: Mapping[str, Any] = {
    "loss": "bce_dice", "dice_over": "batch", "learning_rate": 3e-3, "schedule": "cosine", "warmup_fraction": 0.1,
    "augment": "medium", "lesion_share": 0.5,
}  # fmt: skip
TO_BASELINE: Mapping[str, Mapping[str, Any]] = {
    "learning_rate 3e-3": {"learning_rate": 3e-3},
    "learning_rate 3e-3, cosine": {"learning_rate": 3e-3, "schedule": "cosine"},
    "bce_dice over the batch": {"loss": "bce_dice", "dice_over": "batch"},
    "augment medium": {"augment": "medium"},
    "lesion_share 0.5": {"lesion_share": 0.5},
}
BOUND = ("early_stop_patience", "warmup_fraction")  # the same in all, or with `schedule`
TOGETHER: Mapping[str, Any] = {"intensity": "zscore", "input_slices": 3, "ema": 0.99}
TO_RECIPE: Mapping[str, Mapping[str, Any]] = {
    "lesion_share null": {"lesion_share": None},
    "augment none": {"augment": "none"},
    "augment strong": {"augment": "strong"},
    "network residual": {"network": "residual"},
    "intensity zscore": {"intensity": "zscore"},
    "input_slices 3": {"input_slices": 3},
    "ema 0.99": {"ema": 0.99},
    "loss bce": {"loss": "bce"},
    "lesion_share 0.8": {"lesion_share": 0.8},
    "norm instance": {"norm": "instance"},
    "dice_over slice": {"dice_over": "slice"},
    "learning_rate 1e-3": {"learning_rate": 1e-3},
    "augment affine": {"augment": "affine"},
    "augment light": {"augment": "light"},
    "depth 3": {"depth": 3},
    "zscore, 3 slices, ema": TOGETHER,
    "zscore, 3 slices, ema, bce": {**TOGETHER, "loss": "bce"},
    "zscore, 3 slices, ema, lesion_share 0.8": {**TOGETHER, "lesion_share": 0.8},
    "zscore, 3 slices, ema, light": {**TOGETHER, "augment": "light"},
}
TO_RESIDUAL: Mapping[str, Mapping[str, Any]] = {
    change: TO_RECIPE[change]
    for change in (
        "lesion_share null", "lesion_share 0.8", "loss bce", "intensity zscore", "input_slices 3", "learning_rate 1e-3",
    )
}  # fmt: skip
VALUES: Mapping[str, Mapping[str, Any]] = {
    BASELINE: {}, RECIPE: RECIPE_VALUES, RESIDUAL: {**RECIPE_VALUES, "network": "residual"},
}  # fmt: skip
CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    BASELINE: TO_BASELINE, RECIPE: TO_RECIPE, RESIDUAL: TO_RESIDUAL,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A configuration, and the one that it changes."""

    of: str  # BASELINE, RECIPE or RESIDUAL
    change: str  # "" for that configuration itself

    @property
    def config(self) -> TrialConfig:
        values = {**VALUES[self.of], **(CHANGES[self.of][self.change] if self.change else {})}
        return TrialConfig.from_mapping({**values, "early_stop_patience": EPOCHS})

    @property
    def compared_with(self) -> Variant | None:
        """The configuration that it is compared with."""
        if not self.change:
            return Variant(BASELINE, "") if self.of == RECIPE else None
        return Variant(RECIPE, "network residual") if self.of == RESIDUAL else Variant(self.of, "")


@dataclass(frozen=True)
class Run:
    """A training: the Dice of each sealed patient with lesions at its best epoch."""

    of: str
    change: str
    cohort: int
    objective: tuple[float, ...]  # by epoch
    sealed: tuple[float, ...]

    @property
    def variant(self) -> Variant:
        return Variant(self.of, self.change)


def variants() -> list[Variant]:
    """Return all configurations, in the order in which they are recorded."""
    return [
        *(Variant(of, "") for of in (BASELINE, RECIPE)),
        *(Variant(of, change) for of in (RECIPE, BASELINE, RESIDUAL) for change in CHANGES[of]),
    ]


def task() -> SealedTask:
    """Return how the patients of a cohort are divided."""
    names = [f"{number:02d}" for number in range(1, 49)]
    division = Division(train=tuple(names[:19]), val=tuple(names[19:24]), sealed=tuple(names[24:]))
    return SealedTask((division,), size=48, epochs=EPOCHS, cohort="hard", shape=(48, 48, 16), lesion_size=2)


def train(config: TrialConfig, data: DividedData, epochs: int = EPOCHS) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Train a configuration on one thread. Returns its objective by epoch, and the Dice of each sealed patient.

    A training that diverges is scored by its epochs before; without any, its Dice is 0.
    """
    torch.set_num_threads(1)
    trainer, sealed = Trainer(config, data.data, epochs, SEED, PRECISION), data.sealed.with_input_of(config).val
    best, threshold = trainer.kept_unet, 0.5
    objective: list[float] = []
    while trainer.ended is None:
        try:
            row = trainer.train_epoch()
        except Diverged:
            break
        objective.append(row.metrics[OBJECTIVE] or 0.0)
        if trainer.is_best(OBJECTIVE):
            best, threshold = copy.deepcopy(trainer.kept_unet), trainer.threshold
    with torch.no_grad():
        counts = Validation(best, sealed, trainer.loss, bfloat16=False).run()
    scores = patient_dice(counts.patient_histograms())[:, round(threshold * BINS)]
    return tuple(objective), tuple(float(score) if objective else 0.0 for score in scores)


def recorded(path: Path = RECORDED) -> list[Run]:
    """Return the recorded trainings."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    fields = map(json.loads, lines)
    return [Run(**{**each, "objective": tuple(each["objective"]), "sealed": tuple(each["sealed"])}) for each in fields]


def record(cohorts: Sequence[int], part: int, parts: int, path: Path = RECORDED) -> None:
    """Train what the file lacks on these cohorts, each `parts`-th from `part` on, 0 being the first."""
    due = [(variant, cohort) for variant in variants() for cohort in cohorts][part::parts]
    done = {(run.variant, run.cohort) for run in recorded(path)}
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def data(cohort: int) -> DividedData:
            (prepared,) = task().prepare(Path(folder) / f"{cohort}", seed=cohort)
            return DividedData.open(prepared, "cpu")

        for variant, cohort in due:
            if (variant, cohort) not in done:
                objective, sealed = (
                    tuple(round(each, 4) for each in part) for part in train(variant.config, data(cohort))
                )
                run = Run(variant.of, variant.change, cohort, objective, sealed)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
                print(f"cohort {cohort}, {variant.of}, {variant.change}: sealed {np.mean(sealed):.3f}", flush=True)


def table(runs: Sequence[Run]) -> str:
    """Return a table with a row for each configuration that has all cohorts of the baseline."""
    by_key = {(run.variant, run.cohort): run for run in runs}
    rows = list[tuple[str, str, str, str]]()
    cohorts = sorted({run.cohort for run in runs if run.variant == Variant(BASELINE, "")})
    for variant in variants():
        found = [by_key[variant, cohort] for cohort in cohorts if (variant, cohort) in by_key]
        if not found or len(found) < len(cohorts):
            continue
        gain, other = "", variant.compared_with
        if other and all((other, cohort) in by_key for cohort in cohorts):
            gains = np.concatenate([np.subtract(run.sealed, by_key[other, run.cohort].sealed) for run in found])
            gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval(gains))
        means = " ".join(f"{np.mean(run.sealed):.3f}" for run in found)
        name = f"{variant.of}: {variant.change}" if variant.change else variant.of
        rows.append((name, means, f"{np.mean([np.mean(run.sealed) for run in found]):.3f}", gain))
    return markdown(("configuration", "sealed Dice by cohort", "mean", "gain [95 %]"), rows)


def parts(config: TrialConfig) -> list[str]:
    """Return in what a configuration differs from the baseline: what has an effect together is one part."""
    baseline = TrialConfig()
    found = [f"{config.loss} over the {config.dice_over}"] if config.loss != baseline.loss else []
    if config.lesion_share is not None:
        found.append(f"lesion_share {config.lesion_share}, with {config.loss}")
    alone = set(TrialConfig.model_fields) - {*BOUND, "loss", "dice_over", "lesion_share"}
    return found + [
        f"{name} {getattr(config, name)}"
        for name in TrialConfig.model_fields
        if name in alone and getattr(config, name) != getattr(baseline, name)
    ]


def effects(runs: Sequence[Run]) -> str:
    """Return a table of what each part of the configurations gains beside the others, by least squares.

    Each cohort is a term too. The interval is of 95 %, and counts the spread between trainings.
    """
    of_runs = [parts(run.variant.config) for run in runs]
    counts = Counter(part for of_run in of_runs for part in of_run)
    names = list(counts)
    cohorts = sorted({run.cohort for run in runs})
    terms = np.array(
        [
            [*(run.cohort == cohort for cohort in cohorts), *(name in of_run for name in names)]
            for run, of_run in zip(runs, of_runs, strict=True)
        ],
        dtype=float,
    )
    dice = np.array([np.mean(run.sealed) for run in runs])
    gains = np.linalg.lstsq(terms, dice, rcond=None)[0]
    freedom = len(dice) - terms.shape[1]
    variance = float(((dice - terms @ gains) ** 2).sum()) / freedom
    half = student_t.ppf(0.975, freedom) * np.sqrt(variance * np.diag(np.linalg.inv(terms.T @ terms)))
    rows = [
        (name, f"{gain:+.3f} ± {width:.3f}", counts[name])
        for name, gain, width in zip(names, gains[len(cohorts) :], half[len(cohorts) :], strict=True)
    ]
    return markdown(("part of a configuration", "gain in sealed Dice [95 %]", "trainings with it"), rows)


def main() -> None:
    """Print the table, after training what it lacks with --record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="train what is not in changes.jsonl")
    parser.add_argument("--cohorts", type=int, default=2, metavar="N", help="number of cohorts (default: 2)")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="train the K-th of N parts (default: all)")
    given = parser.parse_args()
    if given.record:
        part, parts = map(int, given.part.split("/"))
        record(range(FIRST_COHORT, FIRST_COHORT + given.cohorts), part - 1, parts)
    print(table(recorded()), effects(recorded()), sep="\n\n")


if __name__ == "__main__":
    main()
