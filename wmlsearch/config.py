"""The hyperparameters of a trial (`TrialConfig`) and the settings of a run (`RunSettings`).

Validation is strict and reports all faults at once.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wmlsearch.errors import InputError, short_repr, similar_name, unknown_name

# Metrics of the weights of an epoch. The objective, or the first of several, is one of them: it selects the epoch whose
# weights are kept.
QUALITY_METRICS = (
    "val_dice_patients_best",
    "val_dice_best",
    "val_dice",
    "val_iou",
    "val_soft_dice",
    "val_average_precision",
    "val_dice_patients",
)
# All objectives and which direction is better. Loss, speed and memory are allowed only together with a quality metric.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    **dict.fromkeys(QUALITY_METRICS, "maximize"),
    "images_per_s": "maximize",
    **dict.fromkeys(("val_loss", "epoch_s", "peak_memory_mb"), "minimize"),
}


# The paper trained for 18 epochs of 620 steps (3098 slices in batches of 5).
PAPER_EPOCHS, PAPER_STEPS, PAPER_BATCH = 18, 18 * 620, 5
MAX_DEFAULT_EPOCHS = 200  # of a cohort whose epochs have few steps


def epochs_for_slices(training_slices: int) -> int:
    """Return the epochs in which a cohort gets as many steps as the paper's training had, with the baseline's batch.

    At least as many as the paper's, at most `MAX_DEFAULT_EPOCHS`.
    """
    steps = math.ceil(training_slices / PAPER_BATCH)
    return min(max(math.ceil(PAPER_STEPS / max(steps, 1)), PAPER_EPOCHS), MAX_DEFAULT_EPOCHS)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _integers_to_floats(cls, values: Any) -> Any:
        """Accept `learning_rate: 1` as 1.0. Pydantic's strict mode refuses all other conversions, such as true to 1."""
        if not isinstance(values, Mapping):
            return values
        floats = float_fields(cls)
        return {
            name: float(value) if name in floats and type(value) is int and abs(value) < 2**53 else value
            for name, value in values.items()
        }


@functools.cache
def float_fields(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of the fields that hold a float, or a float or None."""
    return frozenset(name for name, field in model.model_fields.items() if "float" in str(field.annotation))


class TrialConfig(_Strict):
    """The hyperparameters of one training: everything that differs between the trials of a search.

    Every default is the value of the published baseline (sections II.B and III of the paper) or, where a description
    says so, this project's choice for what the paper leaves open.
    """

    input_slices: Literal[1, 3, 5] = Field(
        1,
        description="Slices that the network sees at once: the slice that it segments, and its neighbours in the same "
        "scan as further channels. Beyond the scan's edge its last slice is repeated. Not for pictures or splits by "
        "image.",
    )
    intensity: Literal["range", "zscore"] = Field(
        "range",
        description="How grey values are scaled: `range` to 0..1, or `zscore` by mean and standard deviation of the "
        "head in each volume (in each picture).",
    )
    depth: int = Field(4, ge=1, le=8, description="Levels of the U-Net below the first. Each halves the image.")
    base_channels: int = Field(16, ge=1, le=512, description="Filters of the first level. Each level doubles them.")
    up_kernel: Literal[2, 3] = Field(
        2, description="Edge of the transposed convolutions' kernels, in pixels. Not in the paper."
    )
    head_init: Literal["he", "glorot"] = Field(
        "he",
        description="Initial weights of the last convolution: `he` (normal) as everywhere else, or `glorot` (uniform), "
        "which is Keras's default. The paper names He without saying where.",
    )
    network: Literal["paper", "residual"] = Field(
        "paper",
        description="Blocks of the network: those of the `paper`, or `residual` blocks, which add their input to their "
        "result.",
    )
    norm: Literal["batch", "instance"] = Field("batch", description="Normalisation after each convolution.")
    norm_momentum: float = Field(
        0.01,
        gt=0,
        le=1,
        description="`batch`: fraction of the running statistics that each step replaces. 0.01 is Keras's default, 0.1 "
        "is torch's. Not in the paper.",
    )
    norm_epsilon: float = Field(
        1e-5,
        gt=0,
        le=1,
        description="Number added to the variance in a normalisation. 1e-5 is torch's default, 1e-3 is Keras's. Not in "
        "the paper.",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Probability of element-wise dropout in each block.")
    dropout_place: Literal["first", "last", "both"] = Field(
        "first",
        description="Position of dropout in a block: after the `first` convolution, after the `last` one, or after "
        "`both`. Not in the paper.",
    )
    loss: Literal["bce", "dice", "bce_dice", "focal", "tversky"] = Field(
        "bce",
        description="Pixel-wise binary cross-entropy, soft Dice loss, the sum of the two, focal loss with gamma 2, or "
        "Tversky loss.",
    )
    dice_over: Literal["slice", "batch"] = Field(
        "slice",
        description="`dice`, `bce_dice` and `tversky`: whether the loss is computed for each `slice` or over the whole "
        "`batch`. With `slice`, a slice without lesions has almost no gradient.",
    )
    tversky_alpha: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="`tversky`: weight of false positives; the weight of false negatives is 1 - alpha. 0.5 is `dice`; "
        "0.3 was best for MS lesions in the authors' study.",
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="Optimiser. `sgd` has Nesterov momentum 0.9."
    )
    optimizer_epsilon: float = Field(
        1e-8,
        gt=0,
        le=1,
        description="`adam` and `adamw`: added to the root of the squared gradients' mean. 1e-8 is torch's default, "
        "1e-7 is Keras's. Not in the paper.",
    )
    learning_rate: float = Field(
        1e-3, gt=0, le=10, description="Highest learning rate, which `plateau` and `step` start from."
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="Weight decay of the optimiser. Not in the paper.")
    batch_size: int = Field(
        5, ge=1, le=4096, description="Slices per step, over all workers of the trial (global batch size)."
    )
    lesion_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Fraction of slices with lesions in each batch. Of slices with and without lesions, the kind that "
        "has less than its share is drawn several times per epoch, and of the other kind some slices are left out; the "
        "length of an epoch does not change. Null: each slice once per epoch.",
    )
    schedule: Literal["plateau", "cosine", "poly", "step", "onecycle", "constant"] = Field(
        "plateau",
        description="How the learning rate changes during the training. `poly` falls as (1 - t)^0.9, as in nnU-Net.",
    )
    min_learning_rate: float = Field(
        1e-5, ge=0, le=10, description="Lowest learning rate of `plateau`; final learning rate of `cosine` and `poly`."
    )
    plateau_patience: int = Field(
        5,
        ge=1,
        le=100_000,
        description="`plateau`: epochs without a better validation loss before the learning rate is reduced.",
    )
    plateau_factor: float = Field(0.1, gt=0, lt=1, description="`plateau`: factor of each reduction. Not in the paper.")
    plateau_min_delta: float = Field(
        0.0,
        ge=0,
        le=10,
        description="`plateau`: an epoch is better if its validation loss is lower than the lowest so far by more than "
        "this. 1e-4 is Keras's default. Not in the paper.",
    )
    warmup_fraction: float = Field(
        0.0, ge=0, lt=1, description="`cosine`: fraction of all steps during which the learning rate rises."
    )
    step_fraction: float = Field(
        0.5, gt=0, lt=1, description="`step`: fraction of all steps before the learning rate is reduced."
    )
    step_factor: float = Field(0.1, gt=0, lt=1, description="`step`: factor of the reduction.")
    early_stop_patience: int = Field(
        10, ge=1, le=100_000, description="Epochs without a better validation loss before the training ends."
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per step of the moving average of the weights. The averaged weights are validated, stored "
        "and exported. 0: the latest weights, without an average.",
    )
    augment: Literal["none", "flip", "affine", "light", "medium", "strong"] = Field(
        "none",
        description="Augmentation of the training slices. `affine` includes `flip`. `light`, `medium` and `strong` "
        "include both, each to its own degree, and change grey values: gamma, contrast, bias field, blur, noise.",
    )
    flip_axis: Literal["left-right", "columns"] = Field(
        "left-right",
        description="Direction of mirroring in every augmentation: `left-right` of the body, which a sagittal slice "
        "does not show, or the `columns` of any slice, as in older versions.",
    )

    @model_validator(mode="after")
    def _check_learning_rates(self) -> TrialConfig:
        if self.schedule in ("plateau", "cosine", "poly") and self.min_learning_rate > self.learning_rate:
            raise ValueError(
                "min_learning_rate <= learning_rate must hold, "
                f"but got (min_learning_rate={self.min_learning_rate:g}, learning_rate={self.learning_rate:g})"
            )
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "configuration") -> TrialConfig:
        """Validate `values`; names that are left out get the baseline's value. Raises InputError with all faults."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InputError(f"{source}: not a valid configuration", validation_faults(error, cls)) from None

    @classmethod
    def from_record(cls, values: Mapping[str, Any], source: str) -> TrialConfig:
        """Validate the `values` of a file that the program wrote. Names that it lacks get `VALUES_BEFORE`."""
        return cls.from_mapping({**VALUES_BEFORE, **values}, source)


# What the hyperparameters were that the files of older versions do not name, whatever the defaults are now.
VALUES_BEFORE: Mapping[str, Any] = {
    "input_slices": 1,
    "intensity": "range",
    "up_kernel": 2,
    "head_init": "he",
    "norm_momentum": 0.1,
    "norm_epsilon": 1e-5,
    "dropout_place": "first",
    "optimizer_epsilon": 1e-8,
    "plateau_min_delta": 0.0,
    "dice_over": "slice",
    "tversky_alpha": 0.3,
    "network": "paper",
    "lesion_share": None,
    "ema": 0.0,
    "flip_axis": "columns",
}


# Of the epochs, before values say more than hyperparameters do: benchmarks/README.md, "Which of the best survive".
BLIND_SHARE = 2 / 9
# Of the epochs, before trials are compared by their values.
GRACE_SHARE, FEWEST_GRACE_EPOCHS = 1 / 3, 2
PORTFOLIO = 3  # trials from experience, by default


class RunSettings(_Strict):
    """The settings of a run: everything that is the same for all of its trials."""

    epochs: int = Field(
        PAPER_EPOCHS,
        ge=1,
        le=100_000,
        description="Maximum number of epochs of a training. Default of `tune`, `plan` and `train`: enough epochs to "
        "match the paper's number of training steps on your data, "
        f"from {PAPER_EPOCHS} to {MAX_DEFAULT_EPOCHS}. The command prints the number.",
        json_schema_extra={"default_shown": f"depends on the data, {PAPER_EPOCHS} to {MAX_DEFAULT_EPOCHS}"},
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of every random number.")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision of the training. `auto` is bfloat16 where the hardware supports it."
    )
    objective: str = Field(
        "val_dice_patients_best",
        description="Metric of an epoch that scheduler, sampler and leaderboard use to rank trials: "
        f"{', '.join(f'`{name}`' for name in QUALITY_METRICS[:-1])} or `{QUALITY_METRICS[-1]}`.",
    )
    objectives: list[str] = Field(
        default_factory=list,
        description="Several metrics to optimise at once. `objective` is the first of them. Empty: `objective` alone.",
    )
    trials: int = Field(20, ge=1, le=1_000_000, description="Number of configurations to try.")
    # The first budget that is reached ends the trials. What the final runs will need is reserved.
    max_hours: Annotated[float, Field(gt=0, le=1_000_000)] | None = Field(
        None, description="Budget: hours during which the search runs, in all its sessions together."
    )
    max_gpu_hours: Annotated[float, Field(gt=0, le=1_000_000_000)] | None = Field(
        None, description="Budget: GPU hours, summed over all GPUs that trials and final runs hold."
    )
    max_epochs_total: Annotated[int, Field(ge=1, le=1_000_000_000_000)] | None = Field(
        None, description="Budget: epochs of all trials and final runs together."
    )
    target_dice: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="The trials end when one of them reaches this value of the objective, or of "
        "`val_dice_patients_best` if the objective is not a Dice.",
    )
    max_checkpoint_gb: Annotated[float, Field(gt=0, le=1_000_000_000)] | None = Field(
        None,
        description="Maximum size of all checkpoints of trials, in gigabytes (1e9 bytes). None: as much as the running "
        "trials and the five best ones need.",
    )
    sampler: Literal["forest", "tpe", "gp", "random", "qmc", "cmaes"] = Field(
        "forest",
        description="Algorithm that proposes configurations: `forest` is part of wmlsearch, the others are Optuna's.",
    )
    scheduler: Literal["asha", "predictive", "hyperband", "median", "none", "pbt"] = Field(
        "asha",
        description="Algorithm that stops poor trials early: a scheduler of Ray Tune, or one of wmlsearch: "
        "`predictive` compares predicted results, `pbt` replaces poor trials by children of good trials.",
    )
    experience: bool = Field(
        True,
        description="Use recorded trainings of other tasks, to train `predictive` before the first trial and to choose "
        "the configurations of `portfolio`.",
    )
    portfolio: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None,
        description="Number of trials after the baseline that use configurations that together did best on recorded "
        "tasks. None: 3, or 0 without `experience`.",
    )
    grace_epochs: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None,
        description="No trial is stopped before this epoch: the first rung of ASHA and `predictive`. `pbt` compares "
        "trials at each multiple of this number. None: a third of `epochs`, but at least 2; with `predictive` and "
        "`pbt` 2.",
    )
    reduction_factor: int = Field(
        3,
        ge=2,
        le=1_000_000,
        description="ASHA, Hyperband, `predictive`: at each rung, about the best 1/`reduction_factor` of the trials "
        "continue. The next rung is at `reduction_factor` times the epoch of this rung.",
    )
    workers_per_trial: int = Field(1, ge=1, le=4096, description="Workers (processes) that train one trial together.")
    trial_timeout: Annotated[float, Field(gt=0, le=1_000_000_000)] | None = Field(
        None, description="Seconds without a report after which the process of a trial is ended. None: no limit."
    )
    baseline: bool = Field(
        True,
        description="Train the baseline and the best configurations again at the end, test them and give a verdict.",
    )
    confirm_top: int = Field(
        3,
        ge=0,
        le=100,
        description="Number of the best configurations that are compared with the baseline in selection runs.",
    )
    confirm_seeds: int = Field(
        2, ge=1, le=100, description="Selection runs of each configuration, each with another seed and fold."
    )
    final_runs: int = Field(
        5,
        ge=1,
        le=100,
        description="Judgement runs of the champion and of the baseline, each with another seed and fold.",
    )
    postprocessing: Literal["auto", "none"] = Field(
        "auto",
        description="Mirror averaging and removal of small lesions in the final models. `auto`: each is used if it "
        "raises Dice, by more than chance, on patients that a network was not trained on. `none`: never.",
    )
    forecast: bool = Field(True, description="Forecast what the search will cost, before its first trial.")

    @property
    def first_trials(self) -> int:
        """The number of trials after the baseline that come from experience: `portfolio`, or its default."""
        if self.portfolio is not None:
            return self.portfolio
        return PORTFOLIO if self.experience else 0

    @property
    def candidate_count(self) -> int:
        """The maximum number of configurations that are compared with the baseline; the first trial has that one."""
        return min(self.confirm_top, self.trials - 1)

    @property
    def selection_run_count(self) -> int:
        """The maximum number of runs that choose the champion, of the baseline and the best configurations."""
        return (1 + self.candidate_count) * self.confirm_seeds if self.baseline and self.candidate_count else 0

    @property
    def judgement_run_count(self) -> int:
        """The maximum number of runs that are judged on the sealed test, of the baseline and the champion."""
        return self.final_runs * (2 if self.candidate_count else 1) if self.baseline else 0

    @property
    def final_run_count(self) -> int:
        """The maximum number of final runs: those that choose the champion and those that are judged."""
        return self.selection_run_count + self.judgement_run_count

    @property
    def selection_seeds(self) -> list[int]:
        """The seeds of each configuration's selection runs. The trials have `seed`."""
        return [self.seed + 1 + k for k in range(self.confirm_seeds)]

    @property
    def judgement_seeds(self) -> list[int]:
        """The seeds of each configuration's judgement runs, none of which has trained a network before."""
        return [self.seed + 1 + self.confirm_seeds + r for r in range(self.final_runs)]

    @property
    def objective_names(self) -> list[str]:
        """The names of all objectives, one or several."""
        return self.objectives or [self.objective]

    @model_validator(mode="before")
    @classmethod
    def _add_defaults_of_several_objectives(cls, values: Any) -> Any:
        """With several objectives, use the first as `objective`, `tpe` and no scheduler unless others are given."""
        if isinstance(values, Mapping) and isinstance(names := values.get("objectives"), list) and names:
            return {"objective": names[0], "sampler": "tpe", "scheduler": "none", **values}
        return values

    @model_validator(mode="after")
    def _check_objectives(self) -> RunSettings:
        if self.objectives and (faults := list(_objective_faults(self))):
            raise ValueError("\n".join(faults))
        return self

    @model_validator(mode="after")
    def _check_portfolio(self) -> RunSettings:
        if self.portfolio and not self.experience:
            raise ValueError(
                "experience must be true with portfolio, whose trials are from recorded tasks, "
                f"but got (portfolio={self.portfolio}, experience=false)"
            )
        return self

    @property
    def grace(self) -> int:
        """The first epoch after which a trial can be stopped: `grace_epochs`, or its default."""
        if self.grace_epochs is not None:
            return self.grace_epochs
        if self.scheduler in ("predictive", "pbt"):
            return FEWEST_GRACE_EPOCHS
        return max(FEWEST_GRACE_EPOCHS, round(GRACE_SHARE * self.epochs))

    @model_validator(mode="after")
    def _check_pbt(self) -> RunSettings:
        if self.scheduler == "pbt" and self.grace >= self.epochs:
            raise ValueError(
                "grace_epochs < epochs must hold with pbt, which compares trials at each multiple of it, "
                f"but got (grace_epochs={self.grace}, epochs={self.epochs})"
            )
        if self.scheduler == "pbt" and self.trials < 5:
            raise ValueError(
                "trials >= 5 must hold with pbt, because the worst of 4 is the first that a child replaces, "
                f"but got (trials={self.trials})"
            )
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunSettings:
        """Validate `values`. Raises InputError with all faults."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InputError("these settings are not valid", validation_faults(error, cls)) from None

    @classmethod
    def for_new_run(cls, values: Mapping[str, Any]) -> RunSettings:
        """Validate the `values` of a search or training that begins. Raises InputError with all faults.

        Files of older versions can have a single `objective` that is refused here: in Python it was any text.
        """
        settings = cls.from_mapping(values)
        if settings.objective not in QUALITY_METRICS:
            raise InputError("these settings are not valid", [_single_objective_fault(settings.objective)])
        return settings


def _single_objective_fault(name: str) -> str:
    """Return why this metric, none of `QUALITY_METRICS`, cannot be the only objective."""
    fault = (
        f"objective must be {_one_of(QUALITY_METRICS)}, because it is maximized and selects each trial's best epoch "
        f"and its weights, but got {short_repr(name)}"
    )
    if name in OBJECTIVES:
        return f"{fault}; in `objectives`, {name} can stand after one of them"
    similar = similar_name(name, QUALITY_METRICS)
    return fault if similar is None else f"{fault} (did you mean {similar!r}?)"


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _objective_faults(settings: RunSettings) -> Iterator[str]:
    """Yield why these objectives cannot be used together or with the other settings."""
    names = settings.objectives
    if len(names) < 2:
        yield f"objectives must be at least two names, but got {names[0]!r}; a single one is given by --objective"
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"objectives must differ, but {name} is given {names.count(name)} times"
        if name not in OBJECTIVES:
            yield f"objectives: {unknown_name(name, list(OBJECTIVES))}"
    if names[0] in OBJECTIVES and names[0] not in QUALITY_METRICS:
        yield (
            f"objectives must begin with {_one_of(QUALITY_METRICS)}, because the first selects each trial's best epoch "
            f"and its weights, but got {names[0]}"
        )
    elif settings.objective != names[0]:
        yield f"objective must be the first of several ({names[0]}) or left out, but got {settings.objective}"
    if settings.scheduler != "none":
        yield (
            "scheduler must be none with several objectives, because a scheduler ranks trials by one number, "
            f"but got {settings.scheduler}"
        )
    if settings.sampler in ("forest", "cmaes"):
        yield (
            f"sampler must not be {settings.sampler} with several objectives, because it learns from one number; "
            "use tpe or gp"
        )


def validation_faults(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line for each fault of a failed validation, with the most similar valid name for an unknown one."""
    lines = []
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(unknown_name(name, list(model.model_fields)))
        elif fault["type"] == "invalid_key":  # of a mapping in Python: a name that is no text
            lines.append(unknown_name(fault["input"], list(model.model_fields)))
        elif fault["type"] == "value_error":
            lines += str(fault["ctx"]["error"]).splitlines()
        elif fault["type"] == "missing":
            lines.append(f"{name} is missing")
        else:
            rule = fault["msg"].partition(" should ")[2].replace("'", "")
            rule = re.sub("^be a valid dictionary.*", "be an object", rule)
            lines.append(f"{name} must {rule}, but got {short_repr(fault['input'])}")
    return lines
