"""nnU-Net folders and lists of MONAI and the Decathlon: images, channels, patients, the test part, and faults."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from wmlsearch.data.prepare_options import PrepareOptions
from wmlsearch.data.sources import Choices, Discovery, survey
from wmlsearch.errors import InputError

V2 = {"channel_names": {"0": "FLAIR", "1": "T1"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
V1 = {"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "background", "1": "lesion"}}


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def nnunet(root: Path, cases: list[str], channels: int = 2, description: dict[str, Any] | None = None) -> Path:
    for case in cases:
        tree(root, f"labelsTr/{case}.nii.gz", *(f"imagesTr/{case}_{i:04d}.nii.gz" for i in range(channels)))
    if description is not None:
        (root / "dataset.json").write_text(json.dumps(description))
    return root


def datalist(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def images(discovery: Discovery) -> dict[str, str]:
    """Return the image of each patient."""
    assert discovery.faults == ()
    return {source.patient: source.name(source.image[0]) for source in discovery.sources}


# ------------------------------------------------------------------------------------------------------------- nnU-Net


@pytest.mark.parametrize(("description", "channel"), [(V2, 0), (V1, 1)])
def test_the_channel_named_flair(tmp_path: Path, description: dict[str, Any], channel: int) -> None:
    discovery = survey(nnunet(tmp_path, ["MS_001", "MS_002"], 2, description))
    assert images(discovery) == {f"MS_00{i}": f"imagesTr/MS_00{i}_000{channel}.nii.gz" for i in (1, 2)}
    assert [source.name(source.mask[0]) for source in discovery.sources] == [
        f"labelsTr/MS_00{i}.nii.gz" for i in (1, 2)
    ]
    assert any(note.startswith(f"channel {channel} (FLAIR) is the image") for note in discovery.notes)
    assert any(
        note.startswith("each case is taken as a patient of its own (MS_001, MS_002)") for note in discovery.notes
    )


def test_channels_without_a_flair(tmp_path: Path) -> None:
    nnunet(tmp_path, ["MS_001"], 2, V2 | {"channel_names": {"0": "MR", "1": "T1"}})
    (fault,) = survey(tmp_path).faults
    assert fault == (
        "the images have the channels 0 MR, 1 T1, and none is named FLAIR; choose with --select channel=0 or "
        "--select channel=1"
    )
    for choice in ("channel=1", "channel=t1"):
        assert images(survey(tmp_path, Choices(select=(choice,)))) == {"MS_001": "imagesTr/MS_001_0001.nii.gz"}
    (fault,) = survey(tmp_path, Choices(select=("channel=7",))).faults
    assert fault.startswith("--select channel=7: the images have the channels 0 MR, 1 T1; choose")
    assert "this layout has channels only" in survey(tmp_path, Choices(select=("acq=3D", "channel=0"))).faults[0]
    (fault,) = survey(tmp_path, Choices(select=("channel=0",), mask_select=("desc=a",))).faults
    assert fault == (
        "--mask-select is for a BIDS folder (sub-*/), but RAW is an nnU-Net folder (imagesTr/, labelsTr/); leave it out"
    )


def test_one_channel_without_a_description(tmp_path: Path) -> None:
    assert images(survey(nnunet(tmp_path, ["a"], 1))) == {"a": "imagesTr/a_0000.nii.gz"}


def test_the_decathlon_has_no_channel_in_its_names(tmp_path: Path) -> None:
    tree(tmp_path, "imagesTr/ms_0001.nii.gz", "labelsTr/ms_0001.nii.gz", "imagesTr/._ms_0001.nii.gz")
    assert images(survey(tmp_path)) == {"ms_0001": "imagesTr/ms_0001.nii.gz"}


def test_cases_of_other_formats_are_told(tmp_path: Path) -> None:
    nnunet(tmp_path, ["MS_001"], 1)
    tree(tmp_path, "imagesTr/MS_002_0000.mha", "labelsTr/MS_002.mha", "imagesTr/more/MS_003_0000.nii.gz")
    discovery = survey(tmp_path)
    assert images(discovery) == {"MS_001": "imagesTr/MS_001_0000.nii.gz"}
    assert [unused.name for unused in discovery.unused] == [
        "imagesTr/more", "imagesTr/MS_002_0000.mha", "labelsTr/MS_002.mha",
    ]  # fmt: skip
    assert discovery.notes[:2] == (
        "subfolders beside the files are not read (imagesTr/more with 1 file); move their files up if they are part of "
        "the data",
        "2 files not used, because they are not NIfTI, PNG, TIFF or JPEG (imagesTr/MS_002_0000.mha, "
        "labelsTr/MS_002.mha); convert them if they are images or masks",
    )
    tree(tmp_path, "labelsTr/MS_002.nii.gz", "imagesTr/MS_004_0000.nii.gz", "labelsTr/MS_004.mha")
    assert survey(tmp_path).faults == (
        "imagesTr/MS_004_0000.nii.gz: missing mask; convert labelsTr/MS_004.mha",
        "labelsTr/MS_002.nii.gz: no image; convert imagesTr/MS_002_0000.mha",
    )


def test_labelled_test_cases_are_the_sealed_test(tmp_path: Path) -> None:
    nnunet(tmp_path, ["MS_001", "MS_002", "MS_003"], 1)
    tree(tmp_path, "imagesTs/MS_101_0000.nii.gz", "labelsTs/MS_101.nii.gz", "imagesTs/MS_102_0000.nii.gz")
    discovery = survey(tmp_path)
    assert discovery.test_patients == ("MS_101",)
    assert [source.patient for source in discovery.sources] == ["MS_001", "MS_002", "MS_003", "MS_101"]
    assert [unused.name for unused in discovery.unused] == ["imagesTs/MS_102_0000.nii.gz"]


def test_patients_and_time_points_by_pattern(tmp_path: Path) -> None:
    nnunet(tmp_path, ["p01_t1", "p01_t2", "p02_t1"], 1)
    discovery = survey(tmp_path, Choices("^(?P<patient>p[0-9]+)_(?P<timepoint>.+)$"))
    assert [(source.patient, source.timepoint) for source in discovery.sources] == [
        ("p01", "t1"), ("p01", "t2"), ("p02", "t1"),
    ]  # fmt: skip
    (fault,) = survey(tmp_path, Choices("^(p01)")).faults
    assert fault == "p02_t1: --patient-pattern '^(p01)' finds no patient in this name"


@pytest.mark.parametrize("cases", [["p01_t1", "p01_t2", "p02_t1"], ["training01_01", "training01_02", "training02_01"],
                                   ["p-1.v1", "p-1.v2", "p-2.v1"],
                                   ["x1_ses-1", "x1_ses-2", "x2_ses-1"], ["9_1", "9_2", "10_1"],
                                   ["training01_01_flair_pp", "training01_02_flair_pp", "training02_01_flair_pp"],
                                   ["P01_baseline", "P01_followup", "P02_baseline"], ["P01a", "P01b", "P02a"],
                                   ["P01_1_FLAIR_pp", "P01_2_T2_pp", "P2_1_FLAIR_pp"], ["P01T1", "P01T2", "P10T1"],
                                   ["AB_ses1", "AB_ses2", "CD_ses1"],
                                   ["MS_12-m06", "MS_12-m12", "MS_1-m06"]])  # fmt: skip
def test_patients_are_not_guessed_where_names_look_like_time_points(tmp_path: Path, cases: list[str]) -> None:
    (fault,) = survey(nnunet(tmp_path, cases, 1)).faults
    assert fault.startswith(f"{cases[0]} and {cases[1]} look like scans of one patient")
    pattern = fault.split("give --patient-pattern '")[1].split("'")[0]  # the advice can be pasted
    assert len({source.patient for source in survey(tmp_path, Choices(pattern)).check().sources}) == 2
    own = fault.split("or --patient-pattern '")[1].split("'")[0]
    assert len({source.patient for source in survey(tmp_path, Choices(own)).check().sources}) == 3


@pytest.mark.parametrize("cases", [["MS_001", "MS_002"],
                                   ["utrecht_1", "utrecht_2", "singapore_1"], ["a1", "b2"], ["WMH_001", "WMH_002"],
                                   ["Task1_001", "Task1_002"],
                                   ["MSLesion_0001", "MSLesion_0002"], ["Case12", "Case13"], ["12", "123"],
                                   ["case_0001", "case_0002"], ["BraTS_001", "BraTS_002"],
                                   ["WMH_001_pre", "WMH_002_pre"],
                                   ["BraTS20_Training_001_flair", "BraTS20_Training_002_flair"],
                                   ["BraTS2021_00495", "BraTS2021_00496"], ["Dataset501_MS_001", "Dataset501_MS_002"],
                                   ["WMH2017_utrecht_01", "WMH2017_utrecht_02", "WMH2017_singapore_01"]])  # fmt: skip
def test_numbered_patients_are_patients(tmp_path: Path, cases: list[str]) -> None:
    discovery = survey(nnunet(tmp_path, cases, 1))
    assert len(images(discovery)) == len(cases)
    assert discovery.notes[0].startswith("each case is taken as a patient of its own")


@pytest.mark.parametrize("cases", [[f"P01_{i}" for i in range(1, 10)], ["P01_001", "P01_002"], ["MS1_1", "MS1_2"],
                                   ["BraTS2021_P01_1", "BraTS2021_P01_2"], ["patient7_001", "patient7_002"],
                                   ["Task1_1", "Task1_2"], ["7_1", "7_2"]])  # fmt: skip
def test_a_number_that_all_names_share_can_be_that_of_one_patient(tmp_path: Path, cases: list[str]) -> None:
    (fault,) = survey(nnunet(tmp_path, cases, 1)).faults
    assert fault.startswith(f"{cases[0]} and {cases[1]} look like scans of one patient (")
    pattern = fault.split("give --patient-pattern '")[1].split("'")[0]
    assert len({source.patient for source in survey(tmp_path, Choices(pattern)).check().sources}) == 1
    assert len(images(survey(tmp_path, Choices("^(.+)$")))) == len(cases)


def test_the_advised_pattern_finds_patients_and_time_points(tmp_path: Path) -> None:
    nnunet(tmp_path, ["training01_01_flair_pp", "training01_02_flair_pp", "training02_01_flair_pp"], 1)
    pattern = survey(tmp_path).faults[0].split("give --patient-pattern '")[1].split("'")[0]
    assert [(source.patient, source.timepoint) for source in survey(tmp_path, Choices(pattern)).check().sources] == [
        ("training01", "01"), ("training01", "02"), ("training02", "01"),
    ]  # fmt: skip


def test_the_advised_pattern_never_makes_two_patients_of_one(tmp_path: Path) -> None:
    """P01 was scanned twice in 2019: neither P01_2019 nor P01_2020 is a patient."""
    nnunet(tmp_path, ["P01_2019_1", "P01_2019_2", "P01_2020_1", "P02_2019_1"], 1)
    pattern = survey(tmp_path).faults[0].split("give --patient-pattern '")[1].split("'")[0]
    assert {source.patient for source in survey(tmp_path, Choices(pattern)).check().sources} == {"P01", "P02"}


def test_patients_and_sessions_in_bids_names(tmp_path: Path) -> None:
    names = ["sub-01_ses-1_FLAIR", "sub-01_ses-2_FLAIR", "sub-02_acq-a_FLAIR", "sub-02_acq-b_FLAIR", "sub-03"]
    discovery = survey(nnunet(tmp_path, names, 1)).check()
    assert [(source.patient, source.timepoint) for source in discovery.sources] == [
        ("01", "1"), ("01", "2"), ("02", "sub-02_acq-a_FLAIR"), ("02", "sub-02_acq-b_FLAIR"), ("03", ""),
    ]  # fmt: skip
    assert discovery.notes == (
        "patients and time points are read from sub- and ses- in the names (sub-01_ses-1_FLAIR, sub-01_ses-2_FLAIR, "
        "sub-02_acq-a_FLAIR and 2 more)",
    )
    tree(tmp_path, "imagesTs/sub-01_ses-3_FLAIR_0000.nii.gz", "labelsTs/sub-01_ses-3_FLAIR.nii.gz")
    (fault,) = survey(tmp_path).faults
    assert fault.startswith("patient '01' is in the layout's training part and in its test part")


def test_a_patient_in_both_parts(tmp_path: Path) -> None:
    nnunet(tmp_path, ["p1_a", "p2_a"], 1)
    tree(tmp_path, "imagesTs/p1_b_0000.nii.gz", "labelsTs/p1_b.nii.gz")
    (fault,) = survey(tmp_path, Choices("^(p[0-9])")).faults
    assert fault.startswith("patient 'p1' is in the layout's training part and in its test part")


def test_a_label_in_other_letters_than_its_image(tmp_path: Path) -> None:
    nnunet(tmp_path, ["a", "b"], 1)
    (tmp_path / "labelsTr/b.nii.gz").rename(tmp_path / "labelsTr/B.nii.gz")
    assert "labelsTr/B.nii.gz: no image; rename it like imagesTr/b" in survey(tmp_path).faults


def test_files_of_one_name_are_never_chosen_silently(tmp_path: Path) -> None:
    nnunet(tmp_path, ["a", "b"], 1)
    tree(tmp_path, "imagesTr/a_0000.nii", "labelsTr/b.nii", "imagesTs/c.nii", "imagesTs/c.nii.gz")
    assert survey(tmp_path).faults == (
        "imagesTr: a_0000.nii and a_0000.nii.gz have the same name, extension aside; keep one",
        "imagesTs: c.nii and c.nii.gz have the same name, extension aside; keep one",
        "labelsTr: b.nii and b.nii.gz have the same name, extension aside; keep one",
    )


def test_faults_of_nnunet_at_once(tmp_path: Path) -> None:
    nnunet(tmp_path, ["a", "b"], 1)
    tree(tmp_path, "imagesTr/c_0000.nii.gz", "labelsTr/d.nii.gz")
    assert survey(tmp_path).faults == (
        "imagesTr/c_0000.nii.gz: missing mask; add labelsTr/c.nii.gz",
        "labelsTr/d.nii.gz: no image; add imagesTr/d_0000.nii.gz",
    )
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset.json: must be JSON, but"):
        survey(tmp_path)


def test_volumes_of_other_formats(tmp_path: Path) -> None:
    tree(tmp_path, "imagesTr/a_0000.nrrd", "labelsTr/a.nrrd")
    assert survey(tmp_path).faults == ("labelsTr/a.nrrd: must be NIfTI, PNG, TIFF or JPEG; convert images and labels",)


def test_pictures_have_no_patient_without_a_pattern(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{kind}Tr/p{p}_{i}{end}.png" for p in (1, 2) for i in (1, 2)
                     for kind, end in (("images", "_0000"), ("labels", ""))))  # fmt: skip
    assert {source.patient for source in survey(tmp_path).check().sources} == {""}
    discovery = survey(tmp_path, Choices("^(p[0-9])"))
    assert [(source.patient, len(source.image)) for source in discovery.sources] == [("p1", 2), ("p2", 2)]


@pytest.mark.parametrize(
    ("labels", "lesions", "ignored"),
    [
        ({"background": 0, "lesion": 1, "ignore": 2}, (1.0,), (2.0,)),
        ({"0": "background", "2": "WMH", "1": "ignore"}, (2.0,), (1.0,)),
        ({"background": 0, "lesion": 1}, (), ()),  # nothing to choose
        ({"background": 0, "lesion": 1, "stroke": 2}, (), ()),  # the user must say what becomes of it
        ({"background": 0, "lesion": 1, "whole": [1, 2]}, (), ()),
    ],
)
def test_labels_of_the_description(tmp_path: Path, labels: dict[str, Any], lesions: Any, ignored: Any) -> None:
    nnunet(tmp_path, ["a"], 1, {"channel_names": {"0": "FLAIR"}, "labels": labels})
    discovery = survey(tmp_path)
    assert (discovery.lesion_labels, discovery.ignore_labels) == (lesions, ignored)
    if "stroke" in labels:
        assert discovery.notes[0].startswith("the masks hold the labels 1 lesion, 2 stroke; --lesion-label says which")


@pytest.mark.parametrize("name", ["lesion", "WMH", "foreground", "1", "label1", "mask", "FLAIR hyperintensities", "MS",
                                  "target", "ROI"])  # fmt: skip
def test_the_only_label_may_be_neutral(tmp_path: Path, name: str) -> None:
    nnunet(tmp_path, ["a"], 1, {"labels": {"background": 0, name: 1}})
    assert len(images(survey(tmp_path))) == 1


@pytest.mark.parametrize("labels", [{"background": 0, "ventricles": 1}, {"0": "background", "1": "brain"},
                                    {"background": 0, "tumour": 1, "ignore": 2},
                                    {"background": 0, "nonlesion": 1}])  # fmt: skip
def test_the_only_label_names_something_else(tmp_path: Path, labels: dict[str, Any]) -> None:
    nnunet(tmp_path, ["a"], 1, {"labels": labels})
    name = labels.get("1") or next(key for key, value in labels.items() if value == 1)
    (fault,) = survey(tmp_path).faults
    assert fault == (
        f"the description names label 1 of the masks {name!r}, which is something else than lesions; correct its "
        "labels, or give --lesion-label 1 if label 1 is lesion all the same"
    )
    assert PrepareOptions(lesion_labels=(1,)).choices.names_lesions
    assert len(images(survey(tmp_path, Choices(names_lesions=True)))) == 1


def test_the_folder_of_nnunet_data_sets_names_them(tmp_path: Path) -> None:
    nnunet(tmp_path / "nnUNet_raw/Dataset001_MS", ["a"], 1)
    with pytest.raises(InputError, match=r"did you mean .*nnUNet_raw/Dataset001_MS\?"):
        survey(tmp_path / "nnUNet_raw")


# --------------------------------------------------------------------------------------------------------------- lists


def test_a_decathlon_list(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{kind}/ms_{i}.nii.gz" for kind in ("img", "seg") for i in range(3)))
    rows = [{"image": f"./img/ms_{i}.nii.gz", "label": f"./seg/ms_{i}.nii.gz"} for i in range(2)]
    content = {"modality": {"0": "FLAIR"}, "training": rows, "test": ["./img/ms_2.nii.gz"]}
    path = datalist(tmp_path / "dataset.json", content)
    for raw in (path, tmp_path):  # the list, or its folder
        discovery = survey(raw)
        assert images(discovery) == {"ms_0": "img/ms_0.nii.gz", "ms_1": "img/ms_1.nii.gz"}
        assert "1 case without a label not used (./img/ms_2.nii.gz)" in discovery.notes


DECATHLON = [{"image": f"./imagesTr/ms_{i}.nii.gz", "label": f"./labelsTr/ms_{i}.nii.gz"} for i in range(2)]


@pytest.mark.parametrize("name", ["dataset.json", "datalist.json"])
def test_a_decathlon_folder_is_read_by_its_list(tmp_path: Path, name: str) -> None:
    """A third case lies in the folders, and its list leaves it out."""
    tree(tmp_path, *(f"{kind}Tr/ms_{i}.nii.gz" for kind in ("images", "labels") for i in range(3)))
    datalist(
        tmp_path / name,
        {"modality": {"0": "FLAIR"}, "labels": {"0": "background", "1": "lesion"}, "training": DECATHLON},
    )
    discovery = survey(tmp_path)
    assert discovery.layout == "a MONAI or Decathlon list (datalist.json)"
    assert images(discovery) == {f"ms_{i}": f"imagesTr/ms_{i}.nii.gz" for i in range(2)}


def test_labelled_test_cases_of_a_decathlon_folder_are_the_sealed_test(tmp_path: Path) -> None:
    """Its list names the images of the test part alone."""
    tree(tmp_path, *(f"{kind}Tr/ms_{i}.nii.gz" for kind in ("images", "labels") for i in range(2)))
    tree(tmp_path, "imagesTs/ms_7.nii.gz", "labelsTs/ms_7.nii.gz", "imagesTs/ms_8.nii.gz")
    tests = [f"./imagesTs/ms_{i}.nii.gz" for i in (7, 8)]
    discovery = survey(datalist(tmp_path / "dataset.json", {"training": DECATHLON, "test": tests}).parent)
    assert discovery.test_patients == ("ms_7",)
    assert [unused.name for unused in discovery.unused] == ["./imagesTs/ms_8.nii.gz"]


def test_version_1_of_nnunet_is_no_decathlon(tmp_path: Path) -> None:
    """It lists a.nii.gz for a_0000.nii.gz; its labelled test cases are found in the folders."""
    rows = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    raw = nnunet(tmp_path, ["a"], 1, {**V1, "modality": {"0": "FLAIR"}, "training": rows, "test": []})
    assert survey(raw).layout.startswith("an nnU-Net folder")
    assert images(survey(raw)) == {"a": "imagesTr/a_0000.nii.gz"}


def test_a_list_of_absent_images_is_named(tmp_path: Path) -> None:
    raw = tree(tmp_path, *(f"labelsTr/ms_{i}.nii.gz" for i in range(2)))
    (raw / "imagesTr").mkdir()
    datalist(raw / "datalist.json", {"training": DECATHLON})
    assert survey(raw).faults == tuple(
        f"imagesTr/ms_{i}.nii.gz: no such file; correct the path in datalist.json, or the link" for i in range(2)
    )


def test_a_monai_list_with_folds_and_absolute_paths(tmp_path: Path) -> None:
    lake = tree(tmp_path / "lake", *(f"p{i}/{name}.nii.gz" for i in range(3) for name in ("flair", "wmh")))
    rows = [
        {"image": str(lake / f"p{i}/flair.nii.gz"), "label": str(lake / f"p{i}/wmh.nii.gz"), "fold": i}
        for i in range(3)
    ]
    path = datalist(tmp_path / "lists/datalist.json", {"training": rows[:2], "validation": [], "testing": rows[2:]})
    discovery = survey(path)
    assert images(discovery) == {f"p{i}": f"lake/p{i}/flair.nii.gz" for i in range(3)}
    assert discovery.test_patients == ("p2",)
    assert images(survey(path, Choices("(p[0-9])"))) == {f"p{i}": f"lake/p{i}/flair.nii.gz" for i in range(3)}


def test_missing_values_of_a_list_are_none(tmp_path: Path) -> None:
    """JSON's NaN is what pandas writes; a case without a label is not used."""
    tree(tmp_path, *(f"{name}.nii" for name in ("a", "b", "c", "d", "m", "n", "o")))
    rows = [
        {"image": "a.nii", "label": "m.nii", "patient": float("nan"), "patient_id": "P1", "site": "n/a"},
        {"image": "b.nii", "label": "n.nii", "patient": "NaN", "timepoint": float("nan"), "site": "A"},
        {"image": "c.nii", "label": "o.nii", "patient": "n/a"},
        {"image": "d.nii", "label": float("nan"), "patient": 4},
    ]
    discovery = survey(datalist(tmp_path / "l.json", {"training": rows}))
    assert [(s.patient, s.timepoint, s.site) for s in discovery.sources] == [
        ("P1", "", ""), ("b", "", "A"), ("c", "", ""),
    ]  # fmt: skip
    assert discovery.notes[0] == "1 case without a label not used (d.nii)"


def test_lists_may_name_patients_time_points_and_sites(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{i}.nii.gz" for i in range(6)))
    rows = [
        {"image": f"{i}.nii.gz", "label": f"{i + 3}.nii.gz", "subject_id": "sub-7", "session": i, "site": "A"}
        for i in range(3)
    ]
    discovery = survey(datalist(tmp_path / "all.json", rows))  # a bare list
    assert [(source.patient, source.timepoint, source.site) for source in discovery.sources] == [
        ("7", "0", "A"), ("7", "1", "A"), ("7", "2", "A"),
    ]  # fmt: skip
    assert discovery.notes == ()


def test_the_pattern_wins_over_patients_of_the_list(tmp_path: Path) -> None:
    tree(tmp_path, *(f"p{i}_{t}{end}.nii" for i in (1, 2) for t in "ab" for end in ("", "_m")))
    rows = [{"image": f"p{i}_{t}.nii", "label": [f"p{i}_{t}_m.nii"], "patient": f"case{i}{t}"}
            for i in (1, 2) for t in "ab"]  # fmt: skip
    path = datalist(tmp_path / "l.json", rows)
    discovery = survey(path, Choices("^(p[0-9])")).check()
    assert [source.patient for source in discovery.sources] == ["p1", "p1", "p2", "p2"]
    assert discovery.notes == (
        "--patient-pattern replaces patients that the layout names (p1_a: p1 instead of case1a, p1_b: p1 instead of "
        "case1b, p2_a: p2 instead of case2a and 1 more)",
    )
    (fault, *_) = survey(path, Choices("^nothing(x)")).faults
    assert fault == "p1_a: --patient-pattern '^nothing(x)' finds no patient in this name"
    # Two scans of a patient without sessions are two time points, as they are with a pattern.
    datalist(path, [row | {"patient": row["image"][:2]} for row in rows])
    assert [(source.patient, source.timepoint) for source in survey(path).check().sources] == [
        ("p1", "p1_a"), ("p1", "p1_b"), ("p2", "p2_a"), ("p2", "p2_b"),
    ]  # fmt: skip


def test_folders_of_a_list_may_name_the_patient(tmp_path: Path) -> None:
    """The file names are dates; only the folders show that the first two are of one patient."""
    names = ["P01/20190101", "P01/20200102", "P02/20190103"]
    tree(tmp_path, *(f"{name}{end}.nii" for name in names for end in ("", "_m")))
    path = datalist(tmp_path / "l.json", [{"image": f"{name}.nii", "label": f"{name}_m.nii"} for name in names])
    (fault,) = survey(path).faults
    assert fault.startswith("P01/20190101 and P01/20200102 look like scans of one patient (P01)")
    pattern = fault.split("give --patient-pattern '")[1].split("'")[0]
    assert [(source.patient, source.timepoint) for source in survey(path, Choices(pattern)).check().sources] == [
        ("P01", "20190101"), ("P01", "20200102"), ("P02", "20190103"),
    ]  # fmt: skip


def test_many_cases_are_read_in_linear_time(tmp_path: Path) -> None:
    from wmlsearch.data.sources.cases import Case, case_sources
    from wmlsearch.data.sources.discovery import LayoutReport

    started = time.perf_counter()
    cases = [Case(f"WMH_{i:05d}", tmp_path / f"{i}.nii", tmp_path / f"{i}_m.nii") for i in range(5000)]
    assert len(case_sources(tmp_path, cases, None, LayoutReport())) == 5000
    assert time.perf_counter() - started < 5  # 0.3 s; comparing all with all takes 30 s


def test_several_images_of_a_case(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{i}/{name}.nii" for i in "ab" for name in ("t1", "x", "m")))
    rows = [{"image": [f"{i}/t1.nii", f"{i}/x.nii"], "label": f"{i}/m.nii"} for i in "ab"]
    path = datalist(tmp_path / "l.json", {"training": rows})
    assert survey(path).faults[0].endswith("choose with --select channel=0 or --select channel=1")
    chosen = survey(path, Choices(select=("channel=1",)))
    assert images(chosen) == {"a": "a/x.nii", "b": "b/x.nii"}
    datalist(path, {"training": rows, "modality": {"0": "T1", "1": "T2 FLAIR"}})
    assert set(images(survey(path)).values()) == {"a/x.nii", "b/x.nii"}


def test_the_flair_among_several_images_by_file_name(tmp_path: Path) -> None:
    """The order differs: the file name counts."""
    tree(tmp_path, *(f"{i}/{name}.nii" for i in "ab" for name in ("t1", "FLAIR", "m")))
    rows = [
        {"image": ["a/t1.nii", "a/FLAIR.nii"], "label": "a/m.nii"},
        {"image": ["b/FLAIR.nii", "b/t1.nii"], "label": "b/m.nii"},
    ]
    path = datalist(tmp_path / "l.json", {"training": rows})
    assert sorted(images(survey(path)).values()) == ["a/FLAIR.nii", "b/FLAIR.nii"]


def test_the_lists_of_nnunet(tmp_path: Path) -> None:
    """Version 1 leaves the channel out of its names, version 2 may list the files of each case."""
    nnunet(tmp_path, ["a", "b"], 2)
    rows = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in "ab"]
    path = datalist(tmp_path / "dataset.json", V1 | {"training": rows})
    assert images(survey(path)) == {case: f"imagesTr/{case}_0001.nii.gz" for case in "ab"}
    cases = {case: {"images": [f"imagesTr/{case}_000{i}.nii.gz" for i in (0, 1)], "label": f"labelsTr/{case}.nii.gz"}
             for case in "ab"}  # fmt: skip
    path = datalist(tmp_path / "dataset.json", V2 | {"dataset": cases})
    assert sorted(images(survey(path)).values()) == [f"imagesTr/{case}_0000.nii.gz" for case in "ab"]


def test_faults_of_a_list_at_once(tmp_path: Path) -> None:
    tree(tmp_path, "a.nii", "m.nii", "b.nii")
    rows = [
        {"image": "a.nii", "label": "m.nii"},
        {"image": "a.nii", "label": "m.nii"},
        {"image": "b.nii", "label": "b.nii"},
        {"image": 3, "label": "m.nii"},
        "x",
        {"image": "c.mha", "label": "m.nii"},
        {"image": "gone.nii", "label": "m.nii"},
        {"label": "m.nii"},
    ]
    assert survey(datalist(tmp_path / "l.json", {"training": rows})).faults == (
        'training[3]: must be like {"image": "a.nii.gz", "label": "b.nii.gz"}, but is '
        "{'image': 3, 'label': 'm.nii'}",
        'training[7]: must be like {"image": "a.nii.gz", "label": "b.nii.gz"}, but is {\'label\': \'m.nii\'}',
        "training[1]: a.nii is listed twice; correct the list",
        "training[2]: b.nii is both image and label; correct the list",
        "training[5]: c.mha must be NIfTI, PNG, TIFF or JPEG; convert it",
        "gone.nii: no such file; correct the path or the link",
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "must be JSON, but"),
        ("[" * 100_000, "must be JSON, but it is nested too deeply"),
        ("3", "must be like"),
        ('{"a": 1}', "must list cases under training, validation or testing"),
        ('{"training": {}}', "must list cases under training, validation or testing"),
        ("[]", "must list cases under training, validation or testing"),
    ],
)
def test_what_is_no_list(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(InputError, match=rule):
        survey(tmp_path / "l.json")
