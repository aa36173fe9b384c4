"""Find the FLAIR images and lesion masks of a raw data set; each module here reads one layout.

To add a layout, write a module with a `Layout` (see `layout.py`): `matches` tells whether a path has the layout, and
`find` returns its sources. Then name it in `LAYOUTS`, and give it a test in `tests/data/test_sources.py`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from wmlsearch.data.patient_names import alike_names
from wmlsearch.data.sources import bids, datalist, nnunet, pairs, table
from wmlsearch.data.sources.choices import Choices
from wmlsearch.data.sources.content import content_faults, uninstalled
from wmlsearch.data.sources.discovery import Discovery, LayoutReport, Unused, first_names
from wmlsearch.data.sources.layout import Layout, RawData, list_folders
from wmlsearch.data.sources.source import Source
from wmlsearch.errors import InputError
from wmlsearch.runs.names import natural_key

__all__ = ["LAYOUTS", "Choices", "Discovery", "Source", "Unused", "survey"]

LAYOUTS = (
    table.LAYOUT,
    pairs.LAYOUT,
    bids.LAYOUT,
    nnunet.LAYOUT,
    datalist.LAYOUT,
)  # the first that matches a path reads it
MAX_ADVISED = 3  # folders named where RAW itself is none of the layouts


def survey(raw: Path, choices: Choices | None = None) -> Discovery:
    """Return what a raw data set holds: its volumes, what is not used, remarks and faults. Opens no image.

    Raises:
        InputError: Where the path has none of the known layouts, or cannot be read.
    """
    choices = choices or Choices()
    report = LayoutReport()
    try:
        layout = _layout(raw)
        sources = layout.find(RawData(raw, choices), report)
        report.faults += content_faults(raw, sources, report.list_file)
    except OSError as error:
        raise InputError(
            f"{raw}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    report.faults += _option_faults(layout, choices) + _faults_of_several(sources)
    report.notes += _notes_of_several(sources)
    if len({source.is_nifti for source in sources}) > 1:
        report.faults.append(
            "NIfTI volumes and 2-D pictures must not be mixed, but both were found; prepare them apart"
        )
    return Discovery(
        raw,
        layout.description,
        tuple(sorted(sources, key=_order)),
        tuple(report.unused),
        report.unused_note,
        tuple(report.notes),
        tuple(report.faults),
        tuple(sorted(set(report.test_patients))),
        report.lesion_labels,
        report.ignore_labels,
    )


def _order(source: Source) -> tuple[object, object, object]:
    name = source.name(source.image[0])
    return natural_key(source.patient), natural_key(source.timepoint), natural_key(name)


def _faults_of_several(sources: list[Source]) -> list[str]:
    """Return a line for each file that is the image of one volume and the mask of another."""
    masks = {path: source for source in sources for path in source.mask}
    return [
        f"{source.name(path)}: is an image here, and the mask of {masks[path].name(masks[path].image[0])}; name the "
        "mask of that image"
        for source in sources
        for path in source.image
        if path in masks
    ]


def _notes_of_several(sources: list[Source]) -> list[str]:
    """Return remarks on masks that patients share, and on patients whose names are likely one patient's."""
    notes = []
    patients_of: dict[Path, dict[str, Source]] = defaultdict(dict)
    for source in sources:
        for path in source.mask:
            patients_of[path].setdefault(source.patient, source)
    for path, shared in patients_of.items():
        if len(shared) > 1:
            name = next(iter(shared.values())).name(path)
            patients = f"{len(shared)} patients ({first_names(list(shared))})"
            notes.append(f"{name} is the mask of {patients}: right if it is empty")
    if alike := alike_names(source.patient for source in sources if source.patient):
        listed = first_names([" and ".join(map(repr, names)) for names in alike])
        notes.append(f"look like names of one patient: {listed}; if so, give all scans of a patient the same name")
    return notes


def _option_faults(layout: Layout, choices: Choices) -> list[str]:
    """Return a line for each option that does nothing with this layout."""
    faults = []
    for option, is_given, attribute in (
        ("--patient-pattern", choices.patient_pattern is not None, "takes_patient_pattern"),
        ("--select", bool(choices.select), "takes_select"),
        ("--mask-select", bool(choices.mask_select), "takes_mask_select"),
    ):
        if is_given and not getattr(layout, attribute):
            users = " or ".join(other.description for other in LAYOUTS if getattr(other, attribute))
            faults.append(f"{option} is for {users}, but RAW is {layout.description}; leave it out")
    return faults


def _layout(raw: Path) -> Layout:
    for layout in LAYOUTS:
        if layout.matches(raw):
            return layout
    *others, last = (layout.description for layout in LAYOUTS)
    rule = f"RAW must be {', '.join(others)} or {last}"
    if inside := _data_sets_inside(raw):
        names = " or ".join(str(path) for path in inside)
        raise InputError(f"{raw}: {rule}; did you mean {names}?")
    if absent := uninstalled(raw):
        raise InputError(f"{raw}: {rule}", absent)
    if not raw.exists():
        raise InputError(f"{raw}: no such file or folder; {rule}")
    raise InputError(f"{raw}: {rule}; a table can name files of any other order")


def _data_sets_inside(raw: Path) -> list[Path]:
    """Return folders one or two levels below that have a layout, as many as are worth naming."""
    data_sets: list[Path] = []
    children = [folder for folder in list_folders(raw) if not folder.name.startswith(".")]
    for folder in [*children, *(inner for child in children for inner in list_folders(child))]:
        if any(folder.is_relative_to(other) for other in data_sets):
            continue
        if any(layout.matches(folder) for layout in LAYOUTS):
            data_sets.append(folder)
        if len(data_sets) == MAX_ADVISED:
            break
    return data_sets
