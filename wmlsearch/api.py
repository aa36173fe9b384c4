"""The door for Python: what the commands do, for notebooks and scripts.

```python
import wmlsearch

wmlsearch.prepare("raw", "prepared", plane="axial")
search = wmlsearch.tune("quick", data="prepared", trials=12)
search.trials                      # a pandas DataFrame
wmlsearch.load_model(search).predict("flair.nii.gz").save("predicted")
```

Each function reads its arguments and calls one workflow, as each command does. Everything that is returned is read from
the run folder, so a search of the command line is the same object.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import nibabel as nib
import numpy as np
import pandas as pd

from wmlsearch.api_options import BudgetKeywords, PrepareKeywords, SettingKeywords
from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.phantom import write_phantom as phantom
from wmlsearch.data.prepare import PrepareOptions
from wmlsearch.data.prepare import prepare as _prepare
from wmlsearch.data.sources.source import is_nifti, is_picture, stem
from wmlsearch.inference.export import ExportedModel
from wmlsearch.inference.inputs import InputImage, find_images
from wmlsearch.inference.preprocessing import slicing_geometry
from wmlsearch.inference.result_files import check_nothing_overwritten, write_mask, write_result_files
from wmlsearch.inference.trained_model import check_threshold, common_preprocessing
from wmlsearch.report.tables import epoch_rows, final_run_rows, trial_rows
from wmlsearch.runs.checks import open_search
from wmlsearch.runs.environment import prepared_environment
from wmlsearch.runs.evaluation import Verdict
from wmlsearch.runs.folders import SearchDir, check_name
from wmlsearch.runs.interrupts import signals_as_interrupts
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import EXPERIMENT, PAPER, SEARCH, default_name
from wmlsearch.runs.progress import Progress
from wmlsearch.runs.wording import command, run_words
from wmlsearch.tracking.experiments import check_experiment_name
from wmlsearch.verdict.champion import read_candidates
from wmlsearch.workflows.builtin_phantom import ensure_builtin_phantom
from wmlsearch.workflows.model_lookup import find_model
from wmlsearch.workflows.new_search import SearchChoices, request_search
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.predict import ImagePrediction, predict_image
from wmlsearch.workflows.search_choices import check_store_of_resumed, space_to_search, store_uri
from wmlsearch.workflows.search_plan import ResumeRequest
from wmlsearch.workflows.tune import resume as _resume
from wmlsearch.workflows.tune import tune as _tune

if TYPE_CHECKING:
    from wmlsearch.data.stack import Array

__all__ = [
    "Champion",
    "InputError",
    "Model",
    "Prediction",
    "Search",
    "Verdict",
    "load_model",
    "load_search",
    "phantom",
    "prepare",
    "resume",
    "tune",
]

AnyPath = str | os.PathLike[str]
Say = Callable[[str], None]
# Options of `prepare` that take one or several values.
_SEVERAL = {
    "train_patients", "val_patients", "test_patients", "lesion_labels", "ignore_labels", "select", "mask_select",
}  # fmt: skip
RUNS = "runs"  # the folder of all runs, as on the command line


def _no_progress(_step: str, _done: int, _total: int) -> None:
    """Show nothing."""


# ----------------------------------------------------------------------------------------------------------- searches


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
    """A search, running or ended. Each property reads its folder anew.

    Every property raises `InputError` for a folder that is damaged or gone.
    """

    path: Path

    @property
    def name(self) -> str:
        """The name of the search: that of its folder."""
        return self.path.name

    @property
    def state(self) -> str:
        """`running`, `completed`, `interrupted` (to be resumed) or `failed`."""
        return self._folder.state

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
        """A row for each trial, best first, by name: how it ended, the metrics of its best epoch, its hyperparameters.

        The columns are those of the report's `leaderboard.csv`. The learning rate of the best epoch is
        `learning_rate_then`; `learning_rate` is the hyperparameter.
        """
        return _frame(trial_rows(leaderboard(self._folder)), "trial")

    @property
    def final_runs(self) -> pd.DataFrame:
        """A row for each final run, by name: those that chose the champion, and those that are judged.

        The columns are those of the report's `confirmation.csv`.
        """
        champion = self.champion
        rows = final_run_rows(read_candidates(self._folder), champion.name if champion else "")
        return _frame(rows, "run")

    @property
    def curves(self) -> pd.DataFrame:
        """A row for each epoch of each trial and final run: `run`, `purpose`, `epoch`, and the metrics of the epoch.

        `purpose` is `trial`, `selection` or `judgement`. To plot a metric:
        `search.curves.pivot(index="epoch", columns="run", values="val_dice_best").plot()`.
        """
        return _frame(epoch_rows([*self._folder.trials(), *self._folder.finals()]), None)

    @property
    def champion(self) -> Champion | None:
        """The configuration that the selection runs chose; None before that, and in a search without a baseline."""
        selection = self._folder.selection()
        candidates = {candidate.name: candidate for candidate in read_candidates(self._folder)} if selection else {}
        if selection is None or selection.champion not in candidates:
            return None
        return Champion(selection.champion, candidates[selection.champion].config, selection.sentence)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the champion is better than the baseline on the sealed test patients; `sentence` has the numbers.

        None before the sealed test was opened. It stays closed where the champion is the baseline configuration.
        """
        evaluation = self._folder.evaluation()
        return evaluation.verdict if evaluation else None

    @property
    def report(self) -> Path | None:
        """The page of the report; None before it is written."""
        page = self._folder.report / "index.html"
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


def prepare(
    raw: AnyPath,
    out: AnyPath,
    *,
    say: Say = print,
    progress: Progress | None = None,
    **options: Unpack[PrepareKeywords],
) -> Manifest:
    """Turn raw FLAIR images and masks into a prepared data set, as `wmlsearch prepare` does.

    In a script, call it below `if __name__ == "__main__":`, because large volumes are read by several processes.

    Args:
        raw: A BIDS folder, a table, or another layout that `wmlsearch prepare` reads.
        out: Folder to write; must not exist, or be empty.
        say: Called with each remark on how the files of `raw` were understood.
        progress: Called as `progress(stage, done, total)` after each volume.
        options: Those of `PrepareOptions`, such as `plane="axial"` or `test_patients=["07", "19"]`.

    Returns:
        The manifest of the prepared data set: its volumes, slices, patients and folds.

    Raises:
        InputError: With all faults of the data, or where the options do not suit them. Then nothing was written.
    """
    values: dict[str, Any] = dict(options)
    for name in _SEVERAL & values.keys():
        one = isinstance(values[name], str | int | float)
        values[name] = (values[name],) if one else tuple(values[name])
    if values.get("pseudonyms") is not None:
        values["pseudonyms"] = Path(values["pseudonyms"])
    _check_keywords("prepare", values, PrepareKeywords.__annotations__)
    return _prepare(Path(raw), Path(out), PrepareOptions(**values), progress, lambda note: say(f"note: {note}"))


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
    """Search for a better configuration than the baseline, as `wmlsearch tune` does, and return when it has ended.

    Interrupting it (Ctrl-C, or a notebook's stop button) ends the search cleanly, and it is returned; `resume` goes on.
    Where this process is connected to a Ray already, the search runs there and leaves it running. Otherwise it starts
    a Ray of its own and ends it.

    Args:
        space: A shipped search space (`unet`, `quick`), a file of ranges, or a mapping such as
            `{"depth": {"choices": [3, 4]}, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}`.
        data: Folder of a prepared data set. None: the built-in phantom, prepared in `out`.
        name: Name of the search. None: `search-DATE-TIME`.
        out: Folder of all runs.
        warm_start: Earlier searches to learn from.
        workers_per_trial: Ray Train workers of each trial.
        gpus_per_worker: GPUs of each worker. None: one where there are GPUs.
        trials_per_gpu: Trials that share a GPU; "auto" measures the fastest number.
        ray_address: Address of a Ray cluster. None: the Ray of this process, `RAY_ADDRESS`, or an embedded one.
        storage: Folder or URI for checkpoints that all machines reach. None: `WMLSEARCH_STORAGE`, or the run folders.
        mlflow_uri: MLflow server or store. None: `MLFLOW_TRACKING_URI`, or a SQLite file in `out`.
        experiment: MLflow experiment. None: `MLFLOW_EXPERIMENT_NAME`, or `wmlsearch`.
        say: Called with each message. `print` shows them.
        progress: Called as `progress(step, done, total)` while data are prepared and the sealed test is evaluated.
        settings: Those of `RunSettings`, such as `trials=20`, `epochs=18` or `scheduler="none"`. Without `epochs` they
            are as many as give the steps of the paper's training, which is said.

    Raises:
        InputError: For what cannot run, before a folder is made.
        ConnectionError: If Ray does not start, or dies; then `resume` goes on.
    """
    runs = Path(out)
    ranges = space_to_search(space if isinstance(space, Mapping) else Path(space))
    _check_keywords("tune", settings, SettingKeywords.__annotations__)
    chosen: dict[str, Any] = dict(settings)
    if "objectives" in chosen:
        chosen["objectives"] = list(chosen["objectives"])
    search = SearchDir(runs / check_name(name or default_name(SEARCH)))
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
    request = request_search(search, choices, lambda: ensure_builtin_phantom(runs, progress), say)
    with prepared_environment(), signals_as_interrupts():  # the former for figures and MLflow, when Ray is gone
        return _ended(_tune(search, request, uri, Observer(say=say, progress=progress)), say)


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
    """Go on with a search that was stopped or that died, as `wmlsearch tune --resume` does.

    Args:
        search: The search, its folder, or its name in `out`.
        out: Folder of all runs.
        data: Folder of the prepared data set, if it was moved.
        ray_address: As of `tune`.
        storage: Folder or URI of the checkpoints, if it was moved.
        mlflow_uri: As of `tune`.
        say: Called with each message.
        progress: Called as `progress(step, done, total)` while the sealed test is evaluated.
        budgets: Other budgets than before, such as `trials=40`.

    Raises:
        InputError: For what cannot be resumed.
        ConnectionError: As of `tune`.
    """
    _check_keywords("resume", budgets, BudgetKeywords.__annotations__)
    runs = Path(out)
    folder = _find_search(search, runs)
    store = mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    check_store_of_resumed(folder, store)
    record = folder.record()
    settings = RunSettings.from_mapping({**record.settings.model_dump(), **budgets})
    placement = _placement(ray_address, storage)
    request = ResumeRequest.of(folder, record, settings, Path(data) if data is not None else None, placement)
    uri = store_uri(folder.path.parent, store)
    with prepared_environment(), signals_as_interrupts():
        return _ended(_resume(folder, request, uri, Observer(say=say, progress=progress)), say)


def load_search(path: AnyPath | Search, *, out: AnyPath = RUNS) -> Search:
    """Return a search, running or ended, by its folder or by its name in `out`.

    Raises:
        InputError: If there is none, or one of its files is damaged.
    """
    return Search(_find_search(path, Path(out)).path)


def _find_search(search: AnyPath | Search, runs: Path) -> SearchDir:
    return open_search(str(search.path if isinstance(search, Search) else Path(search)), runs)


def _placement(ray_address: str | None, storage: str | None) -> Placement:
    """Return where a search runs: at a given address, on the Ray of this process, or at RAY_ADDRESS."""
    address = ray_address
    if address is None and "ray" in sys.modules:
        from wmlsearch.cluster.connect import own_address

        address = own_address()
    return Placement(
        address or os.environ.get("RAY_ADDRESS") or None, storage or os.environ.get("WMLSEARCH_STORAGE") or None
    )


def _ended(outcome: Outcome, say: Say) -> Search:
    """Return a search that has ended, and say what MLflow lacks. Raises ConnectionError if Ray has died."""
    path = outcome.run.path
    if outcome.mlflow_problem:
        say(
            f"warning: MLflow does not have all results ({outcome.mlflow_problem}); "
            f"to send them later: {command('sync', *run_words(path))}"
        )
    if outcome.lost_ray:
        raise ConnectionError(f"{outcome.early}; what was reported is kept: wmlsearch.resume({str(path)!r}) goes on")
    return Search(path)


def _check_keywords(function: str, given: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Raises InputError for keywords that a function does not have."""
    if unknown := [name for name in given if name not in allowed]:
        raise InputError(
            f"wmlsearch.{function}() has no keyword {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(sorted(allowed))}"
        )


# ------------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Prediction:
    """The lesions that a model predicts in one image, on the image's own grid."""

    probabilities: Array  # of lesion, float32: (i, j, k), or (rows, columns) of a picture
    mask: Array  # uint8 of the same shape: 1 where the probability is at least `threshold`
    threshold: float
    lesions: int  # their number; voxels that touch at a corner belong together
    volume_ml: float | None  # of all lesions together; None for 2-D pictures
    area_pixels: int | None  # of all lesions together; None for volumes
    affine: Array | None  # (4, 4), from voxels to mm; None for 2-D pictures
    _image: Any = field(repr=False, compare=False)  # the path or nibabel image that was predicted
    _result: ImagePrediction = field(repr=False, compare=False)

    def save(self, path: AnyPath, name: str | None = None) -> tuple[Path, ...]:
        """Write the prediction, and return the files. Nothing is overwritten.

        Args:
            path: A file (`lesions.nii.gz`; of a picture `lesions.png`): the mask is written there. Otherwise a folder,
                which gets what `wmlsearch predict` writes: mask, probability map, and an overlay to look at.
            name: What the names of the files in a folder begin with. None: the name of the image.

        Raises:
            InputError: If a file exists already, or cannot be the mask of this image.
        """
        target = Path(path)
        with _as_file(self._image) as file:
            if is_nifti(target) or is_picture(target):
                write_mask(InputImage(file, stem(target)), self._result.prediction, target)
                return (target,)
            image = InputImage(file, name or stem(file))
            check_nothing_overwritten(target, [image])
            target.mkdir(parents=True, exist_ok=True)
            write_result_files(image, self._result.prediction, target)
        return tuple(target / file for file in (image.mask_file, image.probability_file, image.overlay_file))


@dataclass(frozen=True)
class Model:
    """A trained model: one network, or several whose probabilities are averaged."""

    _networks: ExportedModel = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the runs that trained its networks, the best one first."""
        return tuple(member.name for member in self._networks.members)

    @property
    def configs(self) -> tuple[TrialConfig, ...]:
        """The configuration of each network."""
        return tuple(member.config for member in self._networks.members)

    def predict(
        self, image: Any, *, threshold: float | None = None, single: bool = False, nan_background: bool = False
    ) -> Prediction:
        """Segment the lesions of one image.

        Args:
            image: The path of a NIfTI volume of any orientation and voxel size or of a picture, or a nibabel image.
            threshold: Lowest probability of a lesion voxel. None: the one that validation patients chose.
            single: Use the first network alone, which takes less time.
            nan_background: Take voxels that are NaN or infinite for background wherever they are.

        Raises:
            InputError: For an image that cannot be read, or not be cut as the training data were.
        """
        if threshold is not None:
            check_threshold(threshold, "threshold")
        ensemble = len(self._networks.members) > 1 and not single
        with _as_file(image) as file:
            input_image = find_images([file])[0]
            geometry = slicing_geometry(
                input_image.source, common_preprocessing(self._networks.members), nan_background
            )
            result = predict_image(self._networks, input_image, threshold, ensemble, geometry)
            opened: Any = nib.load(file) if is_nifti(file) else None
        prediction, row = result.prediction, result.row
        is_picture_stack = prediction.voxel_mm is None
        return Prediction(
            prediction.probabilities[0] if is_picture_stack else prediction.probabilities,
            prediction.mask[0] if is_picture_stack else prediction.mask,
            prediction.threshold,
            row.lesions,
            row.volume_ml,
            row.area_pixels,
            None if opened is None else np.array(opened.affine),
            image,
            result,
        )


def load_model(model: AnyPath | Search, *, runs: AnyPath = RUNS, mlflow_uri: str | None = None) -> Model:
    """Load a trained model, as `wmlsearch predict` does.

    Args:
        model: A search (its champion, or its best trial while it has none), by object, folder or name; a run's or a
            trial's folder; what `wmlsearch export` wrote; or a registered model, such as `models:/wml-unet@champion`.
        runs: Folder of all runs, in which names are looked up.
        mlflow_uri: MLflow registry of `models:/` names. None: `MLFLOW_TRACKING_URI`, or the SQLite file in `runs`.

    Raises:
        InputError: If there is no such model, or it is damaged.
    """
    uri = store_uri(Path(runs), mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI"))
    return Model(find_model(os.fspath(model.path if isinstance(model, Search) else model), Path(runs), uri))


@contextlib.contextmanager
def _as_file(image: Any) -> Iterator[Path]:
    """Yield the path of an image: the given one, or that of a temporary file with a nibabel image.

    Raises InputError for anything else. The file's voxels are those of the image, without another rounding.
    """
    if isinstance(image, str | os.PathLike):
        yield Path(image)
        return
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise InputError(
            f"the image must be a path or a nibabel image, but is a {type(image).__name__}; make a nibabel image of an "
            "array with nibabel.Nifti1Image(array, affine)"
        )
    voxels = np.asanyarray(image.dataobj)
    named = Path(image.get_filename() or "image.nii")
    with tempfile.TemporaryDirectory(prefix="wmlsearch-") as folder:
        file = Path(folder) / f"{stem(named)}.nii"
        nib.Nifti1Image(voxels, image.affine, dtype=voxels.dtype).to_filename(file)
        yield file
