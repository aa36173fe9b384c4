"""The options of `wmlsearch prepare`, checked together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wmlsearch.data.geometry import PLANES
from wmlsearch.data.labels import MaskRule
from wmlsearch.data.sources.choices import Choices, selection_faults
from wmlsearch.errors import InputError

PAPER_PROTOCOL = {"plane": "sagittal", "keep": "lesion", "split": "image"}  # what `--protocol paper` stands for
CHOICES: dict[str, tuple[str | None, ...]] = {
    "plane": (None, *PLANES, "native"),
    "keep": ("brain", "lesion", "all"),
    "fit": ("crop", "resize"),
    "split": ("patient", "image"),
}
RANGES = {
    "size": (16, 4096),
    "folds": (1, 100),
    "seed": (0, 2**63 - 1),
    "jobs": (1, 1024),
}  # whole numbers, limits included


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `wmlsearch prepare`. InputError lists all that do not fit together."""

    plane: str | None = None  # sagittal, axial, coronal, native; None: native for thick slices, sagittal for isotropic
    size: int = 256  # pixels, edge of the square slices
    keep: str = ""  # brain (default): enough of the head, or a lesion; lesion: annotated slices only; all
    fit: str = "crop"  # crop: a window on the head; resize: the head scaled to the window
    split: str = ""  # patient (default) or image
    train_patients: tuple[str, ...] = ()  # names, with or without sub-
    val_patients: tuple[str, ...] = ()
    test_patients: tuple[str, ...] = ()
    folds: int | None = None  # groups of training and validation patients; None: 5, or fewer where few have lesions
    allow_leakage: bool = False  # needed for image-level splits; duplicates across splits are counted, not refused
    mask_threshold: float | None = None  # mask values above it are lesion
    lesion_labels: tuple[float, ...] = ()  # of the masks; others are background. Without it, masks must be binary
    ignore_labels: tuple[float, ...] = ()  # of the masks, left out of training and every score
    nan_background: bool = False  # voxels that are not finite are background wherever they are
    seed: int = 0  # of the split
    protocol: str | None = None  # paper: sagittal, annotated slices only, image-level split
    patient_pattern: str | None = None  # regular expression that finds the patient in file names without a layout's own
    select: tuple[str, ...] = ()  # KEY=VALUE: which image of a scan, where there are several
    mask_select: tuple[str, ...] = ()  # KEY=VALUE: which mask of a scan
    jobs: int | None = None  # processes; None: chosen by the number of cores and the size of the files
    pseudonyms: Path | None = None  # file of the table by which patients are renamed; None: they keep their ids

    def __post_init__(self) -> None:
        faults = self._apply_protocol()
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                choices = ", ".join(choice for choice in allowed if choice)
                faults.append(f"--{name} must be one of {choices}, but got {getattr(self, name)!r}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and low <= value <= high):
                faults.append(f"--{name} must be a whole number from {low} to {high}, but got {value!r}")
        faults += self.mask_rule.faults()
        faults += selection_faults("--select", self.select) + selection_faults("--mask-select", self.mask_select)
        if self.split == "image" and not self.allow_leakage:
            faults.append(
                "--split image puts slices of one patient into train and test, so results look better than they are "
                "(leakage); split by patient, or add --allow-leakage to do it and have it marked everywhere"
            )
        if self.split == "image" and (self.train_patients or self.val_patients or self.test_patients):
            faults.append("--train-patients, --val-patients and --test-patients need --split patient; drop them")
        if (self.folds or 1) > 1 and (self.split == "image" or self.train_patients):
            reason = "--split image has" if self.split == "image" else "with --train-patients there is"
            faults.append(f"--folds {self.folds}: {reason} one validation set; drop one of them")
        if faults:
            raise InputError("the options do not fit together", faults)

    @property
    def mask_rule(self) -> MaskRule:
        """Which values of the raw masks are lesions, and which are ignored."""
        return MaskRule(self.mask_threshold, self.lesion_labels, self.ignore_labels)

    @property
    def choices(self) -> Choices:
        """The options that choose among the files of a raw data set."""
        return Choices(self.patient_pattern, self.select, self.mask_select, bool(self.lesion_labels))

    @property
    def has_folds(self) -> bool:
        """Whether each patient that is not sealed may be used for validation: not where some are named for training."""
        return self.split == "patient" and self.folds != 1 and not self.train_patients

    def _apply_protocol(self) -> list[str]:
        """Set what the protocol, or the default, stands for. Returns a line for each option that contradicts it."""
        faults = []
        if self.protocol not in (None, "paper"):
            faults.append(f"--protocol must be paper, but got {self.protocol!r}")
        implied = PAPER_PROTOCOL if self.protocol == "paper" else {}
        for name, value in implied.items():
            if getattr(self, name) not in (None, "", value):
                faults.append(
                    f"--protocol paper means --{name} {value}, but got --{name} {getattr(self, name)}; drop one"
                )
        for name, default in ({"keep": "brain", "split": "patient"} | implied).items():
            object.__setattr__(self, name, getattr(self, name) or default)
        object.__setattr__(self, "allow_leakage", self.allow_leakage or bool(implied))
        return faults
