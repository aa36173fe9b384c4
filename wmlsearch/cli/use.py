"""Verbs that use a trained model: `predict`, `export`."""

from __future__ import annotations

from pathlib import Path

import click

from wmlsearch.cli import options

runs = click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
uri = click.option(
    "--mlflow-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="Where models:/ are looked up; also MLFLOW_TRACKING_URI.  [default: sqlite:///RUNS/mlflow.db]",
)


@click.command(short_help="Find lesions in images, with a trained model.")
@click.argument("model")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for what is found.")
@click.option("--threshold", type=float, help="Lesion is where the probability is this high.  [default: the model's]")
@click.option("--ensemble", is_flag=True, help="All seeds of the model together; the table has both.")
@runs
@uri
def predict(
    model: str,
    inputs: tuple[Path, ...],
    out: Path,
    threshold: float | None,
    ensemble: bool,
    runs: Path,
    mlflow_uri: str | None,
) -> None:
    """Find lesions in each INPUT (NIfTI in any orientation and voxel size, PNG, TIFF, JPEG, or a folder of them).

    MODEL is a search (its champion), a run, an exported folder, or models:/wml-unet@champion. For each image a mask and
    a probability map on its own grid, an overlay, and a row in lesions.csv.

    Example: wmlsearch predict models:/wml-unet@champion path/to/flair.nii.gz --out found
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.inference.predictor import check_threshold
    from wmlsearch.workflows.model_lookup import find_model
    from wmlsearch.workflows.predict import TABLE, predict_files

    if threshold is not None:
        check_threshold(threshold, "--threshold")
    chosen = find_model(model, runs, options.uri_of(runs, mlflow_uri))
    bar, advance = progress_bar(console())
    with bar:
        rows = predict_files(chosen, inputs, out, threshold, ensemble, advance)
    for row in rows:
        size = f"{row.area_pixels} pixels" if row.volume_ml is None else f"{row.volume_ml:.3f} ml"
        lesions = f"{row.lesions} lesion{'' if row.lesions == 1 else 's'}"
        options.say(f"{row.input}: {lesions}, {size}" + (f" ({row.predicted_by})" if ensemble else ""))
    options.say(f"masks, probability maps and overlays are in {out}, the numbers in {out / TABLE}")


@click.command(short_help="Write a trained model as a folder to hand on.")
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path))
@runs
@uri
def export(run: str, out: Path, runs: Path, mlflow_uri: str | None) -> None:
    """Write the model of RUN into OUT: weights as safetensors; configuration, threshold and preprocessing as JSON.

    RUN is a search (its champion with all seeds) or a run, or what else `wmlsearch predict` takes as MODEL.

    Example: wmlsearch export search-20261123-201512 model
    """
    from wmlsearch.inference.export import export_model
    from wmlsearch.workflows.model_lookup import find_model

    chosen = find_model(run, runs, options.uri_of(runs, mlflow_uri))
    export_model(chosen.members, out, chosen.ensemble_threshold)
    seeds = f"{len(chosen.members)} seeds, the first is" if len(chosen.members) > 1 else "the model is"
    options.say(f"{out}: {seeds} {chosen.members[0].name}; next: wmlsearch predict {out} IMAGE --out found")
