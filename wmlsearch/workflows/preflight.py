"""Preflight: everything about a search is read, checked and decided here, once, before its first trial.

`check_new_search`, `check_resumed_search` and `check_forecast` refuse what cannot run before Ray starts. `plan_search`
needs Ray: it decides how many trials run at once and refuses what does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wmlsearch.config import PAPER_EPOCHS, RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.sealed_test import check_sealed_test
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.checks import (
    BALANCES_NOTHING,
    MIRRORS_NOTHING,
    balances_nothing,
    check_trainable,
    check_validation_lesions,
    mirrors_nothing,
)
from wmlsearch.runs.folders import RunDir, SearchDir, check_new
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import GOOD, UNFINISHED, EarlierTrial
from wmlsearch.runs.wording import plural
from wmlsearch.space import Choices, SearchSpace, Value, different_configurations, vain_values
from wmlsearch.space.effects import NEEDED
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.provenance import data_record
from wmlsearch.workflows.search_plan import CheckedData, ResumeRequest, SearchPlan, SearchRequest

if TYPE_CHECKING:
    from wmlsearch.cluster.resources import Reserved, Slots
    from wmlsearch.forecast.gpu_sharing import Packing
    from wmlsearch.search.warm_start import EarlierTrials


def check_new_search(search: SearchDir, request: SearchRequest) -> CheckedData:
    """Check what can be checked of a new search before Ray starts. Raises InputError."""
    check_new(search.path)
    check_settings(request.space, request.settings, request.placement)
    request.placement.check_storage_unused(search)
    if request.settings.baseline:
        check_sealed_test(request.data)
    return check_data(request)


def check_resumed_search(search: SearchDir, request: ResumeRequest) -> CheckedData:
    """Check what can be checked of a search that is resumed before Ray starts. Raises InputError."""
    data, recorded = request.data, request.recorded_data
    manifest = Manifest.read(data)
    if manifest.fingerprint != recorded.fingerprint:
        raise InputError(
            f"{data}: is not the data set of {search.name} (its fingerprint is {manifest.fingerprint[:12]}, not "
            f"{recorded.fingerprint[:12]}); give the right one with --data, or start a new search"
        )
    check_settings(request.space, request.settings, request.placement, resumed=True)
    manifest.verify(data)
    check_checkpoints(search, request.placement)
    if request.settings.baseline:
        check_sealed_test(data)
    return CheckedData(manifest, recorded)


def check_forecast(request: SearchRequest) -> CheckedData:
    """Check what can be checked of a search that is only forecast, before Ray starts. Raises InputError."""
    check_settings(request.space, request.settings, request.placement)
    return check_data(request)


def check_before_data(space: SearchSpace, settings: RunSettings, placement: Placement, epochs_given: bool) -> None:
    """Check what can be checked of a new search before the phantom is made. Raises InputError.

    Where the data decide the number of epochs, it is at least the paper's.
    """
    check_settings(space, settings if epochs_given else settings.model_copy(update={"epochs": PAPER_EPOCHS}), placement)


def read_earlier_trials(request: SearchRequest, data: CheckedData, say: Callable[[str], None]) -> EarlierTrials:
    """Return the trials of earlier searches that the study starts with, and how many were left out, by reason.

    Says how many they are.
    """
    from wmlsearch.search.warm_start import select_earlier_trials

    fingerprint = data.manifest.fingerprint
    earlier = select_earlier_trials(request.warm_start, request.space, request.settings, fingerprint)
    if request.warm_start:
        reasons = "".join(f", {count} left out ({reason})" for reason, count in sorted(earlier.left_out.items()))
        say(f"the study starts with {plural(len(earlier.taken), 'trial')} of earlier searches{reasons}")
    return earlier


def note_no_effect(space: SearchSpace, manifest: Manifest, say: Callable[[str], None]) -> None:
    """Say which values of a search space change nothing: on these data, or beside others."""
    for name, (beside, has_effect) in vain_values(space).items():
        other, needed = NEEDED[name]
        possible = [value for value in needed if value in space.domain(other)]
        condition = f"{other}: {possible[0] if len(possible) == 1 else '[' + ', '.join(possible) + ']'}"
        if not has_effect:
            advice = "leave it out"
        elif space.dimensions[name].when:
            advice = f"add `{condition}` to its `when`"
        else:
            advice = f"give it `when: {{{condition}}}`"
        say(f"note: {space.source}: {name} has no effect beside {other} {' or '.join(map(str, beside))}; {advice}")
    config = TrialConfig(augment="flip")
    names = ("augment", "flip_axis", "input_slices")
    if all(getattr(config, name) in space.domain(name) for name in names) and mirrors_nothing(config, manifest.axis):
        say(f"note: {space.source}: {MIRRORS_NOTHING}")
    if balances_nothing(_most_demanding(space), manifest):
        say(f"note: {space.source}: {BALANCES_NOTHING}")


def note_few_configurations(space: SearchSpace, settings: RunSettings, say: Callable[[str], None]) -> None:
    """Say if a space has fewer configurations than a search has trials."""
    configurations = different_configurations(space, settings.trials - 1)
    if configurations is None:
        return
    end = "trials repeat them" if settings.scheduler == "pbt" else "the search ends when each of them has been tried"
    say(
        f"note: {space.source} has {plural(len(configurations), 'configuration')}, fewer than --trials "
        f"{settings.trials}, so {end}"
    )


def choose_first_trials(
    request: SearchRequest, earlier: Sequence[EarlierTrial], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return what experience says of the trials after the baseline (--portfolio). Says if it is of fewer than asked.

    A configuration that an earlier search of --warm-start has tried is not tried again.
    """
    wanted = request.settings.first_trials
    if not wanted:
        return []
    from wmlsearch.search.portfolio import choose_portfolio

    portfolio = choose_portfolio(request.space, wanted, [TrialConfig(), *(trial.config for trial in earlier)])
    if request.settings.portfolio and len(portfolio) < wanted:
        say(
            f"note: experience gives {plural(len(portfolio), 'configuration')} instead of the {wanted} of --portfolio: "
            "the other recorded configurations are outside this space, or the same in it"
        )
    return portfolio


def plan_search(request: SearchRequest, data: CheckedData, say: Callable[[str], None]) -> SearchPlan:
    """Decide what needs Ray, to which this process is connected. Raises InputError for what does not fit."""
    settings, reserved = request.settings, request.placement.reserved()
    placement, packing = resolve_trials_per_gpu(request, data.manifest, reserved, say)
    slots = placement.slots(settings.trials, reserved)
    check_budgets(request.space, settings, slots, resumed=isinstance(request, ResumeRequest))
    plan = SearchPlan(
        space=request.space,
        settings=settings,
        data=request.data,
        manifest=data.manifest,
        data_record=data.record,
        placement=placement,
        slots=slots,
        reserved=reserved,
        forecast_final_slots=placement.slots(
            max(settings.selection_run_count, settings.judgement_run_count, 1), reserved
        ),
        packing=packing,
    )
    placement.wait_for_machines(slots, reserved, say)
    check_baseline_fits(plan)
    return plan


# ------------------------------------------------------------------------------------------------- before Ray starts


def check_settings(space: SearchSpace, settings: RunSettings, placement: Placement, resumed: bool = False) -> None:
    """Refuse settings and a placement that cannot run, or not together. Raises InputError."""
    placement.check_before_ray(settings.trials)
    if settings.judgement_seeds[-1] >= 2**32:
        raise InputError(
            f"--seed {settings.seed}: the final runs use the {settings.confirm_seeds + settings.final_runs} seeds "
            "after this one, and each must be below 2^32; give a lower seed"
        )
    if not placement.on_cluster:
        check_budgets(space, settings, placement.slots(settings.trials), resumed)


def check_data(request: SearchRequest) -> CheckedData:
    """Refuse a data set that is damaged, or on which some configuration of the space cannot train. InputError."""
    space, data = request.space, request.data
    prepared = PreparedData.open(data)
    prepared.manifest.verify(data)
    manifest = prepared.manifest
    for fold in range(manifest.fold_count):
        for config in (_most_demanding(space), TrialConfig()):
            check_trainable(config, prepared.with_fold(fold), request.placement.workers_per_trial)
    check_validation_lesions(manifest, data, range(manifest.fold_count))
    return CheckedData(manifest, data_record(data, prepared))


def _most_demanding(space: SearchSpace) -> TrialConfig:
    """Return the configuration of a space that is hardest to train on data.

    It needs the biggest images, the fewest a batch, slices with lesions, most neighbours of a slice, and the grey
    values of the head.
    """
    values: dict[str, Value] = {}
    if "zscore" in space.domain("intensity"):
        values["intensity"] = "zscore"
    for name, extreme in (("depth", max), ("batch_size", min), ("lesion_share", min), ("input_slices", max)):
        if name in space.dimensions:
            domain = space.dimensions[name].domain
            every = domain.values if isinstance(domain, Choices) else (domain.low, domain.high)
            values[name] = extreme((value for value in every if isinstance(value, int | float)), default=None)
    # Learning rates are left as in the baseline, and make no demands; a minimum that is fixed may be above that rate.
    return space.config({**values, "min_learning_rate": 0.0})


def check_checkpoints(search: SearchDir, placement: Placement) -> None:
    """Refuse to resume a search if a checkpoint that it needs is missing or damaged. Raises InputError with all faults.

    A trial with a damaged checkpoint would only fail. A trial without its checkpoint would start at its first epoch,
    and the epochs in its folder would be lost. An epoch is in the checkpoint before it is in the run folder, and a
    checkpoint is deleted after the run folder says how the training ended, so only an ended training may lack one.
    """
    from wmlsearch.search.checkpoints import stored_files

    faults = []
    trials = [run for run in search.trials() if run.state in UNFINISHED]
    finals = [run for run in search.finals() if run.state not in GOOD]  # a failed final run is tried again
    stored = stored_files(search, trials + finals, placement.checkpoint_location)
    for run in trials + finals:
        try:
            if not placement.storage and run.last.exists():
                load_checkpoint(run.last)
            elif _needs_checkpoint(run) and run.last.name not in stored[run]:
                epoch = len(run.rows()) or run.record().parent_epoch
                location = without_password(placement.checkpoint_location(run))
                faults.append(
                    f"{run.path}: its checkpoint after epoch {epoch} is not in {location}; "
                    "give --storage (or WMLSEARCH_STORAGE) as before, or delete this folder to train it again"
                )
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError(f"{search.name}: cannot be resumed from its checkpoints", faults)


def _needs_checkpoint(run: RunDir) -> bool:
    """Return whether a run has epochs, of its own or of its parent, and the last of them is not its end."""
    rows = run.rows()
    return not rows[-1].ended if rows else run.record().parent is not None


# --------------------------------------------------------------------------------------------------------- with Ray


def resolve_trials_per_gpu(
    request: SearchRequest, manifest: Manifest, reserved: Reserved, say: Callable[[str], None]
) -> tuple[Placement, Packing | None]:
    """Return the request's placement with a number of trials per GPU; "auto" is measured.

    If the measurement fails, each trial has a GPU of its own. Raises InputError if there is no GPU to share.
    """
    from wmlsearch.cluster.data_shipping import make_shipment
    from wmlsearch.forecast.gpu_sharing import choose_trials_per_gpu
    from wmlsearch.model.throughput import mps_is_on

    placement = request.placement
    if placement.trials_per_gpu == 1:
        return placement, None
    whole_gpu = placement.slots(request.settings.trials, reserved)
    if placement.trials_per_gpu != "auto":
        if not isinstance(request, ResumeRequest):  # a resumed search has said it when it began
            say(f"{placement.trials_per_gpu} trials share a GPU; NVIDIA MPS is {'on' if mps_is_on() else 'off'}")
        return placement, None
    placement.wait_for_machines(whole_gpu, reserved, say)
    say("trials per GPU: timing the baseline configuration with one trial, with two at once, and so on ...")
    try:
        shipment = make_shipment(request.data, manifest.fingerprint, send=placement.on_cluster)
        packing = choose_trials_per_gpu(request.space, request.settings, shipment, whole_gpu)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        say(f"each trial has a GPU of its own, since the measurement failed ({reason})")
        return replace(placement, trials_per_gpu=1), None
    say(str(packing))
    return replace(placement, trials_per_gpu=packing.trials_per_gpu), packing


def check_budgets(space: SearchSpace, settings: RunSettings, slots: Slots, resumed: bool = False) -> None:
    """Refuse budgets and objectives that make no sense with these slots. Raises InputError.

    A resumed search goes on with its final runs, whatever is left of its epochs for trials, and with the trials that
    are left, however many run at once.
    """
    from wmlsearch.search.checkpoint_size import bytes_for_best_weights

    bytes_for_best_weights(space, settings, slots)
    final_epochs = settings.final_run_count * settings.epochs
    if not resumed and settings.max_epochs_total is not None and settings.max_epochs_total <= final_epochs:
        raise InputError(
            f"--max-epochs-total {settings.max_epochs_total}: no epochs are left for trials, since the "
            f"{settings.final_run_count} final runs may take {final_epochs}; give more, or fewer final runs by "
            "--final-runs, --confirm-top and --confirm-seeds"
        )
    if "peak_memory_mb" in settings.objectives and not slots.gpus:
        raise InputError(
            "--objectives peak_memory_mb: cannot be measured on CPUs, since the peak memory of a process that trains "
            "one trial after another never falls; leave it out"
        )
    if not resumed and settings.scheduler == "pbt" and slots.count >= settings.trials:
        raise InputError(
            f"--scheduler pbt: all {settings.trials} trials would start at once, so no child of a good trial could "
            "replace a poor one; give more --trials"
        )
    if settings.max_gpu_hours is not None and not slots.gpus:
        raise InputError(
            f"--max-gpu-hours {settings.max_gpu_hours:g}: no GPU is used, so this budget would never end the "
            "search; give --max-hours instead"
        )


def check_baseline_fits(plan: SearchPlan) -> None:
    """Refuse a search whose baseline needs more memory than a slot has. Raises InputError."""
    from wmlsearch.search.memory_admission import check_memory_before_start

    if not plan.settings.baseline:
        return
    baseline, slots, size = TrialConfig(), plan.slots, plan.manifest.size
    try:
        fit = check_memory_before_start(
            baseline, plan.manifest, plan.settings.precision, slots, on_this_machine=not plan.placement.on_cluster
        )
    except TimeoutError:  # other programs hold the resources: memory admission then asks before each trial
        return
    if not fit.refusal:
        return
    if slots.gpus and slots.gpus < 1:
        advice = "let fewer trials share a GPU (--trials-per-gpu, --gpus-per-worker)"
    else:
        advice = "split each batch over more workers (--workers-per-trial), prepare the data with a smaller --size"
    raise InputError(
        f"the baseline configuration with batches of {baseline.batch_size} images of {size} x {size} pixels "
        f"{fit.refusal} for each of {slots.count} trials at a time; {advice}, or search without it (--no-baseline)"
    )
