"""The commands that make data: `phantom` and `prepare`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from wmlsearch.cli import options
from wmlsearch.cli.options import say
from wmlsearch.errors import InputError


@click.command(short_help="Write a synthetic FLAIR cohort with known lesions.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--patients", type=int, default=20, show_default=True, help="Number of patients.")
@click.option("--timepoints", type=int, default=2, show_default=True, help="Number of scans per patient.")
@click.option(
    "--shape",
    default="128x128x24",
    show_default=True,
    metavar="XxYxZ",
    help="Voxels of a volume.",
)
@click.option(
    "--lesion-size",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor by which the diameters of the lesions are multiplied. Larger lesions are fewer and easier to find.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same files.")
@click.option(
    "--cohort",
    type=click.Choice(["easy", "hard"]),
    default="easy",
    show_default=True,
    help="hard: three scanners, lesions as small as 3 mm, and more structures that look like lesions.",
)
def phantom(out: Path, patients: int, timepoints: int, shape: str, lesion_size: float, seed: int, cohort: str) -> None:
    """Write a synthetic FLAIR cohort with known lesions, as a raw BIDS data set.

    Example: wmlsearch phantom phantom-raw --patients 10
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.data.phantom import write_phantom
    from wmlsearch.runs.wording import command, plural

    if not re.fullmatch(r"\d{1,4}x\d{1,4}x\d{1,4}", shape):
        raise InputError(f"--shape {shape!r}: must be three numbers like 128x128x24 (right, anterior, superior)")
    x, y, z = (int(number) for number in shape.split("x"))
    bar, advance = progress_bar(console())
    with bar:
        write_phantom(
            out,
            patients=patients,
            timepoints=timepoints,
            shape=(x, y, z),
            lesion_size=lesion_size,
            seed=seed,
            cohort=cohort,
            progress=lambda done, total: advance("volumes", done, total),
        )
    options.say(
        f"wrote {plural(patients, 'patient')} with {plural(timepoints, 'scan')} each to {out}; "
        f"next: {command('prepare', out, 'prepared')}"
    )


def _labels(option: str, values: tuple[str, ...]) -> tuple[float, ...]:
    """Return the numbers of an option that is given several times, each with one number or several with commas."""
    parts = [part.strip() for value in values for part in value.split(",")]
    try:
        return tuple(dict.fromkeys(float(part) for part in parts))
    except ValueError:
        raise InputError(f"{option} must be whole numbers, such as 1 or 1,2, but got {', '.join(values)!r}") from None


@click.command(short_help="Turn raw images and masks into a prepared data set.")
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show which images and masks would be used, which would not, and why. Writes nothing and needs no OUT.",
)
@click.option(
    "--select",
    multiple=True,
    metavar="KEY=VALUE",
    help="Select the image of a scan that has several: by a BIDS entity (acq=3D), derivative=FOLDER, suffix=T2w, "
    "name='*PATTERN*', or channel=0 (nnU-Net and MONAI). KEY=none selects names without that key. May be repeated; if "
    "a key is given several values, the first one that exists is used.",
)
@click.option(
    "--mask-select",
    multiple=True,
    metavar="KEY=VALUE",
    help="Select the mask of a scan in the same way: desc=rater1, derivative=FOLDER, suffix=dseg. A mask whose name "
    "says that it shows something other than lesions is used only if it is selected here.",
)
@click.option(
    "--plane",
    type=click.Choice(["sagittal", "axial", "coronal", "native"]),
    help="Plane in which volumes are sliced.  [default: native for thick slices, sagittal for isotropic volumes]",
)
@click.option("--size", type=int, default=256, show_default=True, help="Edge of the square slices, in pixels.")
@click.option(
    "--keep",
    type=click.Choice(["brain", "lesion", "all"]),
    help="Slices to train on. brain: with enough of the head, or a lesion; lesion: annotated slices; all.  "
    "[default: brain]",
)
@click.option(
    "--fit",
    type=click.Choice(["crop", "resize"]),
    default="crop",
    show_default=True,
    help="crop: a window on the head; resize: the head scaled to the window.",
)
@click.option(
    "--split",
    type=click.Choice(["patient", "image"]),
    help="Unit that is assigned to training, validation and test.  [default: patient]",
)
@click.option(
    "--train-patients",
    help="Training patients by name, separated by commas. There is then one validation set and no folds.",
)
@click.option("--val-patients", help="Validation patients by name, separated by commas: the first fold.")
@click.option("--test-patients", help="Test patients by name, separated by commas.")
@click.option(
    "--folds",
    type=int,
    help="Number of folds. Training and validation patients are divided into folds with similar lesion loads and "
    "sites. Trials validate on the first fold, final runs on each fold in turn. 1: one validation set.  [default: 5, "
    "or fewer if fewer patients have lesions]",
)
@click.option(
    "--allow-leakage",
    is_flag=True,
    help="Allow --split image, and count slices that are in two splits instead of refusing them. If there are such "
    "slices, or with --split image, all results are marked as optimistic.",
)
@click.option(
    "--lesion-label",
    "lesion_labels",
    multiple=True,
    metavar="L",
    help="Mask label that means lesion, such as 1. Labels that no option names are background. Several labels: "
    "separate them by commas, or repeat the option.",
)
@click.option(
    "--ignore-label",
    "ignore_labels",
    multiple=True,
    metavar="L",
    help="Mask label that is excluded from training, validation and every score, such as 2 (other pathology) in the "
    "WMH challenge. Several labels: as above.",
)
@click.option(
    "--mask-threshold",
    type=float,
    help="Mask values above this one are lesion. For masks of probabilities or grey values.",
)
@click.option(
    "--nan-background",
    is_flag=True,
    help="Treat all NaN or infinite voxels as background, not only those connected to the border of the volume. For "
    "images that were masked by a threshold.",
)
@click.option(
    "--patient-pattern",
    metavar="REGEX",
    help="Regular expression that finds the patient in a file name (images/ and masks/, nnU-Net, MONAI).",
)
@click.option(
    "--protocol", type=click.Choice(["paper"]), help="paper: sagittal, annotated slices only, image-level split."
)
@click.option(
    "--pseudonymise",
    is_flag=True,
    help="Replace patients' names by random pseudonyms everywhere in OUT. The table is written to OUT-pseudonyms.json, "
    "which only you can read.",
)
@click.option(
    "--pseudonyms",
    type=click.Path(path_type=Path),
    help="Pseudonymise with the table of an earlier cohort. Patients in this table keep their pseudonyms; others are "
    "added to it.",
)
@click.option(
    "--jobs", type=int, help="Number of processes.  [default: depends on the cores and the size of the files]"
)
@options.seed
def prepare(
    raw: Path, out: Path | None, dry_run: bool, pseudonymise: bool, pseudonyms: Path | None, **options: Any
) -> None:
    """Turn raw FLAIR images and masks into a prepared data set: sliced, cropped, scaled, split, checked.

    RAW is a BIDS folder, a CSV table (patient,timepoint,image,mask, and site or scanner if known), an nnU-Net folder,
    a MONAI or Decathlon list (datalist.json), or a folder with images/ and masks/. --dry-run shows how it is read.

    The test patients are sealed in OUT/sealed; the others are divided into folds. `prepare` refuses slices that occur
    in two splits or folds, including JPEG, scaled, shifted and mirrored copies, and patients under two names (p1 and
    P01).

    Example: wmlsearch prepare path/to/bids prepared --plane axial
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.cli.dry_run import show_discovery
    from wmlsearch.data.prepare import PrepareOptions
    from wmlsearch.runs.wording import command
    from wmlsearch.workflows.prepare import prepare as prepare_data

    for name in ("train_patients", "val_patients", "test_patients"):
        options[name] = tuple(part.strip() for part in (options[name] or "").split(",") if part.strip())
    for name in ("lesion", "ignore"):
        options[f"{name}_labels"] = _labels(f"--{name}-label", options[f"{name}_labels"])
    if dry_run:
        show_discovery(console(), raw, PrepareOptions(**options))
        return
    if out is None:
        raise click.UsageError("Missing argument 'OUT'.")
    if pseudonymise and pseudonyms is None:
        pseudonyms = out.absolute().with_name(f"{out.absolute().name}-pseudonyms.json")
    lines: list[str] = []
    bar, advance = progress_bar(console())
    with bar:
        prepare_options = PrepareOptions(**options, pseudonyms=pseudonyms)
        prepare_data(raw, out, prepare_options, lines.append, command("tune", "--data", out), advance)
    for line in lines:  # not above the bar, which would break long ones
        say(line, fg="yellow" if line.startswith("warning: ") else None)
