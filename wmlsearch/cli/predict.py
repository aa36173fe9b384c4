"""The verb `predict`: lesions in new images."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wmlsearch.cli import json_output, options
from wmlsearch.runs.wording import plural

if TYPE_CHECKING:
    from wmlsearch.data.findings import Finding


@click.command(short_help="Segment lesions in images with a trained model.")
@click.argument("model")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--threshold", type=float, help="Lowest probability of a lesion pixel.  [default: the model's]")
@click.option(
    "--ensemble/--single",
    default=None,
    help="Average all networks of the model, or use only the first. When averaging, lesions.csv also has a row for the "
    "first network alone.  [default: average]",
)
@click.option(
    "--nan-background",
    is_flag=True,
    help="Treat all NaN or infinite voxels as background, not only those connected to the border of the volume.",
)
@click.option(
    "--patient-pattern",
    metavar="REGEX",
    help="Regular expression that finds the patient in the name of a picture, as in prepare. Pictures of the same "
    "patient are the slices of one volume.  [default: sub- and ses- in the names]",
)
@options.runs
@options.model_uri
@json_output.option
def predict(
    model: str,
    inputs: tuple[Path, ...],
    out: Path,
    threshold: float | None,
    ensemble: bool | None,
    nan_background: bool,
    patient_pattern: str | None,
    runs: Path,
    mlflow_uri: str | None,
    as_json: bool,
) -> None:
    """Segment lesions in each INPUT: a NIfTI volume of any orientation and voxel size, a PNG, TIFF or JPEG picture, or
    a folder of them.

    MODEL is a search (its champion), a run, an exported folder, or a registered model such as
    models:/wml-unet@champion. For each image this writes a mask and a probability map on the image's own grid, an
    overlay, and a row in lesions.csv.

    \b
    Example: wmlsearch predict models:/wml-unet@champion path/to/flair.nii.gz --out predicted
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.data.sources.discovery import first_names
    from wmlsearch.inference.lesion_table import LESION_TABLE
    from wmlsearch.inference.trained_model import check_threshold
    from wmlsearch.workflows.mlflow_store import store_uri
    from wmlsearch.workflows.model_lookup import find_model
    from wmlsearch.workflows.predict import predict_files

    with json_output.only_json(as_json) as show:
        if threshold is not None:
            check_threshold(threshold, "--threshold")
        trained_model = find_model(model, runs, store_uri(runs, mlflow_uri))
        if ensemble is None:
            ensemble = len(trained_model.members) > 1
        notes: list[str] = []
        bar, advance = progress_bar(console())
        with bar:
            rows = predict_files(
                trained_model, inputs, out, threshold, ensemble, advance,
                nan_background=nan_background, note=notes.append, patient_pattern=patient_pattern,
            )  # fmt: skip
        for text in notes:
            options.say(f"note: {text}")
        inputs_with: dict[Finding, list[str]] = defaultdict(list)
        for row in rows:
            for finding in row.findings if row.predicted_by == "model" else ():
                inputs_with[finding].append(row.input)
        for row in rows:
            size = plural(row.area_pixels or 0, "pixel") if row.volume_ml is None else f"{row.volume_ml:.3f} ml"
            by = f" ({row.predicted_by})" if ensemble else ""
            options.say(f"{row.input}: {plural(row.lesions, 'lesion')}, {size}{by}")
            for finding in row.findings if row.predicted_by == "model" else ():
                alike = inputs_with[finding] if row.volume_ml is None else [row.input]
                if row.input == alike[0]:  # pictures with the same are named in one line
                    options.say(f"{'warning' if finding.is_warning else 'note'}: {first_names(alike)}: {finding.text}")
        if postprocessing := trained_model.members[0].postprocessing:
            options.say(f"the model's postprocessing was applied: {postprocessing}")
        options.say(f"masks, probability maps and overlays: {out}; lesion counts and volumes: {out / LESION_TABLE}")
        if as_json:
            from wmlsearch.workflows.json_results import PredictionSummary

            show(PredictionSummary.of(rows, out, notes))
