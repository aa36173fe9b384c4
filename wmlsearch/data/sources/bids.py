"""BIDS: `sub-*/[ses-*/]anat/*_FLAIR.nii.gz`, each with one mask `derivatives/*/sub-*/[ses-*/]**/*_mask.nii.gz`."""

from __future__ import annotations

import os
from pathlib import Path

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.layout import Layout, RawData, list_files, list_folders
from wmlsearch.data.sources.source import Source

FLAIR = ("_FLAIR.nii", "_FLAIR.nii.gz")
MASK = ("_mask.nii", "_mask.nii.gz")


def _matches(raw: Path) -> bool:
    return any(folder.name.startswith("sub-") for folder in list_folders(raw))


def _find(raw: RawData, faults: list[str]) -> list[Source]:
    root = raw.path
    sources = []
    for link in [path for path in sorted(root.glob("sub-*")) if path.is_symlink() and not path.exists()]:
        faults.append(f"{link.name}: the link leads nowhere; correct or delete it")
    for subject in [folder for folder in list_folders(root) if folder.name.startswith("sub-")]:
        sessions = [folder for folder in list_folders(subject) if folder.name.startswith("ses-")]
        for folder in [subject, *sessions]:
            source = _scan(root, subject, folder, faults)
            sources += [source] if source else []
    return sources


def _scan(root: Path, subject: Path, folder: Path, faults: list[str]) -> Source | None:
    """Return the one scan of a subject's or a session's folder; None, with a fault, where it is not exactly one."""
    scan = folder.relative_to(root)
    images = [path for path in list_files(folder / "anat") if path.name.endswith(FLAIR)]
    masks = _masks(root, scan)
    if not images and not masks:
        return None
    image_names, mask_names = (", ".join(str(path.relative_to(root)) for path in paths) for paths in (images, masks))
    if not images:
        faults.append(f"{scan}: no FLAIR image for the mask {mask_names}; add {scan}/anat/{subject.name}_FLAIR.nii.gz")
    elif len(images) > 1:
        faults.append(f"{scan}: must have exactly one FLAIR image, but has {len(images)} ({image_names}); keep one")
    elif not masks:
        faults.append(f"{image_names}: missing mask; add one file derivatives/*/{scan}/**/*_mask.nii.gz")
    elif len(masks) > 1:
        faults.append(f"{image_names}: must have exactly one mask, but has {len(masks)} ({mask_names}); keep one")
    else:
        timepoint = "" if folder == subject else folder.name.removeprefix("ses-")
        return Source(patient_name(subject.name), timepoint, root, (images[0],), (masks[0],))
    return None


def _masks(root: Path, scan: Path) -> list[Path]:
    """Return the masks of a subject or a session (`sub-1`, `sub-1/ses-2`) in all derivatives."""
    masks = []
    for derivative in list_folders(root / "derivatives"):
        for folder, subfolders, files in os.walk(derivative / scan):
            if len(scan.parts) == 1:  # a subject's own masks, not those of its sessions
                subfolders[:] = [name for name in subfolders if not name.startswith("ses-")]
            masks += [Path(folder, name) for name in files if name.endswith(MASK)]
    return sorted(masks)


LAYOUT = Layout("a BIDS folder (sub-*/)", _matches, _find)
