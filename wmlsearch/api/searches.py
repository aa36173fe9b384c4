"""Run, resume and load searches from Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import pandas as pd

from wmlsearch.api.keywords import RUNS, AnyPath, BudgetKeywords, Say, SettingKeywords, check_keywords
from wmlsearch.api.wording import raises_in_python, says_in_python
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.report.tables import epoch_rows, final_run_rows, trial_rows
from wmlsearch.runs.checks import open_search, validate_folder
from wmlsearch.runs.early_end import EndCause
from wmlsearch.runs.environment import prepared_environment
from wmlsearch.runs.evaluation import Verdict
from wmlsearch.runs.folders import SearchDir, check_name, check_new
from wmlsearch.runs.interrupts import end_of, signals_as_interrupts
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.liveness import live_state
from wmlsearch.runs.names import EXPERIMENT, PAPER, SEARCH, default_name
from wmlsearch.runs.progress import Progress
from wmlsearch.tracking.experiments import check_experiment_name
from wmlsearch.verdict.champion import read_candidates
from wmlsearch.workflows.builtin_phantom import ensure_builtin_phantom
from wmlsearch.workflows.mlflow_store import check_store_of_resumed, missing_results_warning, store_uri, store_uri_of
from wmlsearch.workflows.new_search import SearchChoices, request_search, space_to_search
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.remaining_work import nothing_left
from wmlsearch.workflows.search_lines import SearchLines
from wmlsearch.workflows.search_plan import ResumeRequest
from wmlsearch.workflows.stored_search import search_to_resume
from wmlsearch.workflows.tune import resume as _resume
from wmlsearch.workflows.tune import tune as _tune


def _no_progress(_step: str, _done: int, _total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Champion:
    """The configuration that a search selected."""

    name: str  # "trial-0007", or "paper": the baseline configuration, if nothing better was found
    config: TrialConfig
    sentence: str  # why it is the champion

    @property
    def is_baseline(self) -> bool:
        """Whether nothing better than the baseline configuration was found."""
        return self.name == PAPER


@dataclass(frozen=True)
class Search:
    """A search, running or ended. Each property reads the current content of its folder.

    Every property raises `InputError` if the folder is damaged or was deleted.
    """

    path: Path

    @property
    def name(self) -> str:
        """The name of the search, which is the name of its folder."""
        return self.path.name

    @property
    def state(self) -> str:
        """`running`, `completed`, `interrupted`, `failed`, or `gone` (it is recorded as running, without a process).

        The process of a search that is `gone` died, or its folder is a copy of a search that runs elsewhere. A search
        that is `interrupted` can be resumed, and one that is `gone` if it does not run elsewhere.
        """
        return live_state(self._folder)

    @property
    def reason(self) -> str:
        """Why the search ended before all its trials were done, or ""."""
        return self._folder.status().reason

    @property
    def settings(self) -> RunSettings:
        """The settings of the search."""
        return self._folder.record().settings

    @property
    def trials(self) -> pd.DataFrame:
        """A table with a row for each trial, best first: its state, the metrics of its best epoch, its hyperparameters.

        The index is the name of the trial. The columns are those of the report's `leaderboard.csv`.
        `learning_rate_then` is the learning rate of the best epoch; `learning_rate` is the hyperparameter.
        """
        return _frame(trial_rows(leaderboard(self._folder)), "trial")

    @property
    def final_runs(self) -> pd.DataFrame:
        """A table with a row for each selection run and each judgement run.

        The index is the name of the run. The columns are those of the report's `confirmation.csv`.
        """
        champion = self.champion
        rows = final_run_rows(read_candidates(self._folder), champion.name if champion else "")
        return _frame(rows, "run")

    @property
    def curves(self) -> pd.DataFrame:
        """A table with a row for each epoch of each trial and final run: `run`, `purpose`, `epoch`, and the metrics.

        `purpose` is `trial`, `selection` or `judgement`. To plot a metric:
        `search.curves.pivot(index="epoch", columns="run", values="val_dice_best").plot()`.
        """
        return _frame(epoch_rows([*self._folder.trials(), *self._folder.finals()]), None)

    @property
    def champion(self) -> Champion | None:
        """The configuration that was selected; None before the selection, and in a search without a baseline."""
        selection = self._folder.selection()
        candidates = {candidate.name: candidate for candidate in read_candidates(self._folder)} if selection else {}
        if selection is None or selection.champion not in candidates:
            return None
        return Champion(selection.champion, candidates[selection.champion].config, selection.sentence)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the champion is better than the baseline on the sealed test patients; `sentence` has the numbers.

        None before the sealed test is opened. It stays closed if the champion is the baseline configuration.
        """
        evaluation = self._folder.evaluation()
        return evaluation.verdict if evaluation else None

    @property
    def report(self) -> Path | None:
        """Path of the report's HTML page; None before it is written."""
        page = self._folder.report_page
        return page if page.is_file() else None

    @property
    def _folder(self) -> SearchDir:
        return SearchDir(self.path)


def _frame(rows: Sequence[Mapping[str, Any]], index: str | None) -> pd.DataFrame:
    """Return a table of rows, in which a column of numbers has NaN where a number is missing."""
    frame = pd.DataFrame.from_records([dict(row) for row in rows])
    for name in frame.columns:
        values = frame[name].dropna()
        if frame[name].dtype == object and all(type(value) in (int, float) for value in values):
            frame[name] = frame[name].astype(float)
    return frame if index is None or frame.empty else frame.set_index(index)


@raises_in_python()
def tune(
    space: AnyPath | Mapping[str, Any] = "unet",
    *,
    data: AnyPath | None = None,
    name: str | None = None,
    out: AnyPath = RUNS,
    warm_start: Sequence[AnyPath | Search] = (),
    workers_per_trial: int = 1,
    gpus_per_worker: float | None = None,
    trials_per_gpu: int | Literal["auto"] = 1,
    ray_address: str | None = None,
    storage: str | None = None,
    mlflow_uri: str | None = None,
    experiment: str | None = None,
    say: Say = print,
    progress: Progress = _no_progress,
    **settings: Unpack[SettingKeywords],
) -> Search:
    """Search for a better configuration than the baseline, as `wmlsearch tune` does, and return when the search has
    ended.

    An interrupt (Ctrl-C, or a notebook's stop button) ends the search cleanly; it is returned, and `resume` continues
    it. If this process is already connected to Ray, the search runs there and leaves Ray running. Otherwise it starts
    its own Ray and ends it.

    Args:
        space: A shipped search space (`unet`, `quick`), a file of ranges, or a mapping such as
            `{"depth": {"choices": [3, 4]}, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}`.
        data: Folder of a prepared data set. None: the built-in phantom, prepared in `out`.
        name: Name of the search. None: `search-DATE-TIME`.
        out: Folder of all runs.
        warm_start: Earlier searches to learn from.
        workers_per_trial: Ray Train workers of each trial.
        gpus_per_worker: GPUs of each worker. None: one if there are GPUs.
        trials_per_gpu: Number of trials that share a GPU; "auto" measures which number is fastest.
        ray_address: Address of a Ray cluster. None: the Ray of this process, `RAY_ADDRESS`, or an embedded one.
        storage: Folder or URI that all machines can reach, for checkpoints and a copy of the run folder. None:
            `WMLSEARCH_STORAGE`; if that is not set, checkpoints are in the run folders.
        mlflow_uri: MLflow server or store. None: `MLFLOW_TRACKING_URI`, or a SQLite file in `out`.
        experiment: MLflow experiment. None: `MLFLOW_EXPERIMENT_NAME`, or `wmlsearch`.
        say: Called with each message, such as a line for each trial that ends. `print` shows them.
        progress: Called as `progress(step, done, total)` while data are prepared and the sealed test is evaluated.
        settings: Fields of `RunSettings`, such as `trials=20`, `epochs=18` or `scheduler="none"`. Default of `epochs`:
            enough to match the paper's number of training steps on your data, from 18 to 200. `say` gets the number.

    Raises:
        InputError: The search cannot run. Raised before a folder is made.
        ConnectionError: Ray does not start, or dies. `resume` then continues the search.
    """
    runs, say = Path(out), says_in_python(say)
    check_keywords(tune, settings, SettingKeywords)
    ranges = space_to_search(space if isinstance(space, Mapping) else Path(space))
    chosen: dict[str, Any] = dict(settings)
    if "objectives" in chosen:
        chosen["objectives"] = list(chosen["objectives"])
    search = SearchDir(runs / check_name(name or default_name(SEARCH)))
    check_new(search.path)
    uri = store_uri(runs, mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI"))
    placement = _placement(ray_address, storage)
    placement = replace(
        placement,
        workers_per_trial=workers_per_trial,
        gpus_per_worker=gpus_per_worker,
        trials_per_gpu=trials_per_gpu,
    )
    choices = SearchChoices(
        space=ranges,
        settings=chosen,
        data=Path(data) if data is not None else None,
        placement=placement,
        warm_start=[_find_search(one, runs) for one in warm_start],
        experiment=check_experiment_name(experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT),
    )
    request = request_search(choices, lambda: ensure_builtin_phantom(runs, progress), say)
    observer = Observer(SearchLines(search, request.space, request.settings, say).update, say, progress)
    return _ended(search, lambda: _tune(search, request, uri, observer), say)


@raises_in_python()
def resume(
    search: AnyPath | Search,
    *,
    out: AnyPath = RUNS,
    data: AnyPath | None = None,
    ray_address: str | None = None,
    storage: str | None = None,
    mlflow_uri: str | None = None,
    say: Say = print,
    progress: Progress = _no_progress,
    **budgets: Unpack[BudgetKeywords],
) -> Search:
    """Continue a search that was stopped or whose process died, as `wmlsearch tune --resume` does.

    Returns at once if the search is completed, unless a budget changes or part of its results is missing.

    Args:
        search: The search, its folder, or its name in `out`.
        out: Folder of all runs.
        data: Folder of the prepared data set, if it was moved.
        ray_address: See `tune`.
        storage: Folder or URI of the checkpoints, if it was moved. A search that is not in `out`, as on a new machine,
            is restored from its copy in the storage.
        mlflow_uri: MLflow server or store. None: `MLFLOW_TRACKING_URI`, or the SQLite file beside the search.
        say: Called with each message.
        progress: Called as `progress(step, done, total)` while the sealed test is evaluated.
        budgets: Other budgets than before, such as `trials=40`.

    Raises:
        InputError: The search cannot be resumed.
        ConnectionError: See `tune`.
    """
    check_keywords(resume, budgets, BudgetKeywords)
    runs, say = Path(out), says_in_python(say)
    placement = _placement(ray_address, storage)
    name = str(search.path if isinstance(search, Search) else Path(search))
    with search_to_resume(name, runs, placement.storage, say) as stored:
        folder = stored.search
        validate_folder(folder)
        store = mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
        check_store_of_resumed(folder, store)
        record = folder.record()
        settings = RunSettings.from_mapping({**record.settings.model_dump(), **budgets})
        uri = store_uri_of(folder, store)
        if complete := nothing_left(folder, settings, uri):
            stored.complete(folder)
            say(complete)
            return Search(folder.path)
        source = Path(data) if data is not None else None
        request = ResumeRequest.of(folder, record, settings, source, placement, stored)
        observer = Observer(SearchLines(folder, request.space, settings, say).update, say, progress)
        return _ended(folder, lambda: _resume(folder, request, uri, observer), say)


@raises_in_python()
def load_search(path: AnyPath | Search, *, out: AnyPath = RUNS) -> Search:
    """Return a search, running or ended, by its folder or by its name in `out`.

    Raises:
        InputError: There is no such search, or one of its files is damaged.
    """
    return Search(_find_search(path, Path(out)).path)


def _find_search(search: AnyPath | Search, runs: Path) -> SearchDir:
    return open_search(str(search.path if isinstance(search, Search) else Path(search)), runs)


def _placement(ray_address: str | None, storage: str | None) -> Placement:
    """Return where a search runs: at a given address, on the Ray of this process, or at RAY_ADDRESS."""
    storage = storage or os.environ.get("WMLSEARCH_STORAGE") or None
    if ray_address is None and "ray" in sys.modules:
        from wmlsearch.cluster.connect import own_address

        if address := own_address():
            return Placement(address, storage, on_own_ray=True)
    return Placement(ray_address or os.environ.get("RAY_ADDRESS") or None, storage)


def _ended(search: SearchDir, run: Callable[[], Outcome], say: Say) -> Search:
    """Run a search to its end, and say what MLflow lacks. Raises ConnectionError if Ray has died."""
    path = search.path
    with prepared_environment(), signals_as_interrupts():  # the former for figures and MLflow, when Ray is gone
        try:
            outcome = run()
        except KeyboardInterrupt as interrupt:  # before the search began
            early_end = end_of(interrupt)
            if early_end.cause is not EndCause.RAY_DIED:
                raise
            hint = (
                f"wmlsearch.resume({str(path)!r}) continues it"
                if search.exists()
                else "no search was started, so try again"
            )
            raise ConnectionError(f"{early_end}; {hint}") from None
    if outcome.mlflow_problem:
        say(missing_results_warning(search, outcome.mlflow_problem))
    if outcome.lost_ray:
        raise ConnectionError(
            f"{outcome.early_end}; all reported epochs are kept: wmlsearch.resume({str(path)!r}) continues the search"
        )
    return Search(path)
