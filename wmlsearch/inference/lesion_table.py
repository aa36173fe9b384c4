"""lesions.csv: how many lesions were predicted in each image, and how large they are together."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from wmlsearch.data.findings import Finding
from wmlsearch.inference.postprocessing import NO_POSTPROCESSING, Postprocessing

LESION_TABLE = "lesions.csv"


@dataclass(frozen=True)
class LesionRow:
    """The lesions that the model or its ensemble predicted in one image: a line of lesions.csv."""

    input: str
    predicted_by: str  # model, ensemble
    model: str  # names of the members, separated by spaces
    threshold: float
    lesions: int
    volume_ml: float | None  # None for 2-D pictures
    area_pixels: int | None  # None for volumes
    mask: str  # the file of the mask; "" if it is not written
    findings: tuple[Finding, ...] = ()  # what is doubtful about the image, and how well it suits the model
    postprocessing: Postprocessing = NO_POSTPROCESSING  # what the model did beside the threshold


def lesion_csv(rows: Sequence[LesionRow]) -> str:
    """Return the table as CSV, with a column `volume_ml` for volumes or `area_pixels` for pictures."""
    size = "area_pixels" if rows[0].volume_ml is None else "volume_ml"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["input", "predicted_by", "model", "threshold", "lesions", size, "mask", "notes", "postprocessing"])
    for row in rows:
        amount = row.area_pixels if row.volume_ml is None else f"{row.volume_ml:.4f}"
        notes = "; ".join(finding.text for finding in row.findings)
        first = [row.input, row.predicted_by, row.model, f"{row.threshold:.6g}"]
        writer.writerow([*first, row.lesions, amount, row.mask, notes, row.postprocessing])
    return text.getvalue()
