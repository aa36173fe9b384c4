"""Verbs that make data: `phantom`, `prepare`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from wmlsearch.cli import options


@click.command(short_help="Make a synthetic FLAIR cohort with known lesions.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--patients", type=int, default=20, show_default=True, help="Number of patients.")
@click.option("--timepoints", type=int, default=2, show_default=True, help="Scans of each patient.")
@click.option("--shape", default="128x128x24", show_default=True, metavar="XxYxZ", help="Voxels of a volume.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same files.")
def phantom(out: Path, patients: int, timepoints: int, shape: str, seed: int) -> None:
    """Write a synthetic cohort, with known lesions, as a raw BIDS data set.

    Example: wmlsearch phantom phantom-raw --patients 10
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.config import InputError
    from wmlsearch.data.phantom import write_phantom

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
            seed=seed,
            progress=lambda done, total: advance("volumes", done, total),
        )
    options.say(
        f"{patients} patients with {timepoints} scan{'s' if timepoints > 1 else ''} each are in {out}; "
        f"next: wmlsearch prepare {out} prepared"
    )


@click.command(short_help="Turn raw images and masks into a prepared data set.")
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--plane",
    type=click.Choice(["sagittal", "axial", "coronal", "native"]),
    help="How volumes are sliced.  [default: native for thick slices, sagittal for isotropic volumes]",
)
@click.option("--size", type=int, default=256, show_default=True, help="Edge of the square slices, in pixels.")
@click.option(
    "--keep",
    type=click.Choice(["brain", "lesion", "all"]),
    help="Slices to use: with enough of the head, with lesion, all.  [default: brain]",
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
    help="What is dealt to train, validation and test.  [default: patient]",
)
@click.option("--train-patients", help="Names, separated by commas.")
@click.option("--val-patients", help="Names, separated by commas.")
@click.option("--test-patients", help="Names, separated by commas.")
@click.option(
    "--allow-leakage",
    is_flag=True,
    help="Needed for --split image. Slices that lie in two splits are counted instead of refused. With any, or with "
    "--split image, all results are marked as optimistic.",
)
@click.option("--mask-threshold", type=float, help="Lesion is what lies above, in masks that are not binary (JPEG).")
@click.option("--patient-pattern", metavar="REGEX", help="Takes the patient from the file name (images/ and masks/).")
@click.option(
    "--protocol", type=click.Choice(["paper"]), help="paper: sagittal, annotated slices only, image-level split."
)
@click.option(
    "--pseudonymise",
    is_flag=True,
    help="Patients get random pseudonyms in all of OUT. The table of them, readable by you alone, is "
    "OUT-pseudonyms.json.",
)
@click.option(
    "--pseudonyms",
    type=click.Path(path_type=Path),
    help="The same with this table, of an earlier cohort: who is in it keeps the pseudonym, others are added.",
)
@click.option("--jobs", type=int, help="Processes.  [default: as many as make sense]")
@options.seed
def prepare(raw: Path, out: Path, pseudonymise: bool, pseudonyms: Path | None, **options: Any) -> None:
    """Turn raw FLAIR images and masks into a prepared data set: sliced, cropped, scaled, split, checked.

    RAW is a BIDS folder, a CSV table (patient,timepoint,image,mask), or a folder with images/ and masks/. The test
    patients are sealed in OUT/sealed. Slices of one split that lie in another too, also as JPEG, scaled, shifted or
    mirrored copies, are refused, and so are patients under two names (p1 and P01).

    Example: wmlsearch prepare path/to/bids prepared --plane axial
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.cli.data_tables import show_manifest
    from wmlsearch.data.prepare import PrepareOptions
    from wmlsearch.data.prepare import prepare as prepare_data

    for name in ("train_patients", "val_patients", "test_patients"):
        options[name] = tuple(part.strip() for part in (options[name] or "").split(",") if part.strip())
    if pseudonymise and pseudonyms is None:
        pseudonyms = out.absolute().with_name(f"{out.absolute().name}-pseudonyms.json")
    bar, advance = progress_bar(console())
    with bar:
        manifest = prepare_data(raw, out, PrepareOptions(**options, pseudonyms=pseudonyms), advance)
    show_manifest(console(), out, manifest)
    if pseudonyms is not None:
        click.echo(f"who is who stands in {pseudonyms}: keep it apart from {out}, and from whoever gets that")
