"""The verb `evaluate`: score a run on the sealed test patients."""

from __future__ import annotations

from pathlib import Path

import click

from wmlsearch.cli import json_output, options


@click.command(short_help="Score a run on the sealed test patients.")
@click.argument("run")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of a prepared data set.  [default: the data set that the run was trained on]",
)
@options.out
@options.uri_of_named_run
@json_output.option
def evaluate(run: str, data: Path | None, out: Path, mlflow_uri: str | None, as_json: bool) -> None:
    """Open the sealed test for RUN: a search (champion against baseline), or a single run.

    Each opening is recorded in the data set's ledger, and makes the result of the test less reliable. The report says
    how often the test was opened before. `wmlsearch tune` opens it at its end.

    Example: wmlsearch evaluate search-20261123-201512
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.cli.verdict_tables import show_evaluation
    from wmlsearch.report.page import write_report
    from wmlsearch.runs.checks import open_run
    from wmlsearch.runs.folders import SearchDir, parent_search
    from wmlsearch.runs.wording import command, run_words
    from wmlsearch.tracking.mirror import Mirror
    from wmlsearch.workflows import sealed_test
    from wmlsearch.workflows.mlflow_store import store_uri_of, uri_words

    with json_output.only_json(as_json) as show:
        # Bad options are refused before the sealed test is opened.
        run_dir = open_run(run, out)
        uri = store_uri_of(run_dir, mlflow_uri)
        bar, advance = progress_bar(console())
        with bar:
            evaluation, path = sealed_test.evaluate_run(run_dir, data, advance, options.say)
        show_evaluation(console(), evaluation)
        page = None
        try:
            if isinstance(run_dir, SearchDir) and path == run_dir.evaluation_file():
                page = write_report(run_dir)
                options.say(f"report: {page}")
            options.say(f"scores of each patient and image: {path}")
        finally:  # the scores are saved already; MLflow gets them even if the report fails
            root = parent_search(run_dir)
            mirror = Mirror(root, uri)
            for part in root.all_runs() if isinstance(root, SearchDir) else [root]:
                mirror.notify(part)
            if problem := mirror.close():
                later = command("sync", *run_words(root.path), *uri_words(mlflow_uri))
                options.say(f"warning: MLflow is incomplete ({problem}); to complete it: {later}")
        if as_json:
            from wmlsearch.workflows.json_results import EvaluationSummary

            show(EvaluationSummary.of(run_dir, path, page, evaluation))
