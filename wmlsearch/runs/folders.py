"""Run folders: the truth about every training and search, in plain files. Only this module knows the names in them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import ValidationError

from wmlsearch.config import InputError, faults_of
from wmlsearch.runs.evaluation import Evaluation, EvaluationMetrics, Gallery, Record
from wmlsearch.runs.files import append_line, as_line, read_json, read_lines, write_bytes, write_json, write_text
from wmlsearch.runs.lock import check_not_running, folder_lock, is_running
from wmlsearch.runs.names import final_run_name
from wmlsearch.runs.redaction import without_home

# How a run can stand. "stopped" is the scheduler's doing, "early_stopped" the configuration's own patience; "lost" is a
# training whose process or machine died again and again, "failed" an error in the program.
RUNNING = "running"
GOOD = ("completed", "early_stopped", "stopped")
BAD = ("diverged", "out_of_memory", "lost", "failed")
ENDED = (*GOOD, *BAD, "interrupted")
UNFINISHED = (RUNNING, "interrupted")  # what a resumed search goes on with
RESTORE = "restore it from a copy, or move the run away"
T = TypeVar("T", bound=Record)
_STATUS = "status.json"
_KEPT = ("predicted_memory_mb",)  # in it, however its state changes
_USED = ("seconds", "gpu_seconds", "final_seconds", "final_gpu_seconds", "checkpoint_bytes")


@dataclass(frozen=True)
class RunDir:
    """The folder of one training: a trial, a final run, or a run of `wmlsearch train`."""

    path: Path
    _FILES: ClassVar = {"about": "config.json", "status": _STATUS, "metrics": "metrics.jsonl", "ledger": "mlflow.json"}

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def last(self) -> Path:
        """Checkpoint of the latest epoch: all that a resumed training needs."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.path / "best.pt"

    @property
    def export(self) -> Path:
        """The model as a folder to hand on."""
        return self.path / "export"

    def snapshot(self, epoch: int) -> tuple[Path, Path]:
        """What `last` and `best` were after an epoch, kept for trials that go on from there."""
        return self.path / f"epoch-{epoch:04d}.pt", self.path / f"epoch-{epoch:04d}-best.pt"

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any]) -> RunDir:
        """A new run folder; `about` says what runs (name, kind, config, settings, data) and never changes."""
        run = cls(path)
        path.mkdir(parents=True, exist_ok=True)
        write_json(run.file("about"), {"key": uuid.uuid4().hex, "created": time.time(), **about})
        run.set_status(RUNNING)
        return run

    def file(self, what: str) -> Path:
        """Where it says `what` of itself: about, status, metrics, ledger; a search also used, forecast, earlier."""
        return self.path / self._FILES[what]

    def about(self) -> dict[str, Any]:
        return read_json(self.file("about"))

    def checkpoint_bytes(self) -> int:
        """What its checkpoints take here."""
        size = 0
        for path in (self.last, self.best):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def append(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's line."""
        append_line(self.file("metrics"), row)

    def rows(self) -> list[dict[str, Any]]:
        """The epochs so far, oldest first."""
        return read_lines(self.file("metrics"))

    def trained_rows(self) -> list[dict[str, Any]]:
        """The epochs that were trained here: without those that a child took over from its parent."""
        return self.rows()[self.about().get("parent_epoch", 0) :]

    def rate_factors(self) -> dict[int, float]:
        """What the learning rate of its configuration is multiplied with, each from its epoch on."""
        return {int(epoch): factor for epoch, factor in self.about().get("rate_factors", {}).items()}

    def reconcile(self, rows: list[dict[str, Any]]) -> None:
        """Make the lines those that a checkpoint holds: what is missing is filled in, what lies past it is cut."""
        if self.rows() != rows:
            text = "".join(as_line(row) for row in rows)
            write_text(self.file("metrics"), text)

    def set_status(self, state: str, reason: str = "", **more: Any) -> None:
        """How the run stands; home directories in its reason and traceback are `~`, since MLflow gets them."""
        old = self.status()
        reason, more = without_home(reason), {k: without_home(v) if isinstance(v, str) else v for k, v in more.items()}
        started = old.get("started") or time.time()
        ended = {} if state == RUNNING else {"ended": max(time.time(), started)}  # clocks are set back at times
        kept = {name: old[name] for name in _KEPT if name in old}
        write_json(self.file("status"), {"state": state, "reason": reason, "started": started, **ended, **kept, **more})

    def set_predicted_memory(self, mb: float) -> None:
        """What its `peak_memory_mb` (MiB) should be, as known before its first epoch."""
        write_json(self.file("status"), {**self.status(), "predicted_memory_mb": mb})

    def status(self) -> dict[str, Any]:
        return read_json(self.file("status")) if self.file("status").exists() else {}

    def exists(self) -> bool:
        """Whether something was ever run here."""
        return self.file("about").is_file()

    @property
    def state(self) -> str:
        """How it stands; a folder that was begun and says nothing is running."""
        return str(self.status().get("state", RUNNING))

    def set_evaluation(self, evaluation: Evaluation | EvaluationMetrics, fingerprint: str = "") -> None:
        """Keep an evaluation on the sealed test. Pass the data's fingerprint for data other than the run's own."""
        write_json(self.evaluation_file(fingerprint), evaluation.as_json())

    def evaluation(self, fingerprint: str = "") -> Evaluation | None:
        """Return the evaluation of a search or a single run, None before the sealed test was opened."""
        return _optional_record(Evaluation, self.evaluation_file(fingerprint))

    def evaluation_metrics(self) -> EvaluationMetrics | None:
        """Return the evaluation's metrics of a search's model or a single run, None before the test was opened."""
        return _optional_record(EvaluationMetrics, self.evaluation_file())

    def evaluation_file(self, fingerprint: str = "") -> Path:
        return self.path / (f"test-{fingerprint[:12]}.json" if fingerprint else "test.json")

    def remove(self) -> None:
        """Delete the folder, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)

    def ledger(self) -> dict[str, Any]:
        """What the mirror has written to MLflow already."""
        return read_json(self.file("ledger")) if self.file("ledger").exists() else {}

    def set_ledger(self, ledger: Mapping[str, Any]) -> None:
        write_json(self.file("ledger"), ledger)


@dataclass(frozen=True)
class SearchDir(RunDir):
    """The folder of a search: its own `search.json` and `status.json`, its trials and final runs below it."""

    _FILES: ClassVar = {
        **RunDir._FILES, "about": "search.json", "used": "used.json", "forecast": "forecast.json",
        "earlier": "earlier.jsonl",
    }  # fmt: skip

    @property
    def journal(self) -> Path:
        """Optuna's journal file of the study."""
        return self.path / "study.journal"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def set_gallery(self, gallery: Gallery) -> None:
        """Keep slices of the test patients with their predictions, for the report."""
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **gallery.to_arrays())
        write_bytes(self._gallery, file.getbuffer())

    def gallery(self) -> Gallery | None:
        """Return the gallery of the sealed test, None before it was opened. Raises InputError for a damaged file."""
        if not self._gallery.is_file():
            return None
        try:
            with np.load(self._gallery, allow_pickle=False) as arrays:
                return Gallery.from_arrays(dict(arrays)) if arrays.files else None
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{self._gallery}: cannot be read ({error}); `wmlsearch evaluate` writes it again"
            ) from None

    @property
    def _gallery(self) -> Path:
        return self.path / "test-gallery.npz"

    @property
    def _stop(self) -> Path:
        """There while somebody wants the search to end."""
        return self.path / "stop"

    def request_stop(self) -> None:
        """Ask the process that runs the search to end it cleanly."""
        write_text(self._stop, "")

    def stop_requested(self) -> bool:
        return self._stop.exists()

    def used(self) -> dict[str, float]:
        """What the search has used: `seconds` in which its trials ran, `gpu_seconds` that they held.

        And `final_seconds` and `final_gpu_seconds` of the final runs; `checkpoint_bytes`: most that its checkpoints
        took at a time, 0 where they are kept elsewhere.
        """
        used = read_json(self.file("used")) if self.file("used").exists() else {}
        return {**dict.fromkeys(_USED, 0.0), **used}

    def set_used(self, used: Mapping[str, float]) -> None:
        """What isn't named stays as it is."""
        write_json(self.file("used"), {**self.used(), **used})

    def forecast(self) -> dict[str, Any]:
        """What the search was expected to use, before its first trial; {} where nobody asked."""
        return read_json(self.file("forecast")) if self.file("forecast").exists() else {}

    def set_forecast(self, forecast: Mapping[str, Any]) -> None:
        write_json(self.file("forecast"), forecast)

    def earlier(self) -> list[dict[str, Any]]:
        """Trials of earlier searches that the study knows: config, state, values (of each epoch)."""
        return read_lines(self.file("earlier"))

    def set_earlier(self, trials: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.file("earlier"), "".join(as_line(trial) for trial in trials))

    def change_settings(self, settings: Mapping[str, Any], **more: Any) -> None:
        """A resumed search may have other budgets than it began with, and its checkpoints elsewhere."""
        write_json(self.file("about"), {**self.about(), "settings": dict(settings), **more})

    def trial(self, number: int) -> RunDir:
        return RunDir(self.path / "trials" / f"{number:04d}")

    def final(self, name: str, seed: int) -> RunDir:
        return RunDir(self.path / "final" / final_run_name(name, seed))

    def model(self, role: str) -> RunDir:
        """What the search ends with: the "baseline" and the "champion", each with its exported networks."""
        return RunDir(self.path / "models" / role)

    def trials(self) -> list[RunDir]:
        return _runs(self.path / "trials")

    def finals(self) -> list[RunDir]:
        return _runs(self.path / "final")

    def models(self) -> list[RunDir]:
        return _runs(self.path / "models")

    def all_runs(self) -> list[RunDir]:
        """All that is below it."""
        return self.trials() + self.finals() + self.models()

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any]) -> SearchDir:
        """A new search folder. Raises InputError where one is there already: nothing is overwritten."""
        check_new(path)
        path.mkdir(parents=True, exist_ok=True)
        search = cls(path)
        write_json(search.file("about"), {"key": uuid.uuid4().hex, "created": time.time(), **about})
        search.set_status(RUNNING)
        return search

    def summary(self) -> dict[str, Any]:
        """Which search this is and how it stands, by which copies of it are told apart; {} before it has begun."""
        if not self.exists():
            return {}
        return {"key": self.about().get("key"), "status": self.status(), "used": self.used()}

    def replace_with(self, newer: Path) -> None:
        """Take the files of a newer copy of this search, each whole; the status last, so that a break shows."""
        files = sorted((path for path in newer.rglob("*") if path.is_file()), key=lambda it: it == newer / _STATUS)
        for path in files:
            target = self.path / path.relative_to(newer)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        shutil.rmtree(newer)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the search for this process. Raises InputError that names who holds it; a dead process holds nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.path):
            self._stop.unlink(missing_ok=True)  # meant for whoever held it before
            yield

    def is_running(self) -> bool:
        """Whether a process runs this search now."""
        return is_running(self.path)


def check_new(path: Path) -> None:
    """Refuse a folder in which something was run before, or that can't be made. Raises InputError."""
    status = path / _STATUS
    if status.exists():
        check_not_running(path)
        state = read_json(status).get("state")
        raise InputError(
            f"{path}: there is a run of this name already (state: {state}), and nothing is overwritten; "
            "choose another --name, or delete the folder"
        )
    # what was aside when its writer was killed is nothing that could be overwritten
    if path.exists() and any(it.name != "owner" and not it.name.startswith(".") for it in path.iterdir()):
        raise InputError(f"{path}: is not empty and not a run; choose another --name or --out")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        what = "can't be written" if above.is_dir() else "is no folder"
        raise InputError(f"{path}: can't be made, since {above} {what}; choose another --out")


def find(name: str | None, out: Path) -> RunDir:
    """A search or run by NAME below `out`, by path, or the latest one. Raises InputError that says what there is."""
    there = every(out)
    if name is None:
        if not there:
            raise InputError(f"{out}: no search or run there yet; start one with `wmlsearch tune`, or give --out")
        return max(there, key=created)
    for path in (out / name, Path(name)):
        if (path / "search.json").is_file():
            return SearchDir(path)
        if (path / "config.json").is_file():
            return RunDir(path)
    names = ", ".join(run.name for run in sorted(there, key=created)) or "none"
    raise InputError(f"{name}: no search or run of this name in {out} (there: {names}), and no path to one")


def created(run: RunDir) -> float:
    """When a run was begun, Unix seconds; of a damaged folder, which must not block others, when it was changed."""
    try:
        time_s = run.about().get("created")
    except InputError:
        time_s = None
    return time_s if isinstance(time_s, int | float) else run.path.stat().st_mtime


def find_search(name: str | None, out: Path) -> SearchDir:
    """As `find`, but a search. Raises InputError."""
    found = find(name, out)
    if not isinstance(found, SearchDir):
        raise InputError(f"{found.path}: is a training, not a search")
    return found


def every(out: Path) -> list[RunDir]:
    """All searches and runs directly below `out`, by name."""
    found: list[RunDir] = []
    for path in sorted(out.iterdir()) if out.is_dir() else []:
        if (path / "search.json").is_file():
            found.append(SearchDir(path))
        elif (path / "config.json").is_file():
            found.append(RunDir(path))
    return found


def _optional_record(form: type[T], path: Path) -> T | None:
    """Read a record; None where the file does not exist. Raises InputError for a damaged file."""
    if not path.exists():
        return None
    try:
        return form.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: is damaged; {RESTORE}", faults_of(error, form)) from None


def _runs(folder: Path) -> list[RunDir]:
    if not folder.is_dir():
        return []
    return [RunDir(path) for path in sorted(folder.iterdir()) if (path / "config.json").is_file()]


def mark_dead_runs(root: RunDir) -> None:
    """What says "running" below a search or run that no process holds has died without a word: it is interrupted."""
    parts = [root, *(root.all_runs() if isinstance(root, SearchDir) else [])]
    if still := [part for part in parts if part.state == RUNNING]:
        with contextlib.suppress(InputError), folder_lock(root.path):
            for part in still:
                part.set_status("interrupted", "its process died")


def check_name(name: str) -> str:
    """A name that is safe as a folder's. Raises InputError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InputError(
            f"--name {name!r}: letters, digits, '.', '_' and '-' only, at most 100, not starting with a sign"
        )
    return name
