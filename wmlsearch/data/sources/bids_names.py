"""Read the names of BIDS files, also of files whose names are not quite BIDS.

`bids2table` splits the names. It keeps what is odd in them (`lesion-manual`, `sub-9 'é'`), takes 0.2 s to import, and
brings the schema of BIDS. `pybids` cuts such names at the first odd character or drops their end, takes 0.5 s, brings
ten packages; its layout needs a description in each derivative. Either is imported only where a BIDS folder is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wmlsearch.data.sources.other_formats import name_without_extension
from wmlsearch.data.sources.source import is_nifti, shown_name

_DOT = "\ue000"  # stands for a dot, which the library takes for the beginning of the extension
_T2 = re.compile(r"(?i)(2d|3d)?t2w?")
_NOT_ENTITIES = ("suffix", "ext", "datatype", "sub", "ses")


@dataclass(frozen=True)
class BidsFile:
    """A file of a BIDS data set, NIfTI or an image of another format, and what its path says of it."""

    path: Path
    name: str  # relative to the data set
    patient: str  # name of the folder `sub-*`, or of the entity where there is no such folder
    session: str  # without `ses-`; "" where neither folder nor name has one
    derivative: str  # folders below derivatives/, such as "lesions"; "" for files of the subject's own folder
    folder: str  # folders between the patient's and the file, but for ses-* and anat; mostly ""
    entities: Mapping[str, str]  # of the file name, without sub and ses, such as {"acq": "3D"}
    suffix: str  # such as "FLAIR" or "mask"; "" where the name ends in an entity
    words: tuple[str, ...]  # parts of the name that are no entities, such as "brain" in FLAIR_brain_mask
    named_patient: str  # entity sub of the file name; "" where it has none

    @property
    def tail(self) -> str:
        """The file name without its entities sub and ses, by which other patients' files have it too."""
        return re.sub(r"^(sub-[^_]*_)?(ses-[^_]*_)?", "", self.path.name)

    @property
    def properties(self) -> dict[str, str]:
        """What `--select` and `--mask-select` may ask for."""
        file = {
            "suffix": self.suffix,
            "derivative": self.derivative,
            "folder": self.folder,
            "name": self.path.name,
        }
        return {**{key.lower(): value for key, value in self.entities.items()}, **file}


def read_name(
    root: Path, path: Path, subject: str, session: str, derivative: str, folders: Sequence[str] = ()
) -> BidsFile:
    """Return the properties of a file that its name and folder state.

    Args:
        root: The data set.
        path: The file.
        subject: Name of the folder `sub-*` that holds the file; "" if there is none.
        session: Name of the folder `ses-*` that holds the file, without the prefix; "" if there is none.
        derivative: Folders below `derivatives/` that hold the file; "" if there are none.
        folders: The folders between the subject's and the file.
    """
    from bids2table import parse_bids_entities

    stem = re.sub(r"(?i)\.nii(\.gz)?$", "", path.name) if is_nifti(path) else name_without_extension(path)
    parsed = parse_bids_entities(stem.replace(".", _DOT) + ".nii")
    entities = {key: value.replace(_DOT, ".") for key, value in parsed.items() if value}
    if "suffix" not in entities and (key := next((key for key in entities if _T2.fullmatch(key)), "")):
        entities["suffix"] = f"{key}-{entities.pop(key)}"  # T2-FLAIR, which is no entity
    words = tuple(part for part in stem.split("_")[:-1] if "-" not in part and part)
    return BidsFile(
        path=path,
        name=shown_name(path, root),
        patient=subject or f"sub-{entities.get('sub', '')}",
        session=session or entities.get("ses", ""),
        derivative=derivative,
        folder="/".join(name for name in folders if not name.startswith("ses-") and name.lower() != "anat"),
        entities={key: value for key, value in entities.items() if key not in _NOT_ENTITIES},
        suffix=entities.get("suffix", ""),
        words=words,
        named_patient=entities.get("sub", ""),
    )


@cache
def entity_key(name: str) -> str:
    """Return the short name of a BIDS entity as it is in file names: `acquisition` and `acq` are both `acq`."""
    from bidsschematools.schema import load_schema

    entity = load_schema().objects.entities.get(name)
    return str(entity["name"]) if entity else name
