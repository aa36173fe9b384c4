"""Typed records of what `plan`, `evaluate`, `predict` and `report` print with `--json`.

docs/reference/json.md documents each field. A change that breaks scripts raises FORMAT of `workflows.summaries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.inference.lesion_table import LESION_TABLE, LesionRow
from wmlsearch.runs.evaluation import Evaluation
from wmlsearch.runs.folders import AnyDir
from wmlsearch.workflows.summaries import FORMAT

if TYPE_CHECKING:
    from wmlsearch.cluster.resources import Slots
    from wmlsearch.forecast.cost import Forecast


@dataclass(frozen=True)
class RungSummary:
    """A rung of the forecast."""

    epoch: int
    trials: float
    epochs: float


@dataclass(frozen=True)
class SlotSummary:
    """How many trials or final runs go on at a time, and the resources of each."""

    count: int
    workers: int
    cpus: int
    gpus: float

    @classmethod
    def of(cls, slots: Slots) -> SlotSummary:
        return cls(slots.count, slots.workers, slots.cpus, slots.gpus)


@dataclass(frozen=True)
class PlanSummary:
    """What a search is expected to cost."""

    format: int
    kind: str
    device: str
    slots: SlotSummary
    final_slots: SlotSummary
    rungs: list[RungSummary]
    epochs: float
    final_runs: int
    final_epochs: int
    start_s: float
    search_s: float
    final_s: float
    total_s: float
    epoch_s: float
    gpu_hours: float
    disk_bytes: int
    peak_memory_mb: float
    ends_by: str
    notes: list[str]
    verdict: str

    @classmethod
    def of(cls, forecast: Forecast, power: str) -> PlanSummary:
        """Return the record of a forecast, and of the sentence which difference the verdict could find."""
        return cls(
            format=FORMAT,
            kind="plan",
            device=forecast.device,
            slots=SlotSummary.of(forecast.slots),
            final_slots=SlotSummary.of(forecast.final),
            rungs=[RungSummary(rung.epoch, rung.trials, rung.epochs) for rung in forecast.rungs],
            epochs=forecast.epochs,
            final_runs=forecast.final_runs,
            final_epochs=forecast.final_epochs,
            start_s=forecast.start_s,
            search_s=forecast.search_s,
            final_s=forecast.final_s,
            total_s=forecast.total_s,
            epoch_s=forecast.epoch_s,
            gpu_hours=forecast.gpu_hours,
            disk_bytes=forecast.disk_bytes,
            peak_memory_mb=forecast.peak_memory_mb,
            ends_by=forecast.ends_by,
            notes=list(forecast.notes),
            verdict=power,
        )


@dataclass(frozen=True)
class EvaluationSummary:
    """Scores on the sealed test patients."""

    format: int
    kind: str
    name: str
    path: str
    file: str
    report: str | None
    evaluation: Evaluation

    @classmethod
    def of(cls, run: AnyDir, file: Path, page: Path | None, evaluation: Evaluation) -> EvaluationSummary:
        """Return the record of an evaluation that was written into `file`, and of the report `page`."""
        folder = run.path.resolve()
        report = str(page.resolve()) if page else None
        return cls(FORMAT, "evaluation", folder.name, str(folder), str(file.resolve()), report, evaluation)


@dataclass(frozen=True)
class ImageSummary:
    """The lesions that were predicted in one image, by the model or by its ensemble."""

    input: str
    predicted_by: str
    model: str
    threshold: float
    lesions: int
    volume_ml: float | None
    area_pixels: int | None
    mask: str | None
    notes: list[str]
    mirror_averaging: bool
    smallest_lesion_mm3: float

    @classmethod
    def of(cls, row: LesionRow, out: Path) -> ImageSummary:
        return cls(
            input=str(Path(row.input).absolute()),
            predicted_by=row.predicted_by,
            model=row.model,
            threshold=row.threshold,
            lesions=row.lesions,
            volume_ml=row.volume_ml,
            area_pixels=row.area_pixels,
            mask=str((out / row.mask).absolute()) if row.mask else None,
            notes=[finding.text for finding in row.findings],
            mirror_averaging=row.postprocessing.mirror_averaging,
            smallest_lesion_mm3=row.postprocessing.smallest_lesion_mm3,
        )


@dataclass(frozen=True)
class PredictionSummary:
    """Predictions, and where they were written."""

    format: int
    kind: str
    out: str
    table: str
    images: list[ImageSummary]
    notes: list[str]

    @classmethod
    def of(cls, rows: Sequence[LesionRow], out: Path, notes: Sequence[str]) -> PredictionSummary:
        """Return the record of predictions in the folder `out`; `notes` say what was left out."""
        images, table = [ImageSummary.of(row, out) for row in rows], out / LESION_TABLE
        return cls(FORMAT, "prediction", str(out.absolute()), str(table.absolute()), images, list(notes))


@dataclass(frozen=True)
class ReportSummary:
    """Where a report is."""

    format: int
    kind: str
    name: str
    page: str
    uri: str

    @classmethod
    def of(cls, name: str, page: Path) -> ReportSummary:
        return cls(FORMAT, "report", name, str(page.resolve()), page.resolve().as_uri())
