"""BIDS: a FLAIR image and a mask of lesions for each session of each subject, chosen by the entities of their names.

Images are the FLAIRs of `sub-*/[ses-*/]`, or those of derivatives where they are asked for or there is no other. Masks
are in `derivatives/`, with or without folders for subjects and sessions, or beside the image.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.bids_files import RAW_DATA, BidsFolder, has_subjects
from wmlsearch.data.sources.bids_masks import (
    NAMED,
    PLAIN,
    Candidate,
    LeftOut,
    as_candidate,
    as_mask_named_like_image,
    choose_masks,
)
from wmlsearch.data.sources.bids_names import BidsFile, entity_key
from wmlsearch.data.sources.bids_participants import read_sites
from wmlsearch.data.sources.choices import Selection, option_text, same_value
from wmlsearch.data.sources.content import uninstalled
from wmlsearch.data.sources.discovery import LayoutReport, Unused, first_names
from wmlsearch.data.sources.layout import Layout, RawData
from wmlsearch.data.sources.lesion_words import is_lesion_word
from wmlsearch.data.sources.other_formats import report_other_formats
from wmlsearch.data.sources.source import Source, is_nifti
from wmlsearch.data.spelling import composed
from wmlsearch.runs.wording import plural

_FLAIR_SUFFIX = re.compile(r"(?i)(2d|3d)?(t2w?-?)?(2d|3d)?flair")
_LIKE_FLAIR = re.compile(r"(?i).*flair.*|t2w?|pdt2|pdw?")  # images that a mask may be drawn on instead of a FLAIR
MAX_WAYS = 4  # alternatives in a message, where each takes several options


@dataclass
class _Scan:
    """The images and masks of one subject's session."""

    patient: str  # with `sub-`
    session: str
    images: list[BidsFile] = field(default_factory=list)
    masks: list[Candidate] = field(default_factory=list)
    other_images: list[BidsFile] = field(default_factory=list)  # which may be FLAIRs by another name
    other_formats: list[BidsFile] = field(default_factory=list)  # FLAIRs that are not NIfTI
    is_ignored: bool = False  # its images stand in .bidsignore
    whose: str = ""  # advice where it has a mask only: the name of another scan is nearly its own

    def is_of(self, patient: str) -> bool:
        """Whether a name with `sub-` is the subject's, however its accented letters are spelled."""
        return composed(patient) == composed(self.patient)

    @property
    def image_advice(self) -> str:
        """Where the image of its mask belongs, or may be."""
        if self.whose:
            return self.whose
        if self.other_formats:
            return f"convert {self.other_formats[0].name} to NIfTI"
        place = f"{self.name}/anat/{self.name.replace('/', '_')}_FLAIR.nii.gz"
        suffixes = dict.fromkeys(file.suffix for file in self.other_images)
        others = " or ".join(option_text("--select", "suffix", suffix) for suffix in suffixes)
        return f"add {place}" + (f", or take another image with {others}" if others else "")

    @property
    def name(self) -> str:
        return f"{self.patient}/ses-{self.session}" if self.session else self.patient


def _matches(raw: Path) -> bool:
    return has_subjects(raw) or has_subjects(raw / RAW_DATA)


def _find(raw: RawData, report: LayoutReport) -> list[Source]:
    folder = BidsFolder.open(raw.path)
    images, masks = (_short_keys(selection) for selection in (raw.choices.images, raw.choices.masks))
    report.faults += [
        f"{link.name}: the link leads nowhere; correct or delete it"
        for link in sorted(folder.subjects.glob("sub-*"))
        if link.is_symlink() and not link.exists()
    ]
    if misnamed := folder.misnamed():
        report.notes.append(
            f"{first_names(misnamed)} not read: the folder of a patient of BIDS is named sub-..., in small letters"
        )
    scans = _scans(folder, images, report)
    sites = read_sites(folder.subjects, report)
    take_plain = not any(mask.level == NAMED for scan in scans for mask in scan.masks)
    files = ([file for scan in scans for file in scan.images], [mask.file for scan in scans for mask in scan.masks])
    wrong = [
        fault
        for selection, noun, of_kind in zip((images, masks), ("image", "mask"), files, strict=True)
        for fault in _selection_faults(selection, noun, of_kind, report)
    ]
    if wrong:  # one line for all the scans that would then have nothing
        report.faults += wrong
        return []
    choice = _Choice(folder, images, masks, take_plain, report)
    sources = [source for scan in scans if (source := choice.source(scan, sites))]
    choice.summarise()
    if report.faults or not sources:
        report.faults += [line for path in {raw.path, folder.subjects} for line in uninstalled(path)]
    return sources


def _short_keys(selection: Selection) -> Selection:
    return Selection(selection.option, {entity_key(key): values for key, values in selection.wanted.items()})


def _selection_faults(
    selection: Selection, noun: str, files: Sequence[BidsFile], report: LayoutReport
) -> Iterator[str]:
    """Yield a fault for a value that no file has; adds a note for a key that none has."""
    for key, wanted in selection.wanted.items():
        single_key = Selection(selection.option, {key: wanted})
        counts = Counter(value for file in files if (value := file.properties.get(key)))
        fitting = any((match := single_key.match(file.properties)) and match.explicit for file in files)
        if not files or fitting:
            continue
        if counts:
            listed = first_names([f"{value} ({count})" for value, count in sorted(counts.items())], 6)
            yield f"{single_key.arguments()}: no {noun} has it; of {key} there are {listed}"
        else:
            keys = ", ".join(sorted({name for file in files for name in file.properties}))
            report.notes.append(
                f"{single_key.arguments()} chooses nothing, because no {noun} has {key}; they have {keys}"
            )


# ----------------------------------------------------------------------------------------------------- files to scans


def _scans(folder: BidsFolder, images: Selection, report: LayoutReport) -> list[_Scan]:
    """Return the sessions of all subjects, in order, with their images and masks."""
    patients: dict[str, dict[str, _Scan]] = defaultdict(dict)
    suffixes = {suffix.casefold() for suffix in images.wanted.get("suffix", ())}
    ignored: list[str] = []
    ignored_scans: set[tuple[str, str]] = set()
    for file in folder.files(other_formats=True):
        patient, session = composed(file.patient), composed(file.session)  # folders may spell them in two ways
        if not is_nifti(file.path):
            if is_flair_suffix(file.suffix) and not shows_lesions(file) and not folder.is_ignored(file):
                scan = patients[patient].setdefault(session, _Scan(file.patient, file.session))
                scan.other_formats.append(file)
            continue
        has_suffix = file.suffix.casefold() in suffixes if suffixes else is_flair_suffix(file.suffix)
        is_image = has_suffix and not shows_lesions(file)
        candidate = as_mask_named_like_image(file) if is_image else as_candidate(file)
        is_image = is_image and candidate is None
        is_other_image = not suffixes and not file.derivative and bool(_LIKE_FLAIR.fullmatch(file.suffix))
        if not is_image and candidate is None and not is_other_image:
            continue
        # Masks often stand in .bidsignore only because the validator does not know their names.
        if is_image and folder.is_ignored(file):
            ignored.append(file.name)
            ignored_scans.add((patient, session))
            report.unused.append(Unused(file.name, "named in .bidsignore"))
            continue
        scan = patients[patient].setdefault(session, _Scan(file.patient, file.session))
        if is_image:
            scan.images.append(file)
        elif candidate:
            scan.masks.append(candidate)
        else:
            scan.other_images.append(file)
    if ignored:
        report.notes.append(f".bidsignore leaves out {plural(len(ignored), 'image')} ({first_names(ignored)})")
    for patient, sessions in patients.items():
        for name, scan in sessions.items():  # a mask without a session, or an image without one, fits any
            scan.is_ignored = bool(ignored_scans & {(patient, name), (patient, "")}) or (
                not name and any(one == patient for one, _ in ignored_scans)
            )
        _join_sessions(sessions)
        for name, scan in sessions.items():
            scan.whose = _nearly_same_name(patient, name, patients)
    return [scan for _, sessions in sorted(patients.items()) for _, scan in sorted(sessions.items())]


def _nearly_same_name(patient: str, session: str, patients: Mapping[str, Mapping[str, _Scan]]) -> str:
    """Return advice on a mask without an image, where its patient or session is spelled in two ways; else ""."""
    with_image = [name for name, scan in patients[patient].items() if scan.images]
    if not session and len(with_image) > 1:
        sessions = ", ".join(f"ses-{name}" for name in sorted(with_image))
        return f"its name says no session, and {patient} has images of {sessions}: name one"
    alike = [
        other
        for other, scans in patients.items()
        if other != patient
        and same_value(other.removeprefix("sub-"), patient.removeprefix("sub-"))
        and any(scan.images for scan in scans.values())
    ]
    return f"if it is that of {alike[0]}, rename it so" if alike else ""


def is_flair_suffix(suffix: str) -> bool:
    """Whether the suffix of a file name says that it is a FLAIR: FLAIR, flair, T2FLAIR, 3DFLAIR and the like."""
    return bool(_FLAIR_SUFFIX.fullmatch(suffix))


def shows_lesions(file: BidsFile) -> bool:
    """Whether the name of a file says that it shows lesions, so that it is a mask although its suffix is an image's."""
    return any(is_lesion_word(text) for text in (*file.words, *file.entities, *file.entities.values()))


def _join_sessions(sessions: dict[str, _Scan]) -> None:
    """Give masks that name no session to the only session with an image, and masks of a session to the only image.

    Sessions that are spelled in two ways, as ses-1 and ses-01, are one where only one of them has images.
    """
    with_image = [name for name, scan in sessions.items() if scan.images]
    for name in [name for name in sessions if name and name not in with_image]:
        same = [other for other in with_image if same_value(name, other)]
        if len(same) == 1:
            sessions[same[0]].masks += sessions.pop(name).masks
    if len(with_image) != 1:
        return
    (image_session,) = with_image
    others = [name for name in sessions if name != image_session and sessions[name].masks]
    if image_session and "" in others:
        joined = ""
    elif not image_session and len(others) == 1 and not sessions[""].masks:
        joined = others[0]
    else:
        return
    sessions[image_session].masks += sessions.pop(joined).masks


# -------------------------------------------------------------------------------------------------- scans to sources


@dataclass
class _Choice:
    """Chooses the image and the mask of each scan, and collects what is ambiguous or missing."""

    folder: BidsFolder
    images: Selection
    masks: Selection
    take_plain: bool  # whether masks count whose names do not say what they show
    report: LayoutReport
    _ambiguous: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # faults, by what chooses
    _names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # scans, by how their mask is named
    _missing: dict[tuple[str, ...], list[tuple[str, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )  # faults and their scans, by the masks that are not taken
    _plain: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # scans, by derivative of the mask
    _not_selected: list[str] = field(default_factory=list)  # scans
    _without_image: list[str] = field(default_factory=list)  # scans
    _other_formats: list[Path] = field(default_factory=list)  # FLAIRs that are not NIfTI, of scans without another

    def source(self, scan: _Scan, sites: Mapping[str, str]) -> Source | None:
        """Return a scan's image and mask; None, with a fault or a note, where there is not one of each."""
        image = self._image(scan)
        if image is None:
            return None
        choice = choose_masks(scan.masks, image, self.masks, self.take_plain)
        self.report.unused += [Unused(one.file.name, one.reason) for one in choice.left_out]
        if not choice.masks:
            self._add_missing_mask(scan, image, choice.left_out)
            return None
        if len(choice.masks) > 1:
            self._add_ambiguous(image.name, "mask", [one.file for one in choice.masks], self.masks)
            return None
        if choice.masks[0].level == PLAIN and not choice.is_named_by_user:
            self._plain[choice.masks[0].file.derivative].append(scan.name)
        self._names[_kind_of_mask(choice.masks[0].file)].append(scan.name)
        files = (image, choice.masks[0].file)
        if wrong := [file for file in files if file.named_patient and not scan.is_of(f"sub-{file.named_patient}")]:
            self.report.faults += [
                f"{file.name}: lies in the folder of {scan.patient}, but its name says sub-{file.named_patient}; "
                "correct one of them"
                for file in wrong
            ]
            return None
        patient = patient_name(scan.patient)
        image_path, mask_path = (file.path for file in files)
        return Source(
            patient, scan.session, self.folder.root, (image_path,), (mask_path,), sites.get(composed(patient), "")
        )

    def summarise(self) -> None:
        """Add to the report what concerns several scans: a line for all that need the same choice."""
        for faults_of in self._missing.values():
            alike = [name for _, name in faults_of[1:]]
            text = f"; the same for {plural(len(alike), 'more scan')} ({first_names(alike)})" if alike else ""
            self.report.faults.append(faults_of[0][0] + text)
        if len(self._names) > 1 and len(self._plain) < 2 and not self.masks.wanted:
            kinds = sorted(self._names.items(), key=lambda item: -len(item[1]))
            listed = first_names([f"{kind} of {first_names(names, 2)}" for kind, names in kinds], 4)
            self.report.notes.append(f"masks are named in several ways: {listed}; do all show the same lesions?")
        for how, faults in self._ambiguous.items():
            more = len(faults) - 1
            others = f", and so {'does' if more == 1 else 'do'} {plural(more, 'more scan')}" if more else ""
            self.report.faults.append(f"{faults[0]}{others}; {how}")
        if len(self._plain) > 1:
            by_folder = sorted(self._plain.items())
            folders = ", ".join(f"{_folder(derivative)} ({first_names(names)})" for derivative, names in by_folder)
            options = [option_text(self.masks.option, "derivative", derivative) for derivative, _ in by_folder]
            self.report.faults.append(
                f"masks whose names do not say what they show come from different folders: {folders}; if all of them "
                f"hold lesions, give {' '.join(options)}; else give only those of folders that do, and add the masks "
                "that are then missing"
            )
        for derivative in self._plain if len(self._plain) == 1 else ():
            self.report.notes.append(
                f"the masks of {_folder(derivative)} are taken for lesions, though their names do not say what they "
                "show"
            )
        if names := self._not_selected:
            self.report.notes.append(
                f"{self.images.arguments()} leaves out {plural(len(names), 'scan')} ({first_names(names)})"
            )
        if names := self._without_image:
            self.report.notes.append(
                f"{plural(len(names), 'scan')} without a FLAIR image left out ({first_names(names)})"
            )
        reasons = Counter(unused.reason.partition(";")[0] for unused in self.report.unused)
        if reasons:
            texts = first_names([f"{reason}: {count}" for reason, count in reasons.most_common()])
            files = plural(len(self.report.unused), "file")
            self.report.unused_note = f"{files} not used ({texts}); the same command with --dry-run lists them"
        report_other_formats(self.folder.root, self._other_formats, self.report, "NIfTI")

    def _image(self, scan: _Scan) -> BidsFile | None:
        """Return the scan's image: of those asked for the best, the subject's own before those of derivatives."""
        ranked = [(match.rank, file) for file in scan.images if (match := self.images.match(file.properties))]
        first = min((rank for rank, _ in ranked), default=())
        best = [file for rank, file in ranked if rank == first]
        best = [file for file in best if not file.derivative] or best
        reason = "it counts as an image, and another one is taken" if best else f"not {self.images.arguments()}"
        self.report.unused += [Unused(file.name, reason) for file in scan.images if file not in best]
        if len(best) == 1:
            return best[0]
        if best:
            self._add_ambiguous(scan.name, "FLAIR image", best, self.images)
        elif scan.images:
            self._not_selected.append(scan.name)
        elif scan.is_ignored:
            return None
        elif masks := [one for one in scan.masks if one.level == NAMED or (one.level == PLAIN and self.take_plain)]:
            names = ", ".join(one.file.name for one in masks)
            self.report.faults.append(f"{scan.name}: no FLAIR image for the mask {names}; {scan.image_advice}")
        elif scan.other_formats:
            self._other_formats += [file.path for file in scan.other_formats]
        else:
            self._without_image.append(scan.name)
        return None

    def _add_missing_mask(self, scan: _Scan, image: BidsFile, left_out: Sequence[LeftOut]) -> None:
        fitting = [
            f"{other.name} has a mask, take it with {_how_to_choose([other, image], '--select', 1)}"
            for other in scan.images
            if other is not image and choose_masks(scan.masks, other, self.masks, self.take_plain).masks
        ]
        near = [f"not taken: {', '.join(str(one) for one in left_out)}"] if left_out else []
        rule = (
            f"missing mask; add one file derivatives/*/{scan.name}/**/*_mask.nii.gz with its lesions, or leave it out "
            f"by a line {scan.name}/ in .bidsignore"
        )
        fault = "; ".join([f"{image.name}: {rule}", *near, *fitting])
        if left_out:
            alike = tuple(f"{_kind_of_mask(one.file)} {one.reason}" for one in left_out)
            self._missing[alike].append((fault, scan.name))
        else:
            self.report.faults.append(fault)

    def _add_ambiguous(self, subject: str, noun: str, files: Sequence[BidsFile], selection: Selection) -> None:
        names = ", ".join(file.name for file in files)
        how = _how_to_choose(files, selection.option)
        how = how if how == "keep one" else f"choose with {how}"
        fault = f"{subject}: must have exactly one {noun}, but has {len(files)} ({names})"
        self._ambiguous[how].append(fault)


def _how_to_choose(files: Sequence[BidsFile], option: str, count: int | None = None) -> str:
    """Return the options that choose each of several files, or the first `count` of them.

    By one property in which all of them differ, if there is one, masks first by their folders; else by all in which
    some differ. Files that differ in their types only are told apart by their names.
    """
    properties = [file.properties for file in files]
    first = ["derivative", "folder"] if option == "--mask-select" else []  # programs label as they like
    keys = dict.fromkeys([*first, *(key for one in properties for key in one if key != "name")])
    values = {key: [one.get(key, "") for one in properties] for key in keys}
    for key, ones in values.items():
        if len(set(ones)) == len(ones):
            return " or ".join(option_text(option, key, value) for value in ones[:count])
    differing = {key: ones for key, ones in values.items() if len(set(ones)) > 1}
    ways = [" ".join(option_text(option, key, ones[i]) for key, ones in differing.items()) for i in range(len(files))]
    if not differing and len({file.tail for file in files}) == len(files):
        ways = [option_text(option, "name", f"*{escape(file.tail)}") for file in files]
    elif not differing:
        return "keep one"
    return " or ".join(dict.fromkeys(ways[: count or MAX_WAYS])) + (" or ..." if len(ways) > MAX_WAYS else "")


def _kind_of_mask(file: BidsFile) -> str:
    """Return the folder and the name of a mask without what differs between the scans of a data set."""
    entities = {key.lower(): value for key, value in file.entities.items()}
    words = [f"{key}-{value}" for key, value in entities.items() if key in ("label", "desc", "seg", "rater")]
    folders = [part for part in (file.derivative, file.folder) if part]
    return "/".join([*folders, "_".join(["*", *words, *([file.suffix] if file.suffix else [])])]).casefold()


def _folder(derivative: str) -> str:
    return f"derivatives/{derivative}" if derivative else "the patients' own folders"


LAYOUT = Layout("a BIDS folder (sub-*/)", _matches, _find, takes_select=True, takes_mask_select=True)
