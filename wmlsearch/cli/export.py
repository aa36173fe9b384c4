"""The verb `export`: a trained model as a folder."""

from __future__ import annotations

from pathlib import Path

import click

from wmlsearch.cli import options


@click.command(short_help="Export a trained model as a folder.")
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path))
@options.runs
@options.model_uri
def export(run: str, out: Path, runs: Path, mlflow_uri: str | None) -> None:
    """Write the model of RUN into the folder OUT: weights as safetensors, and configuration, threshold and
    preprocessing as JSON.

    RUN is a search (its champion with all networks), a run, or anything else that `wmlsearch predict` takes as MODEL.

    Example: wmlsearch export search-20261123-201512 model
    """
    from wmlsearch.inference.export import export_model
    from wmlsearch.runs.wording import command
    from wmlsearch.workflows.mlflow_store import store_uri
    from wmlsearch.workflows.model_lookup import find_model

    model = find_model(run, runs, store_uri(runs, mlflow_uri))
    export_model(model.members, out, model.ensemble_threshold)
    first = model.members[0].name
    count = len(model.members)
    networks = f"{count} networks, the first is {first}" if count > 1 else f"the model is {first}"
    options.say(f"{out}: {networks}; next: {command('predict', out, 'IMAGE', '--out', 'predicted')}")
