"""Accented letters that are composed in one name and decomposed in another: the names belong together."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from wmlsearch.data.sources import Choices, survey
from wmlsearch.data.spelling import as_on_disk, composed
from wmlsearch.data.split import assign


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


LAYOUTS = {
    "pairs": ("images/pé1.nii", "masks/pé1.nii"),
    "pairs by words": ("images/Pé1_FLAIR.nii", "masks/pé1_mask.nii"),
    "pairs in subfolders": ("images/pé1/a.nii", "masks/pé1/a.nii"),
    "nnU-Net": ("imagesTr/pé1_0000.nii", "labelsTr/pé1.nii"),
    "Decathlon": ("imagesTr/pé_0001.nii", "labelsTr/pé_0001.nii"),
    "BIDS": (
        "sub-é1/ses-ä/anat/sub-é1_ses-ä_FLAIR.nii.gz",
        "derivatives/lesions/sub-é1/ses-ä/anat/sub-é1_ses-ä_label-lesion_mask.nii.gz",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spell", [(composed, decomposed), (decomposed, composed)])
def test_an_image_and_its_mask(tmp_path: Path, layout: str, spell: tuple[Callable[[str], str], ...]) -> None:
    image, mask = (spelling(name) for spelling, name in zip(spell, LAYOUTS[layout], strict=True))
    tree(tmp_path, image, mask)
    (tmp_path / "participants.tsv").write_text(f"participant_id\tsite\n{spell[1]('sub-é1')}\tA\n", encoding="utf-8")
    (source,) = survey(tmp_path).check().sources
    assert (source.name(source.image[0]), source.name(source.mask[0])) == (image, mask)
    assert source.site == ("A" if layout == "BIDS" else "")


def test_files_of_tables_and_lists(tmp_path: Path) -> None:
    files = [decomposed(f"é/{name}.nii") for name in ("ä_0000", "bä")]
    tree(tmp_path, *files)
    image, mask = (composed(name) for name in files)
    (tmp_path / "t.csv").write_text(f"patient,image,mask\np,{image},{mask}\n", encoding="utf-8")
    rows = [{"image": image.replace("_0000", ""), "label": mask}]  # as nnU-Net 1 lists it
    (tmp_path / "l.json").write_text(json.dumps(rows), encoding="utf-8")
    for name in ("t.csv", "l.json"):
        (source,) = survey(tmp_path / name).check().sources
        assert [source.name(path) for path in (*source.image, *source.mask)] == files


def test_two_files_that_look_the_same_are_not_mixed_up(tmp_path: Path) -> None:
    names = [composed("pé"), decomposed("pé")]
    tree(tmp_path, *(f"{folder}/{name}.nii" for folder in ("images", "masks") for name in names))
    if len(list((tmp_path / "images").iterdir())) == 1:
        pytest.skip("this file system takes both spellings for one file")
    sources = survey(tmp_path, Choices("(.+)")).check().sources
    assert sorted((source.image[0].stem, source.mask[0].stem) for source in sources) == sorted((n, n) for n in names)
    assert as_on_disk(tmp_path / "images/qé.nii") == tmp_path / "images/qé.nii"


def test_patients_of_an_option_are_spelled_as_the_data_spell_them() -> None:
    names = [decomposed("André"), "b", "c", "d"]
    assert assign(names, 0, {"test": [composed("sub-André")]})[names[0]] == "test"
