"""The folders of searches and runs, and the names of what is in them.

A module that keeps a file for itself in such a folder, such as the lock, names that file.
"""

from __future__ import annotations

import abc
import contextlib
import io
import os
import re
import shutil
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from wmlsearch.config import RunSettings
from wmlsearch.errors import InputError
from wmlsearch.runs.evaluation import Evaluation, EvaluationMetrics, Gallery
from wmlsearch.runs.files import append_line, as_line, read_json, read_lines, write_bytes, write_json, write_text
from wmlsearch.runs.locations import with_name
from wmlsearch.runs.lock import CLAIM_FILE, OWNER_FILE, check_not_running, check_still_held, folder_lock, is_running
from wmlsearch.runs.names import judgement_run_name, natural_key, selection_run_name
from wmlsearch.runs.redaction import without_home
from wmlsearch.runs.schema import (
    DELETE_FORECAST,
    REMAKE_LEDGER,
    RUNNING,
    SELECT_AGAIN,
    UNFINISHED,
    EarlierTrial,
    EpochLine,
    EpochRow,
    FolderRecord,
    ForecastRecord,
    MlflowLedger,
    ModelRecord,
    RunRecord,
    RunStatus,
    SearchRecord,
    SelectionRecord,
    Successor,
    Usage,
    check_lines,
    read_optional,
    read_record,
)
from wmlsearch.runs.wording import command, run_words

STATUS_FILE = "status.json"
STOP_FILE = "stop"  # asks the process that runs the search to end it
LAST_CHECKPOINT = "last.pt"
TRIALS, FINAL_RUNS = "trials", "final"  # folders in that of a search
PROCESS_FILES = (OWNER_FILE, CLAIM_FILE, STOP_FILE)  # without meaning once their process is gone, or on another machine


@dataclass(frozen=True)
class RecordDir(abc.ABC):
    """The folder of a search or of a run."""

    path: Path
    _FILES: ClassVar = {"record": "config.json", "status": STATUS_FILE, "ledger": "mlflow.json"}

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def export(self) -> Path:
        """The exported model, a folder."""
        return self.path / "export"

    def file(self, what: str) -> Path:
        """Return the path of a file: record, status or ledger; of a run also metrics; of a search also usage, forecast,
        earlier or selection."""
        return self.path / self._FILES[what]

    def exists(self) -> bool:
        """Return whether a search or run was created here."""
        return self.file("record").is_file()

    @abc.abstractmethod
    def record(self) -> FolderRecord:
        """Read the record of the search or run. Raises InputError."""

    def status(self) -> RunStatus:
        """Read the status; a folder without one is running. Raises InputError."""
        return read_optional(RunStatus, self.file("status")) or RunStatus(state=RUNNING)

    @property
    def state(self) -> str:
        """The state of its status."""
        return self.status().state

    def set_status(
        self,
        state: str,
        reason: str = "",
        traceback: str = "",
        successor: Successor | None = None,
        front: list[str] | None = None,
    ) -> None:
        """Write the status. Home directories become `~`, because MLflow gets reason and traceback.

        Raises StorageError if another process has taken over the search, as all that writes its course does.
        """
        check_still_held(self.path)
        old = self.status()
        started = old.started or time.time()
        fields: dict[str, Any] = {"state": state, "reason": without_home(reason), "started": started}
        if state != RUNNING:
            fields["ended"] = max(time.time(), started)  # a clock can be set back
        if old.predicted_memory_mb is not None:
            fields["predicted_memory_mb"] = old.predicted_memory_mb
        if traceback:
            fields["traceback"] = without_home(traceback)
        if successor is not None:
            fields["successor"] = successor
        if front is not None:
            fields["front"] = front
        write_json(self.file("status"), RunStatus(**fields).as_json())

    def set_predicted_memory(self, mb: float) -> None:
        """Write the predicted `peak_memory_mb` (MiB)."""
        check_still_held(self.path)
        status = self.status().model_copy(update={"predicted_memory_mb": mb})
        write_json(self.file("status"), status.as_json())

    def ledger(self) -> MlflowLedger:
        """Read what MLflow has already. Raises InputError."""
        return read_optional(MlflowLedger, self.file("ledger"), REMAKE_LEDGER) or MlflowLedger()

    def set_ledger(self, ledger: MlflowLedger) -> None:
        """Write what MLflow has already."""
        write_json(self.file("ledger"), ledger.as_json())

    def set_evaluation(self, evaluation: Evaluation | EvaluationMetrics, fingerprint: str = "") -> None:
        """Write an evaluation on the sealed test. Pass the data's fingerprint for data other than the run's own."""
        check_still_held(self.path)
        write_json(self.evaluation_file(fingerprint), evaluation.as_json())

    def evaluation(self, fingerprint: str = "") -> Evaluation | None:
        """Read the evaluation of a search or a single run; None before the sealed test was opened."""
        return read_optional(Evaluation, self.evaluation_file(fingerprint))

    def evaluation_metrics(self) -> EvaluationMetrics | None:
        """Read the evaluation's metrics of a search's model or a single run; None before the test was opened."""
        return read_optional(EvaluationMetrics, self.evaluation_file())

    def evaluation_file(self, fingerprint: str = "") -> Path:
        return self.path / (f"test-{fingerprint[:12]}.json" if fingerprint else "test.json")

    def remove(self) -> None:
        """Delete the folder, if it exists."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True)
class RunDir(RecordDir):
    """The folder of one training: a trial, a final run, or a run of `wmlsearch train`."""

    _FILES: ClassVar = {**RecordDir._FILES, "metrics": "metrics.jsonl"}

    @property
    def last(self) -> Path:
        """Checkpoint of the latest epoch: all that a resumed training needs."""
        return self.path / LAST_CHECKPOINT

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.path / "best.pt"

    def snapshot(self, epoch: int) -> tuple[Path, Path]:
        """Return the paths of copies of `last` and `best` after an epoch, from which other trials continue."""
        return self.path / f"epoch-{epoch:04d}.pt", self.path / f"epoch-{epoch:04d}-best.pt"

    @classmethod
    def create(cls, path: Path, record: RunRecord) -> RunDir:
        """Create a run folder, in state "running". The record gets a key and the time if it has none."""
        run = cls(path)
        _begin(run, record)
        return run

    def record(self) -> RunRecord:
        return read_record(RunRecord, self.file("record"))

    def checkpoint_bytes(self) -> int:
        """Return the size of the checkpoints in this folder, in bytes."""
        size = 0
        for path in (self.last, self.best):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def append(self, row: EpochRow) -> None:
        """Append the line of an epoch. Raises OSError as `append_line` does, and StorageError as `set_status` does."""
        check_still_held(self.path)
        append_line(self.file("metrics"), row.as_json())

    def rows(self) -> list[EpochRow]:
        """Read the epochs so far, oldest first. Raises InputError."""
        path = self.file("metrics")
        lines = read_lines(path)
        try:
            return [EpochRow.from_json(line) for line in lines]
        except KeyError:
            check_lines(EpochLine, lines, path)
            raise

    def trained_rows(self) -> list[EpochRow]:
        """Read the epochs that this run trained, without those that a child has from its parent."""
        return self.rows()[self.record().parent_epoch :]

    def reconcile(self, rows: Sequence[EpochRow]) -> None:
        """Make the lines equal to those of a checkpoint: add the missing ones, remove those after it.

        Lines that are there keep the time at which they were received.
        """
        before = self.rows()
        if before != list(rows):
            check_still_held(self.path)
            lines = {row.epoch: row for row in before}
            merged = [lines[row.epoch] if lines.get(row.epoch) == row else row for row in rows]
            write_text(self.file("metrics"), "".join(as_line(row.as_json()) for row in merged))


@dataclass(frozen=True)
class ModelDir(RunDir):
    """The folder of a final model, `models/<role>`: networks of one configuration, and their export."""

    def record(self) -> ModelRecord:
        return read_record(ModelRecord, self.file("record"))


@dataclass(frozen=True)
class SearchDir(RecordDir):
    """The folder of a search: its own `search.json` and `status.json`, its trials and final runs below it."""

    _FILES: ClassVar = {
        **RecordDir._FILES, "record": "search.json", "usage": "used.json", "forecast": "forecast.json",
        "earlier": "earlier.jsonl", "selection": "selection.json",
    }  # fmt: skip

    @classmethod
    def create(cls, path: Path, record: SearchRecord) -> SearchDir:
        """Create a search folder, in state "running". Raises InputError where a run exists: nothing is overwritten."""
        check_new(path)
        search = cls(path)
        _begin(search, record)
        return search

    def record(self) -> SearchRecord:
        return read_record(SearchRecord, self.file("record"))

    def change_settings(self, settings: RunSettings, storage: str | None, ray_address: str | None = None) -> None:
        """Write the settings of a resumed search, which can have other budgets, its checkpoints' place and its Ray."""
        changes = {"settings": settings, "storage": storage, "ray_address": ray_address}
        record = self.record().model_copy(update=changes)
        write_json(self.file("record"), record.as_json())

    @property
    def journal(self) -> Path:
        """Optuna's journal file of the study."""
        return self.path / "study.journal"

    @property
    def report(self) -> Path:
        """The folder of the HTML report."""
        return self.path / "report"

    @property
    def report_page(self) -> Path:
        """The page of the HTML report."""
        return self.report / "index.html"

    def set_gallery(self, gallery: Gallery) -> None:
        """Write slices of the test patients with their predictions, for the report."""
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **gallery.to_arrays())
        write_bytes(self._gallery, file.getbuffer())

    def gallery(self) -> Gallery | None:
        """Read the gallery of the sealed test; None before it was opened. Raises InputError for a damaged file."""
        if not self._gallery.is_file():
            return None
        try:
            with np.load(self._gallery, allow_pickle=False) as arrays:
                return Gallery.from_arrays(dict(arrays)) if arrays.files else None
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{self._gallery}: cannot be read ({error}); `wmlsearch evaluate` writes it again"
            ) from None

    def set_aside_evaluation(self, evaluation: Evaluation) -> None:
        """Rename `test.json` after the champion that it is about, since the search has other models now."""
        champion = evaluation.names.get("champion", "")
        os.replace(self.evaluation_file(), self.path / f"test-of-{champion}.json")
        self._gallery.unlink(missing_ok=True)

    def withdrawn_champions(self) -> list[str]:
        """Return the champions whose evaluations were set aside, sorted."""
        return sorted(path.stem.removeprefix("test-of-") for path in self.path.glob("test-of-*.json"))

    @property
    def _gallery(self) -> Path:
        return self.path / "test-gallery.npz"

    @property
    def _stop(self) -> Path:
        """The file that asks the search to end."""
        return self.path / STOP_FILE

    def request_stop(self) -> None:
        """Ask the process that runs the search to end it cleanly."""
        write_text(self._stop, "")

    def stop_requested(self) -> bool:
        return self._stop.exists()

    def usage(self) -> Usage:
        """Read what the search has used. Raises InputError."""
        return read_optional(Usage, self.file("usage")) or Usage()

    def update_usage(self, **changes: float) -> None:
        """Write new values of the named fields; the others stay."""
        check_still_held(self.path)
        write_json(self.file("usage"), {**self.usage().as_json(), **changes})

    def forecast(self) -> ForecastRecord | None:
        """Read the forecast; None without one. Raises InputError."""
        return read_optional(ForecastRecord, self.file("forecast"), DELETE_FORECAST)

    def set_forecast(self, forecast: ForecastRecord) -> None:
        write_json(self.file("forecast"), forecast.as_json())

    def selection(self) -> SelectionRecord | None:
        """Read which configuration is the champion, and why; None before it was selected. Raises InputError."""
        return read_optional(SelectionRecord, self.file("selection"), SELECT_AGAIN)

    def set_selection(self, selection: SelectionRecord) -> None:
        check_still_held(self.path)
        write_json(self.file("selection"), selection.as_json())

    def earlier(self) -> list[EarlierTrial]:
        """Read the trials of earlier searches that the study knows. Raises InputError."""
        path = self.file("earlier")
        return check_lines(EarlierTrial, read_lines(path), path)

    def set_earlier(self, trials: Sequence[EarlierTrial]) -> None:
        write_text(self.file("earlier"), "".join(as_line(trial.as_json()) for trial in trials))

    def trial(self, number: int) -> RunDir:
        return RunDir(self.path / TRIALS / f"{number:04d}")

    def final(self, name: str, seed: int) -> RunDir:
        """Return the folder of a selection run, or of a final run of an older version."""
        return RunDir(self.path / FINAL_RUNS / selection_run_name(name, seed))

    def judgement_run(self, name: str, number: int) -> RunDir:
        return RunDir(self.path / FINAL_RUNS / judgement_run_name(name, number))

    def model(self, role: str) -> ModelDir:
        """Return the folder of a final model: "baseline" or "champion"."""
        return ModelDir(self.path / "models" / role)

    def trials(self) -> list[RunDir]:
        return [RunDir(path) for path in _run_folders(self.path / TRIALS)]

    def finals(self) -> list[RunDir]:
        return [RunDir(path) for path in _run_folders(self.path / FINAL_RUNS)]

    def models(self) -> list[ModelDir]:
        return [ModelDir(path) for path in _run_folders(self.path / "models")]

    def all_runs(self) -> list[RunDir]:
        """Return all run folders in it: trials, final runs and models."""
        return [*self.trials(), *self.finals(), *self.models()]

    def replace_with(self, newer: Path) -> None:
        """Move the files of a newer copy of this search here, the status last: an interrupted move is noticed."""
        files = [path for path in newer.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path == newer / STATUS_FILE):
            target = self.path / path.relative_to(newer)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        shutil.rmtree(newer)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the search for this process. Raises InputError that names the process that holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.path):
            self._stop.unlink(missing_ok=True)  # it was for the process that held the search before
            yield

    def is_running(self) -> bool:
        """Return whether a process runs this search now."""
        return is_running(self.path)


AnyDir = RunDir | SearchDir


def _begin(folder: AnyDir, record: FolderRecord) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    birth = {"key": record.key or uuid.uuid4().hex, "created": record.created or time.time()}
    write_json(folder.file("record"), record.model_copy(update=birth).as_json())
    folder.set_status(RUNNING)


def check_new(path: Path) -> None:
    """Refuse a folder that holds a run, is not empty, or cannot be created. Raises InputError."""
    status = path / STATUS_FILE
    if status.exists():
        check_not_running(path)
        state = read_json(status).get("state")
        more = () if state in UNFINISHED else ("--trials", "MORE") if state == "completed" else None
        resume = ""
        if SearchDir(path).exists() and more is not None:
            what = "add trials to it" if more else "continue it"
            resume = f"{what} (`{command('tune', '--resume', *run_words(path), *more)}`), "
        raise InputError(
            f"{path}: there is a run of this name already (state: {state}), and nothing is overwritten; {resume}"
            "choose another --name, or delete the folder"
        )
    # hidden files are the temporary ones of a killed process
    if path.exists() and any(file.name != OWNER_FILE and not file.name.startswith(".") for file in path.iterdir()):
        raise InputError(f"{path}: is not empty and not a run; choose another --name or --out")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        what = "cannot be written" if above.is_dir() else "is not a folder"
        raise InputError(f"{path}: cannot be created, because {above} {what}; choose another --out")


def find_run(name: str | None, out: Path) -> AnyDir:
    """Return a search or run by its name in `out`, by its path, or the latest one in `out`. Raises InputError."""
    runs = list_runs(out)
    if name is None:
        if not runs:
            raise InputError(f"{out}: has no search or run; start one with `wmlsearch tune`, or give --out")
        return max(runs, key=creation_time)
    for path in (with_name(out / name), with_name(Path(name))):
        if (path / "search.json").is_file():
            return SearchDir(path)
        if (path / "config.json").is_file():
            return RunDir(path)
    names = ", ".join(run.name for run in sorted(runs, key=creation_time)) or "none"
    raise InputError(f"{name}: no search or run of this name in {out} (it has: {names}), and not a path to one")


def parent_search(run: AnyDir) -> AnyDir:
    """Return the search that a run belongs to, or the run itself."""
    if not isinstance(run, SearchDir):
        as_named = Path(os.path.normpath(run.path.absolute()))
        for path in (as_named, run.path.resolve()):  # a link to the search, or to the run
            if (above := SearchDir(path.parent.parent)).exists():  # the parent of / is /
                return above
    return run


def folder_of_all_runs(run: AnyDir) -> Path:
    """Return the folder that holds a search or run beside others, as `--out` names it. Its MLflow store is there."""
    return with_name(parent_search(run).path).parent


def creation_time(run: AnyDir) -> float:
    """Return when a run was created, Unix seconds. Of a damaged folder: when it was changed.

    The record is not validated: another run's fault must not change the order in which runs are found.
    """
    try:
        time_s = read_json(run.file("record")).get("created")
    except InputError:
        time_s = None
    return time_s if isinstance(time_s, int | float) else run.path.stat().st_mtime


def find_search(name: str | None, out: Path) -> SearchDir:
    """Return a search by its name in `out`, by its path, or the latest one in `out`. Raises InputError."""
    if name is None:
        searches = [run for run in list_runs(out) if isinstance(run, SearchDir)]
        if not searches:
            raise InputError(f"{out}: has no search; start one with `wmlsearch tune`, or give --out")
        return max(searches, key=creation_time)
    search = find_run(name, out)
    if not isinstance(search, SearchDir):
        raise InputError(f"{search.path}: is a training, not a search; name a search")
    return search


def list_runs(out: Path) -> list[AnyDir]:
    """Return all searches and runs directly below `out`, sorted by name.

    Hidden folders are not complete yet. Folders that only other users may read, such as `lost+found`, are passed over.
    """
    runs: list[AnyDir] = []
    for path in sorted(out.iterdir()) if out.is_dir() else []:
        if path.name.startswith("."):
            continue
        with contextlib.suppress(PermissionError):
            if (path / "search.json").is_file():
                runs.append(SearchDir(path))
            elif (path / "config.json").is_file():
                runs.append(RunDir(path))
    return runs


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
    return [path for path in paths if (path / "config.json").is_file()]


def mark_dead_runs(root: AnyDir) -> None:
    """Set what is "running" in a search or run that no process holds to "interrupted": its process died."""
    folders: list[AnyDir] = [root, *(root.all_runs() if isinstance(root, SearchDir) else [])]
    if running := [folder for folder in folders if folder.state == RUNNING]:
        with contextlib.suppress(InputError), folder_lock(root.path):
            for folder in running:
                folder.set_status("interrupted", "its process died")


def check_name(name: str) -> str:
    """Return a name that is safe as the name of a folder. Raises InputError for others."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InputError(
            f"--name {name!r}: letters, digits, '.', '_' and '-' only, at most 100, not starting with a sign"
        )
    return name
