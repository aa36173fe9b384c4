"""What a search is refused for before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.checks import check_trainable
from wmlsearch.runs.folders import GOOD, UNFINISHED, RunDir, SearchDir
from wmlsearch.runs.redaction import without_password
from wmlsearch.space import Choices, SearchSpace
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.provenance import data_record

if TYPE_CHECKING:
    from wmlsearch.cluster.resources import Slots


def check_settings(space: SearchSpace, settings: RunSettings, where: Placement) -> None:
    """Refuse settings and a place that don't fit each other, as far as it is known before Ray starts. InputError."""
    where.check_before_ray(settings.trials)
    if settings.seed + settings.confirm_seeds > 2**32:
        raise InputError(
            f"--seed {settings.seed}: the {settings.confirm_seeds} seeds from there on must be below 2^32; give a "
            "lower one"
        )
    if not where.ray_address:
        check_budgets(space, settings, where.slots(settings.trials))


def check_data(space: SearchSpace, data: Path, workers: int) -> dict[str, Any]:
    """Refuse a search some of whose trials could not train on this data; returns what a run records of the data."""
    prepared = PreparedData.open(data)
    prepared.manifest.verify(data)
    values = {}
    for name, hardest in (("depth", max), ("batch_size", min)):
        if name in space.dimensions:
            domain = space.dimensions[name].domain
            values[name] = hardest(domain.values if isinstance(domain, Choices) else (domain.low, domain.high))
    for config in (space.config(values), TrialConfig()):  # the hardest, and the baseline
        check_trainable(config, prepared, workers)
    if not any(row.lesion_pixels for row in prepared.manifest.slices if row.split == "val"):
        raise InputError(
            f"{data}: the validation slices hold no lesion, so no Dice can be measured; "
            "prepare with other --val-patients or another --seed"
        )
    return data_record(data, prepared)


def check_checkpoints(search: SearchDir, where: Placement) -> None:
    """Refuse to go on from checkpoints that can't be read or aren't there. Raises InputError with all faults.

    Said before anything is started: one that can't be read would only fail its own trial, and what finds none begins at
    its first epoch, so that those in its folder would be lost. Each epoch is in the checkpoint before it is in the
    folder, and the checkpoint goes after the word how a training ended: only of one that is over there may be none.
    """
    from wmlsearch.search.checkpoints import Checkpoints

    faults = []
    seen = bool(where.storage) or not (where.ray_address or "").startswith("ray://")  # else they are on that machine
    trials = [run for run in search.trials() if run.state in UNFINISHED]
    finals = [run for run in search.finals() if run.state not in GOOD]  # those that went wrong have another try
    for run in trials + finals:
        kept = Checkpoints(where.place(run))
        try:
            if not where.storage and run.last.exists():
                load_checkpoint(run.last)
            elif seen and _has_begun(run) and not kept.has_last():
                epoch = len(run.rows()) or run.about()["parent_epoch"]
                faults.append(
                    f"{run.path}: its checkpoint after epoch {epoch} is not in {without_password(where.place(run))}; "
                    "give --storage (or WMLSEARCH_STORAGE) as it was, or delete this folder to train it anew"
                )
        except InputError as error:
            faults.append(str(error))
        finally:
            kept.close()
    if faults:
        raise InputError(f"{search.name}: can't go on from its checkpoints", faults)


def _has_begun(run: RunDir) -> bool:
    """Whether it needs a checkpoint to go on: it has epochs, be they its parent's, and the last is not its end."""
    rows = run.rows()
    return not rows[-1]["ended"] if rows else "parent" in run.about()


def check_budgets(space: SearchSpace, settings: RunSettings, slots: Slots) -> None:
    """Refuse budgets that could not be held to. Raises InputError."""
    from wmlsearch.search.checkpoint_size import bytes_for_best_weights

    bytes_for_best_weights(space, settings, slots)
    final_epochs = settings.final_runs * settings.epochs
    if settings.max_epochs_total is not None and settings.max_epochs_total <= final_epochs:
        raise InputError(
            f"--max-epochs-total {settings.max_epochs_total}: nothing is left for trials, since the "
            f"{settings.final_runs} final runs may take {final_epochs} epochs; give more, or fewer final runs by "
            "--confirm-top and --confirm-seeds"
        )
    if "peak_memory_mb" in settings.objectives and not slots.gpus:
        raise InputError(
            "--objectives peak_memory_mb: no GPU is used here, and the peak of a process that trains one trial after "
            "another on CPUs only rises, so it says nothing of a single trial; leave it out"
        )
    if settings.scheduler == "pbt" and slots.count >= settings.trials:
        raise InputError(
            f"--scheduler pbt: all {settings.trials} trials would begin at once, and no child of a good one could "
            "take the place of a poor one; give more --trials"
        )
    if settings.max_gpu_hours is not None and not slots.gpus:
        raise InputError(
            f"--max-gpu-hours {settings.max_gpu_hours:g}: no GPU is used here, so this budget would never end the "
            "search; give --max-hours instead"
        )


def check_baseline_fits(settings: RunSettings, data: Path, where: Placement, slots: Slots) -> None:
    """Refuse a search whose baseline finds no room in memory, by the slots of its trials. Raises InputError."""
    from wmlsearch.search.memory_admission import check_memory_before_start

    if not settings.baseline:
        return
    paper, manifest = TrialConfig(), Manifest.read(data)
    try:
        fit = check_memory_before_start(paper, manifest, settings.precision, slots, here=not where.ray_address)
    except TimeoutError:  # others hold what the trials will have: then each is asked only before it runs
        return
    if not fit.refusal:
        return
    if slots.gpus and slots.gpus < 1:
        advice = "let fewer trials share a GPU (--trials-per-gpu, --gpus-per-worker)"
    else:
        advice = "share out each batch (--workers-per-trial), prepare with a smaller --size"
    raise InputError(
        f"the baseline, the paper's configuration with batches of {paper.batch_size} images of {manifest.size} x "
        f"{manifest.size} pixels, {fit.refusal} for each of {slots.count} at a time; {advice}, or search without it "
        "(--no-baseline)"
    )
