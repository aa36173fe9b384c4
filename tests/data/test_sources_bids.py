"""BIDS folders by entities: which FLAIR and which mask is taken, what is never taken, and how it is asked for."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main
from wmlsearch.data.sources import Choices, Discovery, survey
from wmlsearch.data.sources.bids_masks import NAMED, OTHER, PLAIN, as_candidate
from wmlsearch.data.sources.bids_names import entity_key, read_name
from wmlsearch.errors import InputError

FLAIR = "sub-1/anat/sub-1_FLAIR.nii.gz"
LESION = "derivatives/lesions/sub-1/anat/sub-1_label-lesion_mask.nii.gz"


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def look(root: Path, select: tuple[str, ...] = (), mask_select: tuple[str, ...] = ()) -> Discovery:
    return survey(root, Choices(None, select, mask_select))


def pairs(discovery: Discovery) -> list[tuple[str, str]]:
    """Return the image and the mask of each source."""
    assert discovery.faults == ()
    return [(source.name(source.image[0]), source.name(source.mask[0])) for source in discovery.sources]


def reasons(discovery: Discovery) -> dict[str, str]:
    return {Path(unused.name).name: unused.reason for unused in discovery.unused}


def pasted(message: str) -> tuple[str, ...]:
    """Return KEY=VALUE of each option in a message, as a shell reads it."""
    words = shlex.split(message[message.index("--") :])
    return tuple(value.rstrip(";") for option, value in itertools.pairwise(words) if option.endswith("select"))


# ----------------------------------------------------------------------------------------- what a mask's name says


@pytest.mark.parametrize(
    "name",
    [
        "sub-1_label-lesion_mask.nii.gz", "sub-1_label-lesion_roi.nii.gz", "sub-1_label-WMH_dseg.nii.gz",
        "sub-1_label-L_mask.nii.gz", "sub-1_lesion-manual.nii.gz", "sub-1_lesionmask.nii",
        "sub-1_desc-lesion_mask.nii.gz",
        "sub-1_desc-wmh_dseg.nii.gz", "sub-1_FLAIR_lesion_mask.nii.gz", "sub-1_WMH.nii.gz", "sub-1_label-lesion.NII.GZ",
        "sub-1_label-T2lesion_desc-brain_mask.nii.gz", "sub-1_desc-rater1_label-WML_mask.nii.gz",
        "sub-1_seg-lesion.nii.gz",
    ],
)  # fmt: skip
def test_names_of_lesion_masks(tmp_path: Path, name: str) -> None:
    candidate = as_candidate(read_name(tmp_path, tmp_path / "derivatives/x/sub-1" / name, "sub-1", "", "x"))
    assert candidate
    assert candidate.level == NAMED


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sub-1_desc-brain_mask.nii.gz", "desc"), ("sub-1_label-GM_mask.nii.gz", "label"),
        ("sub-1_label-WM_mask.nii.gz", "label"), ("sub-1_label-NAWM_dseg.nii.gz", "label"),
        ("sub-1_label-GM_desc-lesionfilled_mask.nii.gz", "label"), ("sub-1_label-nonlesion_mask.nii.gz", "label"),
        ("sub-1_desc-lesionfilled_mask.nii.gz", "desc"), ("sub-1_desc-aparcaseg_dseg.nii.gz", "desc"),
        ("sub-1_FLAIR_brain_mask.nii.gz", "name"), ("sub-1_FLAIR_bet_mask.nii.gz", "name"),
        ("sub-1_brainmask.nii.gz", "suffix"), ("sub-1_dseg.nii.gz", "suffix"), ("sub-1_roi.nii.gz", "suffix"),
        ("sub-1_label-lesion_probseg.nii.gz", "suffix"), ("sub-1_desc-JD_mask.nii.gz", "desc"),
        ("sub-1_space-flair_seg-lst.nii.gz", "seg"), ("sub-1_defacemask.nii.gz", "suffix"),
    ],
)  # fmt: skip
def test_names_of_other_masks(tmp_path: Path, name: str, key: str) -> None:
    candidate = as_candidate(read_name(tmp_path, tmp_path / "derivatives/x/sub-1" / name, "sub-1", "", "x"))
    assert candidate
    assert candidate.level == OTHER
    assert candidate.reasons[0].key == key


@pytest.mark.parametrize(
    ("folder", "name", "level"),
    [
        ("x", "sub-1_mask.nii.gz", PLAIN),
        ("x", "sub-1_desc-rater2_mask.nii.gz", PLAIN),
        ("x", "sub-1_FLAIR_mask.nii.gz", PLAIN),
        ("manual-lesions", "sub-1_mask.nii.gz", NAMED),
        ("manual-lesions", "sub-1_desc-JD_mask.nii.gz", NAMED),
        ("lesion_masks", "sub-1_seg-lst_mask.nii.gz", NAMED),
        ("lesion_masks", "sub-1_desc-PD_mask.nii.gz", NAMED),
        ("lesion_masks", "sub-1_desc-lesionfilled_mask.nii.gz", OTHER),
        ("lesion_masks", "sub-1_desc-icv_mask.nii.gz", OTHER),
        ("lesion_masks", "sub-1_seg-aparc_mask.nii.gz", OTHER),
        ("lesion_masks", "sub-1_label-3_mask.nii.gz", NAMED),
        ("lesion_masks", "sub-1_label-SCGM_mask.nii.gz", OTHER),
        ("lesion_masks", "sub-1_label-BS_mask.nii.gz", OTHER),
        ("lesion_masks/preproc", "sub-1_mask.nii.gz", NAMED),
        ("hd-bet/lesions", "sub-1_mask.nii.gz", NAMED),
        ("lesion_study/hd-bet", "sub-1_mask.nii.gz", OTHER),
        ("brain_lesions", "sub-1_mask.nii.gz", NAMED),
        ("x", "sub-1_T1w_FLAIR_mask.nii.gz", OTHER),
        ("coregistered-masks", "sub-1_mask.nii.gz", PLAIN),
        ("co-registered", "sub-1_mask.nii.gz", PLAIN),
        ("registered", "sub-1_mask.nii.gz", PLAIN),
        ("manual_masks_registered", "sub-1_mask.nii.gz", PLAIN),
        ("registration", "sub-1_mask.nii.gz", OTHER),
        ("x", "sub-1_T2_FLAIR_mask.nii.gz", PLAIN),
        ("x", "sub-1_T2w_FLAIR_mask.nii.gz", PLAIN),
        ("x", "sub-1_T2FLAIR_mask.nii.gz", PLAIN),
        ("x", "sub-1_3DT2FLAIR_mask.nii.gz", PLAIN),
        ("x", "sub-1_FLAIR_T2_mask.nii.gz", PLAIN),
        ("x", "sub-1_T2_FLAIR_brain_mask.nii.gz", OTHER),
        ("x", "sub-1_T2_mask.nii.gz", OTHER),
        ("manual-lesions", "sub-1_dseg.nii.gz", NAMED),
        ("manual-lesions", "sub-1_desc-brain_mask.nii.gz", OTHER),
        ("hd-bet", "sub-1_FLAIR_mask.nii.gz", OTHER),
        ("fmriprep", "sub-1_mask.nii.gz", OTHER),
    ],
)
def test_the_folder_of_a_mask_counts_where_its_name_says_nothing(
    tmp_path: Path, folder: str, name: str, level: int
) -> None:
    candidate = as_candidate(read_name(tmp_path, tmp_path / "derivatives" / folder / name, "sub-1", "", folder))
    assert candidate
    assert candidate.level == level


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ("x/sub-1/func/sub-1_task-rest_mask", "task"), ("x/sub-1/dwi/sub-1_dwi_mask", "name"),
        ("x/sub-1/anat/sub-1_T1w_mask", "name"), ("x/sub-1/anat/sub-1_bold_mask", "name"),
        ("x/sub-1/anat/sub-1_PDw_mask", "name"), ("x/sub-1/perf/sub-1_mask", "name"),
        ("icv/sub-1/anat/sub-1_mask", "derivative"), ("deepbet/sub-1/anat/sub-1_mask", "derivative"),
        ("biasfield/sub-1/anat/sub-1_mask", "derivative"), ("sienax/sub-1/anat/sub-1_mask", "derivative"),
        ("parcellation/sub-1/anat/sub-1_mask", "derivative"), ("atlas/sub-1/anat/sub-1_mask", "derivative"),
        ("foreground/sub-1/anat/sub-1_mask", "derivative"), ("tractography/sub-1/anat/sub-1_mask", "derivative"),
        ("x/sub-1/anat/sub-1_tissue-GM_mask", "tissue"), ("x/sub-1/anat/sub-1_atlas-AAL_mask", "atlas"),
        ("x/sub-1/anat/sub-1_hemi-L_mask", "hemi"), ("lesions/sub-1/anat/sub-1_hemi-L_label-lesion_mask", "hemi"),
        ("lesions/sub-1/anat/sub-1_desc-icv_mask", "desc"), ("lesions/sub-1/anat/sub-1_icv_mask", "name"),
        ("lesions/sub-1/anat/sub-1_desc-valid_mask", "desc"), ("lesion_free/sub-1/anat/sub-1_mask", "derivative"),
        ("x/sub-1/anat/sub-1_label-lesionedge_mask", "label"), ("x/sub-1/anat/sub-1_label-strokelesion_mask", "label"),
    ],
)  # fmt: skip
def test_masks_of_other_images_and_parts_are_not_lesions(tmp_path: Path, place: str, key: str) -> None:
    folder, _, name = place.partition("/")
    candidate = as_candidate(read_name(tmp_path, tmp_path / f"derivatives/{folder}/{name}.nii.gz", "sub-1", "", folder))
    assert candidate
    assert candidate.level == OTHER
    assert candidate.reasons[0].key == key
    (fault,) = look(tree(tmp_path, FLAIR, f"derivatives/{place}.nii.gz")).faults
    assert "missing mask; add one file derivatives/*/sub-1/**/*_mask.nii.gz with its lesions, or leave it" in fault


def test_the_mask_of_an_image_bears_its_name(tmp_path: Path) -> None:
    """T2_FLAIR is a FLAIR. A T2w is another image than the FLAIR, unless it is chosen."""
    image, mask = "sub-1/anat/sub-1_T2_FLAIR.nii.gz", "derivatives/manual/sub-1/anat/sub-1_T2_FLAIR_mask.nii.gz"
    assert pairs(look(tree(tmp_path / "flair", image, mask))) == [(image, mask)]
    image, mask = "sub-1/anat/sub-1_T2w.nii.gz", "derivatives/manual/sub-1/anat/sub-1_T2w_mask.nii.gz"
    tree(tmp_path / "t2", image, mask, "derivatives/manual/sub-1/anat/sub-1_T1w_mask.nii.gz")
    discovery = look(tmp_path / "t2", select=("suffix=T2w",))
    assert pairs(discovery) == [(image, mask)]
    assert reasons(discovery)["sub-1_T1w_mask.nii.gz"] == (
        "'T1w' in its name is another image than the T2w; --mask-select name='*T1w_mask.nii.gz' takes it, and such "
        "masks of other patients instead of their lesions"
    )
    tree(tmp_path / "t2", FLAIR)
    (fault,) = look(tmp_path / "t2").faults
    assert "'T2w' in its name is another image than the FLAIR" in fault


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "desc-JD_mask",
            "desc-JD is an unknown word, which may stand for lesions or not; --mask-select desc=JD takes it",
        ),
        (
            "seg-lst_mask",
            "seg-lst is an unknown word, which may stand for lesions or not; --mask-select seg=lst takes it",
        ),
        (
            "label-3_mask",
            "label-3 is an unknown word, which may stand for lesions or not; --mask-select label=3 takes it",
        ),
        ("roi", "_roi does not say what it shows; --mask-select suffix=roi takes it"),
        (
            "label-GM_mask",
            "label-GM names something else than lesions; --mask-select label=GM takes it, and such masks of other "
            "patients instead of their lesions",
        ),
        (
            "desc-icv_mask",
            "desc-icv names something else than lesions; --mask-select desc=icv takes it, and such masks of other "
            "patients instead of their lesions",
        ),
    ],
)
def test_an_unknown_word_is_not_said_to_name_something_else(tmp_path: Path, name: str, reason: str) -> None:
    tree(tmp_path, FLAIR, LESION, f"derivatives/manual/sub-1/anat/sub-1_{name}.nii.gz")
    assert reasons(look(tmp_path)) == {f"sub-1_{name}.nii.gz": reason}


def test_plain_masks_are_taken_from_one_folder_with_a_note(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        tree(tmp_path, f"sub-{i}/anat/sub-{i}_FLAIR.nii", f"derivatives/manual/sub-{i}/anat/sub-{i}_mask.nii")
    assert look(tmp_path).notes == (
        "the masks of derivatives/manual are taken for lesions, though their names do not say what they show",
    )
    (tmp_path / "derivatives/manual/sub-1/anat/sub-1_mask.nii").unlink()
    tree(tmp_path, "derivatives/pipeline/sub-1/anat/sub-1_mask.nii")
    (fault,) = look(tmp_path).faults
    assert fault.startswith(
        "masks whose names do not say what they show come from different folders: derivatives/manual (sub-2, sub-3), "
        "derivatives/pipeline (sub-1); if all of them hold lesions, give --mask-select derivative=manual --mask-select "
        "derivative=pipeline; else give only those"
    )
    assert len(pairs(look(tmp_path, mask_select=("derivative=manual", "derivative=pipeline")))) == 3


@pytest.mark.parametrize("folders", [("rater 1", "rater 2"), ("", "tool"), ("a/x", "b/x"), ("Masks", "run|2")])
def test_advice_for_plain_masks_of_several_folders_can_be_pasted(tmp_path: Path, folders: tuple[str, str]) -> None:
    for i in (1, 2, 3):
        folder = f"derivatives/{folders[i % 2]}/" if folders[i % 2] else ""
        tree(tmp_path, f"sub-{i}/anat/sub-{i}_FLAIR.nii", f"{folder}sub-{i}/anat/sub-{i}_mask.nii")
    (fault,) = look(tmp_path).faults
    both = pasted(fault)
    assert len(both) == 2
    assert len(pairs(look(tmp_path, mask_select=both))) == 3
    one = look(tmp_path, mask_select=both[:1])
    assert [source.patient for source in one.sources] == ["2"]
    assert "missing mask" in one.faults[0]
    assert one.faults[0].endswith("; the same for 1 more scan (sub-3)")
    result = CliRunner().invoke(main, ["prepare", str(tmp_path), "--dry-run"], prog_name="wmlsearch")
    assert "taken: " not in result.stdout
    assert "found so far: 3 scans of 3 patients; nothing is taken before the faults at the end" in result.stdout


def test_a_mask_named_by_its_file_name(tmp_path: Path) -> None:
    mask = "derivatives/manual/sub-1/anat/sub-1_FLAIR_seg.nii.gz"
    tree(tmp_path, FLAIR, mask, "derivatives/manual/sub-1/anat/sub-1_T1w_seg.nii.gz")
    assert pairs(look(tmp_path, mask_select=("name=*FLAIR_seg*",))) == [(FLAIR, mask)]
    (tmp_path / mask).rename((tmp_path / mask).with_name("sub-1_space-MNI_FLAIR_seg.nii.gz"))
    (fault,) = look(tmp_path, mask_select=("name=*FLAIR_seg*",)).faults
    assert "it lies in the grid of space-MNI" in fault


def test_a_value_or_key_that_no_file_has(tmp_path: Path) -> None:
    for i in (1, 2):
        stem = f"derivatives/lesions/sub-{i}/anat/sub-{i}"
        tree(tmp_path, f"sub-{i}/anat/sub-{i}_FLAIR.nii", *(f"{stem}_desc-rater{r}_mask.nii" for r in (1, 2)))
    assert look(tmp_path, mask_select=("desc=rater3",)).faults == (
        "--mask-select desc=rater3: no mask has it; of desc there are rater1 (2), rater2 (2)",
    )
    discovery = look(tmp_path, select=("acqisition=3D",), mask_select=("desc=rater1",))
    assert len(pairs(discovery)) == 2
    assert discovery.notes[0].startswith(
        "--select acqisition=3D chooses nothing, because no image has acqisition; they"
    )


def test_bidsignore_leaves_out_a_scan_whose_mask_stays(tmp_path: Path) -> None:
    for i in (1, 2):
        stem = f"sub-{i}/ses-a/anat/sub-{i}_ses-a"
        tree(tmp_path, f"{stem}_FLAIR.nii", f"derivatives/lesions/{stem}_label-lesion_mask.nii")
    tree(tmp_path, "sub-3/ses-a/anat/sub-3_ses-a_FLAIR.nii", "derivatives/lesions/sub-3_label-lesion_mask.nii")
    (tmp_path / ".bidsignore").write_text("sub-1/\nsub-3/\n")
    discovery = look(tmp_path)
    assert [source.patient for source in discovery.check().sources] == ["2"]
    assert discovery.notes[0].startswith(".bidsignore leaves out 2 images (sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii")
    (tmp_path / ".bidsignore").unlink()
    (tmp_path / "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii").unlink()
    assert look(tmp_path).faults[0].endswith("add sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz")


def test_images_of_other_kinds_are_no_masks(tmp_path: Path) -> None:
    for name in (
        "sub-1_T1w.nii.gz",
        "sub-1_desc-lesionfilled_T1w.nii.gz",
        "sub-1_dwi.nii.gz",
        "sub-1_desc-preproc_FLAIR.nii.gz",
    ):
        assert as_candidate(read_name(tmp_path, tmp_path / name, "sub-1", "", "x")) is None


def test_names_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    """The contract with bids2table and bidsschematools."""
    file = read_name(tmp_path, tmp_path / "sub-01_ses-2_acq-3D-x_run-02_label-lesion_mask.nii.gz", "sub-01", "", "")
    assert (file.session, file.suffix, file.named_patient) == ("2", "mask", "01")
    assert file.entities == {"acq": "3D-x", "run": "02", "label": "lesion"}
    odd = read_name(tmp_path, tmp_path / "sub-9 'é'_v1.2_lesion-manual.nii", "sub-9 'é'", "", "")
    assert (odd.entities, odd.suffix, odd.words) == ({"lesion": "manual"}, "", ("v1.2",))
    assert [entity_key(name) for name in ("acquisition", "acq", "description", "derivative")] == [
        "acq", "acq", "desc", "derivative",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------- masks of a scan


def test_masks_of_other_pipelines_are_not_lesions(tmp_path: Path) -> None:
    """fMRIPrep and HD-BET stand beside the lesions, without descriptions of their data sets."""
    others = [
        "derivatives/fmriprep/sub-1/anat/sub-1_desc-brain_mask.nii.gz",
        "derivatives/fmriprep/sub-1/anat/sub-1_dseg.nii.gz",
        "derivatives/fmriprep/sub-1/anat/sub-1_label-GM_probseg.nii.gz",
        "derivatives/hdbet/sub-1/anat/sub-1_FLAIR_mask.nii.gz",
        "derivatives/fmriprep/sub-1/anat/sub-1_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz",
        "derivatives/hdbet/sub-1_FLAIR_bet_mask.nii.gz",
    ]  # fmt: skip
    discovery = look(tree(tmp_path, FLAIR, LESION, *others))
    assert pairs(discovery) == [(FLAIR, LESION)]
    assert sorted(unused.name for unused in discovery.unused) == sorted(others)
    assert reasons(discovery)["sub-1_desc-brain_mask.nii.gz"] == (
        "desc-brain names something else than lesions; --mask-select desc=brain takes it, and such masks of other "
        "patients instead of their lesions"
    )


def test_only_a_mask_of_something_else(tmp_path: Path) -> None:
    brain = "derivatives/hdbet/sub-1/anat/sub-1_desc-brain_mask.nii.gz"
    (fault,) = look(tree(tmp_path, FLAIR, brain)).faults
    assert fault == (
        f"{FLAIR}: missing mask; add one file derivatives/*/sub-1/**/*_mask.nii.gz with its lesions, or leave it out "
        f"by a line sub-1/ in .bidsignore; not taken: {brain} (desc-brain names something else than lesions; "
        "--mask-select desc=brain takes it, and such masks of other patients instead of their lesions)"
    )
    assert pairs(look(tmp_path, mask_select=("desc=brain",))) == [(FLAIR, brain)]
    assert pairs(look(tmp_path, mask_select=("description=brain",))) == [(FLAIR, brain)]


def test_a_plain_mask_does_not_count_beside_masks_that_say_lesion(tmp_path: Path) -> None:
    """Of sub-2 there is only a mask of unknown content, while that of sub-1 is named: it may be anything."""
    flair, plain = "sub-2/anat/sub-2_FLAIR.nii.gz", "derivatives/tool/sub-2/anat/sub-2_mask.nii.gz"
    tree(tmp_path, flair, plain)
    assert pairs(look(tmp_path)) == [(flair, plain)]
    (fault,) = look(tree(tmp_path, FLAIR, LESION)).faults
    assert "its name does not say that it shows lesions, as those of other masks do" in fault
    how = fault.split("; ")[-1].removesuffix(" takes it)")
    assert how == "--mask-select name='*mask.nii.gz'"
    assert pairs(look(tmp_path, mask_select=("derivative=lesions", "derivative=tool"))) == [
        (FLAIR, LESION),
        (flair, plain),
    ]


@pytest.mark.parametrize(
    ("first", "second", "choice"),
    [
        ("lesions/sub-1/sub-1_desc-rater1_mask", "lesions/sub-1/sub-1_desc-rater2_mask", "desc=rater2"),
        ("rater1/sub-1/sub-1_label-lesion_mask", "rater2/sub-1/sub-1_label-lesion_mask", "derivative=rater2"),
        ("lesions/rater1/sub-1/sub-1_mask", "lesions/rater2/sub-1/sub-1_mask", "derivative=lesions/rater2"),
        ("lesions/sub-1/sub-1_label-lesion_mask", "lesions/sub-1/sub-1_label-lesion_dseg", "suffix=dseg"),
        ("lesions/sub-1/sub-1_label-T1lesion_mask", "lesions/sub-1/sub-1_label-T2lesion_mask", "label=T2lesion"),
        ("lesions/sub-1/sub-1_run-1_mask", "lesions/sub-1/sub-1_run-02_mask", "run=2"),
    ],
)
def test_two_masks_are_never_chosen_silently(tmp_path: Path, first: str, second: str, choice: str) -> None:
    one, two = (f"derivatives/{name}.nii.gz" for name in (first, second))
    (fault,) = look(tree(tmp_path, FLAIR, one, two)).faults
    assert fault.startswith(f"{FLAIR}: must have exactly one mask, but has 2 (")
    assert f"--mask-select {choice}".replace("run=2", "run=02") in fault
    assert pairs(look(tmp_path, mask_select=(choice,))) == [(FLAIR, two)]


def test_the_same_choice_for_many_patients_is_one_fault(tmp_path: Path) -> None:
    for number in range(1, 6):
        stem = f"derivatives/lesions/sub-{number}/anat/sub-{number}"
        tree(
            tmp_path,
            f"sub-{number}/anat/sub-{number}_FLAIR.nii",
            f"{stem}_desc-rater1_mask.nii",
            f"{stem}_desc-rater2_mask.nii",
        )
    (fault,) = look(tmp_path).faults
    assert fault.endswith("and so do 4 more scans; choose with --mask-select desc=rater1 or --mask-select desc=rater2")
    assert len(look(tmp_path, mask_select=("desc=rater1",)).sources) == 5


def test_a_selection_chooses_only_where_there_is_a_choice(tmp_path: Path) -> None:
    """Of sub-2 there is one mask without a rater: it is taken. Of sub-3 only that of the other rater: it is not."""
    tree(tmp_path, FLAIR, LESION.replace("label", "desc-rater1_label"), LESION.replace("label", "desc-rater2_label"))
    tree(tmp_path, "sub-2/anat/sub-2_FLAIR.nii.gz", "derivatives/lesions/sub-2/sub-2_label-lesion_mask.nii.gz")
    assert [mask for _, mask in pairs(look(tmp_path, mask_select=("desc=rater1",)))] == [
        LESION.replace("label", "desc-rater1_label"),
        "derivatives/lesions/sub-2/sub-2_label-lesion_mask.nii.gz",
    ]
    tree(
        tmp_path,
        "sub-3/anat/sub-3_FLAIR.nii.gz",
        "derivatives/lesions/sub-3/sub-3_desc-rater2_label-lesion_mask.nii.gz",
    )
    (fault,) = look(tmp_path, mask_select=("desc=rater1",)).faults
    assert fault.endswith(
        "sub-3_desc-rater2_label-lesion_mask.nii.gz (not --mask-select desc=rater1; --mask-select "
        "desc=rater2 as well takes it)"
    )
    second_best = look(tmp_path, mask_select=("desc=rater1", "desc=rater2"))
    assert [mask.split("_")[1] for _, mask in pairs(second_best)] == ["desc-rater1", "label-lesion", "desc-rater2"]


def test_the_advice_for_one_patient_fits_the_others_too(tmp_path: Path) -> None:
    """Of sub-2 there is only a _dseg. What the messages advise, one after the other, takes all masks."""
    tree(tmp_path, FLAIR, LESION, "sub-2/anat/sub-2_FLAIR.nii.gz", odd := "sub-2/anat/sub-2_dseg.nii.gz")
    options: list[str] = []
    for _ in range(2):
        (fault,) = look(tmp_path, mask_select=tuple(options)).faults
        options.append(fault.rpartition("--mask-select ")[2].split(" ")[0])
    assert options == ["suffix=dseg", "suffix=mask"]
    assert [mask for _, mask in pairs(look(tmp_path, mask_select=tuple(options)))] == [LESION, odd]


def test_a_selection_by_another_entity_does_not_make_a_brain_mask_a_lesion(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR, "derivatives/x/sub-1/sub-1_acq-3D_desc-brain_mask.nii.gz")
    (fault,) = look(tmp_path, mask_select=("acq=3D",)).faults
    assert "desc-brain names something else than lesions" in fault


def test_masks_of_another_grid(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR, mni := "derivatives/lesions/sub-1/sub-1_space-MNI152_label-lesion_mask.nii.gz")
    (fault,) = look(tmp_path).faults
    assert "it lies in the grid of space-MNI152, the image does not; --mask-select space=MNI152 takes it" in fault
    assert pairs(look(tmp_path, mask_select=("space=MNI152",))) == [(FLAIR, mni)]
    tree(tmp_path, warped := "derivatives/prep/sub-1/anat/sub-1_space-MNI152_desc-preproc_FLAIR.nii.gz")
    (fault,) = look(tmp_path).faults
    assert fault.endswith(f"{warped} has a mask, take it with --select space=MNI152")
    assert pairs(look(tmp_path, select=("space=MNI152",))) == [(warped, mni)]
    tree(tmp_path, native := "derivatives/lesions/sub-1/sub-1_space-orig_label-lesion_mask.nii.gz")
    assert pairs(look(tmp_path)) == [(FLAIR, native)]


def test_masks_without_folders_and_beside_the_image(tmp_path: Path) -> None:
    """In the subject's own folder, flat in a derivative, below two folders, without a session, and only in the name."""
    tree(
        tmp_path,
        "sub-1/anat/sub-1_FLAIR.nii.gz", "sub-1/anat/sub-1_FLAIR_lesion-manual.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-2/ses-a/anat/sub-2_ses-a_FLAIR.nii.gz", "derivatives/lesions/sub-2_ses-a_label-lesion_mask.nii.gz",
        "sub-3/ses-a/anat/sub-3_ses-a_FLAIR.nii.gz", "derivatives/lesions/v2/sub-3/anat/sub-3_label-lesion_mask.nii.gz",
        "sub-4/anat/sub-4_FLAIR.nii.gz", "derivatives/lesions/sub-4/ses-1/anat/sub-4_ses-1_label-lesion_mask.nii.gz",
        "sub-5/anat/sub-5_ses-9_FLAIR.NII.GZ", "derivatives/sub-5/ses-9/sub-5_label-lesion_mask.Nii.Gz",
    )  # fmt: skip
    discovery = look(tmp_path)
    assert len(pairs(discovery)) == 5
    assert [(source.patient, source.timepoint) for source in discovery.sources] == [
        ("1", ""), ("2", "a"), ("3", "a"), ("4", ""), ("5", "9"),
    ]  # fmt: skip


def test_a_mask_without_a_session_does_not_fit_two_sessions(tmp_path: Path) -> None:
    tree(tmp_path, *(f"sub-1/ses-{s}/anat/sub-1_ses-{s}_FLAIR.nii.gz" for s in (1, 2)), LESION)
    faults = look(tmp_path).faults
    assert len(faults) == 3  # two images without a mask, a mask without an image
    assert faults[0].startswith(f"sub-1: no FLAIR image for the mask {LESION}")


def test_a_file_in_the_folder_of_another_patient(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR, wrong := "derivatives/lesions/sub-1/anat/sub-2_label-lesion_mask.nii.gz")
    assert look(tmp_path).faults == (
        f"{wrong}: lies in the folder of sub-1, but its name says sub-2; correct one of them",
    )


# ------------------------------------------------------------------------------------------------ images of a scan


def test_several_flairs_of_a_session(tmp_path: Path) -> None:
    flat, thick = (f"sub-1/anat/sub-1_acq-{kind}_FLAIR.nii.gz" for kind in ("3D", "2D"))
    tree(tmp_path, flat, thick, LESION)
    (fault,) = look(tmp_path).faults
    assert fault == (
        f"sub-1: must have exactly one FLAIR image, but has 2 ({thick}, {flat}); choose with --select acq=2D or "
        "--select acq=3D"
    )
    assert pairs(look(tmp_path, select=("acq=3D",))) == [(flat, LESION)]
    assert pairs(look(tmp_path, select=("acquisition=3d",))) == [(flat, LESION)]
    # The mask of the other image is not that of this one.
    tree(tmp_path, *(own := [LESION.replace("label", f"acq-{kind}_label") for kind in ("2D", "3D")]))
    assert pairs(look(tmp_path, select=("acq=3D",))) == [(flat, own[1])]


def test_runs_are_numbers_and_what_lacks_an_entity_is_none(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR, second := "sub-1/anat/sub-1_run-02_FLAIR.nii.gz", LESION)
    assert "--select run=none or --select run=02" in look(tmp_path).faults[0]
    assert pairs(look(tmp_path, select=("run=none",))) == [(FLAIR, LESION)]
    assert pairs(look(tmp_path, select=("run=2",))) == [(second, LESION)]
    discovery = look(tree(tmp_path, "sub-2/anat/sub-2_run-1_FLAIR.nii.gz"), select=("run=2",))
    assert [source.patient for source in discovery.sources] == ["1"]
    assert "--select run=2 leaves out 1 scan (sub-2)" in discovery.notes


def test_several_entities_together(tmp_path: Path) -> None:
    names = [f"sub-1/anat/sub-1_acq-{a}_run-{r}_FLAIR.nii.gz" for a in ("2D", "3D") for r in (1, 2)]
    tree(tmp_path, *names, LESION)
    (fault,) = look(tmp_path).faults
    ways = fault.partition("choose with ")[2].split(" or ")
    assert ways[2] == "--select acq=3D --select run=1"
    assert [pairs(look(tmp_path, select=pasted(way)))[0][0] for way in ways] == names
    tree(tmp_path, "sub-1/anat/sub-1_acq-4D_run-1_FLAIR.nii.gz")
    assert look(tmp_path).faults[0].endswith("--select acq=3D --select run=2 or ...")


def test_a_flair_of_derivatives_is_taken_if_asked_for_or_alone(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR, LESION, made := "derivatives/prep/sub-1/anat/sub-1_desc-preproc_FLAIR.nii.gz")
    assert pairs(look(tmp_path)) == [(FLAIR, LESION)]
    assert pairs(look(tmp_path, select=("desc=preproc",))) == [(made, LESION)]
    (tmp_path / FLAIR).unlink()
    assert pairs(look(tmp_path)) == [(made, LESION)]


def test_an_image_of_another_suffix_if_asked_for(tmp_path: Path) -> None:
    tree(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", LESION)
    assert look(tmp_path).faults[0].startswith("sub-1: no FLAIR image for the mask")
    assert pairs(look(tmp_path, select=("suffix=T2w",))) == [("sub-1/anat/sub-1_T2w.nii.gz", LESION)]


# ---------------------------------------------------------------------------------------------------- whole data sets


def test_patients_without_a_flair_and_other_data(tmp_path: Path) -> None:
    """Source data, a patient with a T1w only, and templates are no faults."""
    discovery = look(tree(
        tmp_path, FLAIR, LESION, "sourcedata/sub-1/anat/sub-1_FLAIR.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz",
        "derivatives/fmriprep/sub-2/anat/sub-2_desc-brain_mask.nii.gz", "derivatives/tpl/template_mask.nii.gz",
    ))  # fmt: skip
    assert pairs(discovery) == [(FLAIR, LESION)]
    assert "1 scan without a FLAIR image left out (sub-2)" in discovery.notes


def test_bidsignore_leaves_images_out_but_not_masks(tmp_path: Path) -> None:
    mask = "sub-1/anat/sub-1_lesion-manual.nii.gz"
    tree(tmp_path, FLAIR, mask, "sub-2/anat/sub-2_FLAIR.nii.gz")
    (tmp_path / ".bidsignore").write_text("# no names of BIDS\n*_lesion-manual.nii.gz\nsub-2/\n")
    discovery = look(tmp_path)
    assert pairs(discovery) == [(FLAIR, mask)]
    assert ".bidsignore leaves out 1 image (sub-2/anat/sub-2_FLAIR.nii.gz)" in discovery.notes


def test_sites_of_participants(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR, LESION, FLAIR.replace("-1", "-2"), LESION.replace("-1", "-2"))
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tSite\tscanner\nsub-1\t3\tUtrecht\tn/a\n2\t4\tA\tB\n"
    )
    assert [source.site for source in look(tmp_path).sources] == ["Utrecht", "A B"]
    (tmp_path / "participants.tsv").write_bytes(b"participant_id\tsite\nsub-1\t\xff\n")
    discovery = look(tmp_path)
    assert [source.site for source in discovery.sources] == ["", ""]
    assert discovery.notes[0].startswith("participants.tsv cannot be read")


def test_missing_sites_of_participants_and_a_quotation_mark_without_an_end(tmp_path: Path) -> None:
    for i in range(1, 6):
        tree(tmp_path, FLAIR.replace("-1", f"-{i}"), LESION.replace("-1", f"-{i}"))
    rows = 'participant_id\tsite\nsub-1\tNaN\n"sub-2\tA\nsub-3\tB\nsub-4\tB"\nsub-5\t"C"\n'
    (tmp_path / "participants.tsv").write_text(rows)
    discovery = look(tmp_path)
    assert [source.site for source in discovery.sources] == ["", "A", "B", "B", "C"]
    assert discovery.notes == ("participants.tsv: a quotation mark has no end, so quotation marks are left out",)


def test_quotation_marks_of_participants_that_are_no_fault(tmp_path: Path) -> None:
    for i in range(1, 5):
        tree(tmp_path, FLAIR.replace("-1", f"-{i}"), LESION.replace("-1", f"-{i}"))
    rows = 'sub-1\t"fell" ill\tA\nsub-2\t"two lines:\nsub-cortical"\tB\nsub-3\t5" long\tC\nsub-4\t"both"\t"D"\n'
    (tmp_path / "participants.tsv").write_text(f"participant_id\tnote\tsite\n{rows}")
    discovery = look(tmp_path)
    assert ([source.site for source in discovery.sources], discovery.notes) == (["A", "B", "C", "D"], ())


def test_flair_images_of_other_formats_are_told(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR, LESION, FLAIR.replace(".nii.gz", ".mgz"), FLAIR.replace(".nii.gz", ".json"))
    other = FLAIR.replace("-1", "-2").replace(".nii.gz", ".img.gz")
    tree(tmp_path, other, LESION.replace("-1", "-3"), FLAIR.replace("-1", "-3").replace(".nii.gz", ".dcm"))
    discovery = look(tmp_path)
    assert [source.patient for source in discovery.sources] == ["1"]
    assert (
        f"1 file not used, because it is not NIfTI ({other}); convert it if it is an image or a mask" in discovery.notes
    )
    assert [unused.name for unused in discovery.unused] == [other]
    assert discovery.unused_note == "", "the note says it already"
    (fault,) = discovery.faults
    assert fault.endswith(f"; convert {FLAIR.replace('-1', '-3').replace('.nii.gz', '.dcm')} to NIfTI")


def test_a_study_with_rawdata(tmp_path: Path) -> None:
    tree(tmp_path / "study", f"rawdata/{FLAIR}", LESION)
    for raw in (tmp_path / "study", tmp_path / "study/rawdata"):
        assert pairs(look(raw)) == [(f"rawdata/{FLAIR}", LESION)]


def test_a_folder_above_names_the_data_set(tmp_path: Path) -> None:
    tree(tmp_path / "lab", f"sourcedata/raw/{FLAIR}", f"sourcedata/raw/{LESION}")
    with pytest.raises(InputError, match=r"did you mean .*/lab/sourcedata/raw\?"):
        look(tmp_path / "lab")


def test_one_mask_under_two_folders_is_one(tmp_path: Path) -> None:
    """derivatives/latest is a link to the folder of today."""
    tree(tmp_path, FLAIR, LESION)
    (tmp_path / "derivatives/latest").symlink_to("lesions")
    assert pairs(look(tmp_path)) == [(FLAIR, LESION)]


@pytest.mark.parametrize("text", ["acq", "=3D", "acq=", "acq 3D", "a-b=c"])
def test_a_selection_that_is_none(text: str) -> None:
    from wmlsearch.data.prepare_options import PrepareOptions

    with pytest.raises(InputError, match="--select must be KEY=VALUE, such as acq=3D, but got"):
        PrepareOptions(select=(text,))


# --------------------------------------------------------------------------------------------------- odd data sets


@pytest.mark.parametrize("place", ["sub-1/{}", "derivatives/tool/sub-1/{}", "derivatives/tool/sub-1/anat/{}/x"])
def test_folders_below_the_patient_say_what_masks_show(tmp_path: Path, place: str) -> None:
    brain, lesion = (f"{place.format(folder)}/sub-1_mask.nii.gz" for folder in ("brain_masks", "Lesions"))
    tree(tmp_path / "brain", FLAIR, brain)
    (fault,) = look(tmp_path / "brain").faults
    assert "the masks of brain_masks" in fault
    assert pairs(look(tmp_path / "brain", mask_select=pasted(fault[fault.index("not taken") :]))) == [(FLAIR, brain)]
    tree(tmp_path / "both", FLAIR, brain, lesion)
    assert pairs(look(tmp_path / "both")) == [(FLAIR, lesion)]
    assert not any("though their names" in note for note in look(tmp_path / "both").notes)


def test_two_folders_below_the_patient_are_chosen_by_folder(tmp_path: Path) -> None:
    one, two = (f"derivatives/lesions/sub-1/rater{i}/sub-1_mask.nii.gz" for i in (1, 2))
    (fault,) = look(tree(tmp_path, FLAIR, one, two)).faults
    assert fault.endswith("choose with --mask-select folder=rater1 or --mask-select folder=rater2")
    assert pairs(look(tmp_path, mask_select=("folder=rater2",))) == [(FLAIR, two)]


def test_names_with_dots(tmp_path: Path) -> None:
    """A dot is part of the name: 01.2 is another patient than 012, and acq-0.8mm can be chosen."""
    for patient in ("01.2", "012"):
        tree(tmp_path, *(f"sub-{patient}/anat/sub-{patient}_acq-{a}_FLAIR.nii.gz" for a in ("0.8mm", "3mm")))
        tree(tmp_path, f"derivatives/lesions/sub-{patient}_v1.2_mask.nii.gz")
    assert "choose with --select acq=0.8mm or --select acq=3mm" in look(tmp_path).faults[0]
    discovery = look(tmp_path, select=("acq=0.8mm",))
    assert [(Path(image).name, Path(mask).name) for image, mask in pairs(discovery)] == [
        (f"sub-{patient}_acq-0.8mm_FLAIR.nii.gz", f"sub-{patient}_v1.2_mask.nii.gz") for patient in ("01.2", "012")
    ]
    assert [source.patient for source in discovery.sources] == ["01.2", "012"]


@pytest.mark.parametrize("suffix", ["T2-FLAIR", "T2FLAIR", "flair", "3DFLAIR", "3DT2FLAIR", "T2w-Flair"])
def test_other_spellings_of_flair(tmp_path: Path, suffix: str) -> None:
    image, mask = f"sub-1/anat/sub-1_{suffix}.nii.gz", f"derivatives/manual/sub-1/anat/sub-1_{suffix}_mask.nii.gz"
    others = ("sub-1/anat/sub-1_T2w.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz")
    assert pairs(look(tree(tmp_path, image, mask, *others))) == [(image, mask)]


def test_the_same_name_with_two_types(tmp_path: Path) -> None:
    plain = LESION.removesuffix(".gz")
    (fault,) = look(tree(tmp_path, FLAIR, LESION, plain)).faults
    first, second = fault.partition("choose with ")[2].split(" or ")
    assert [pairs(look(tmp_path, mask_select=pasted(way))) for way in (first, second)] == [
        [(FLAIR, plain)],
        [(FLAIR, LESION)],
    ]


def test_masks_of_several_programs_are_chosen_by_the_same_key(tmp_path: Path) -> None:
    """The derivative, though the labels of the first two differ as well."""
    for i in (1, 2):
        tree(tmp_path, f"sub-{i}/anat/sub-{i}_FLAIR.nii", f"derivatives/lst/sub-{i}/anat/sub-{i}_label-WMH_mask.nii")
        tree(tmp_path, f"derivatives/samseg/sub-{i}/anat/sub-{i}_label-lesion_mask.nii")
    tree(tmp_path, "derivatives/manual/sub-1/anat/sub-1_label-lesion_mask.nii")
    one, two = look(tmp_path).faults
    ways = [f"--mask-select derivative={name}" for name in ("lst", "manual", "samseg")]
    assert one.endswith(f"choose with {' or '.join(ways)}")
    assert two.endswith("choose with --mask-select derivative=lst or --mask-select derivative=samseg")
    masks = [mask for _, mask in pairs(look(tmp_path, mask_select=("derivative=manual", "derivative=lst")))]
    assert [mask.split("/")[1] for mask in masks] == ["manual", "lst"]


@pytest.mark.parametrize(
    "names",
    [
        (LESION, "derivatives/hdbet/sub-1/sub-1_desc-brain_mask.nii.gz", "derivatives/fmriprep/sub-1/sub-1_dseg.nii"),
        (LESION, "derivatives/x/sub-1/sub-1_mask.nii.gz", "derivatives/x/sub-1/sub-1_T1w_mask.nii.gz"),
        ("sub-1/lesions/sub-1_mask.nii.gz", "sub-1/anat/sub-1_mask.nii.gz", "sub-1/brain/sub-1_mask.nii.gz"),
        ("derivatives/lesions/sub-1/sub-1_mask.nii", "derivatives/tool/sub-1/sub-1_mask.nii", "sub-1/sub-1_mask.nii"),
        (LESION, "derivatives/lesions/sub-1/sub-1_space-MNI_res-2_label-lesion_mask.nii.gz"),
        (LESION, "derivatives/x/sub-1/sub-1_consensus_gt.nii.gz", "derivatives/x/sub-1/sub-1_hemi-L_mask.nii.gz"),
        (LESION, "derivatives/a b/sub-1/sub-1_desc-JD_mask.nii.gz", "derivatives/[x]/sub-1/sub-1_T1w [x]_mask.nii.gz"),
    ],
)
def test_what_is_said_to_take_a_mask_takes_it(tmp_path: Path, names: tuple[str, ...]) -> None:
    tree(tmp_path, FLAIR, *names)
    discovery = look(tmp_path)
    assert pairs(discovery) == [(FLAIR, names[0])]
    assert {unused.name for unused in discovery.unused} == set(names[1:])
    for unused in discovery.unused:
        assert pairs(look(tmp_path, mask_select=pasted(unused.reason))) == [(FLAIR, unused.name)], unused.reason


def test_masks_without_their_image_are_explained(tmp_path: Path) -> None:
    """Two spellings of a patient, a mask without a session, and a lesion drawn on another image."""
    for session in (1, 2):
        tree(tmp_path, f"sub-01/ses-{session}/anat/sub-01_ses-{session}_FLAIR.nii")
    tree(tmp_path, *(f"derivatives/lesions/sub-{patient}/sub-{patient}_mask.nii" for patient in ("01", "1")))
    tree(tmp_path, "sub-02/anat/sub-02_T2w.nii", "derivatives/lesions/sub-02/sub-02_mask.nii")
    faults = [fault.partition("; ")[2] for fault in look(tmp_path).faults if "no FLAIR image" in fault]
    assert faults == [
        "its name says no session, and sub-01 has images of ses-1, ses-2: name one",
        "add sub-02/anat/sub-02_FLAIR.nii.gz, or take another image with --select suffix=T2w",
        "if it is that of sub-01, rename it so",
    ]


def test_a_session_that_is_spelled_in_two_ways(tmp_path: Path) -> None:
    for session in ("01", "02"):
        tree(tmp_path, f"sub-1/ses-{session}/anat/sub-1_ses-{session}_FLAIR.nii")
        tree(tmp_path, f"derivatives/lesions/sub-1/ses-{int(session)}/sub-1_ses-{int(session)}_mask.nii")
    assert [mask.split("_")[1] for _, mask in pairs(look(tmp_path))] == ["ses-1", "ses-2"]
    tree(tmp_path, "sub-1/ses-1/anat/sub-1_ses-1_FLAIR.nii")
    assert any("sub-1/ses-01/anat/sub-1_ses-01_FLAIR.nii: missing mask" in fault for fault in look(tmp_path).faults)


def test_folders_in_capital_letters(tmp_path: Path) -> None:
    mask = "Derivatives/Lesions/sub-1/Anat/sub-1_MASK.nii.gz"
    discovery = look(tree(tmp_path, FLAIR, mask, "SUB-02/anat/SUB-02_FLAIR.nii.gz", "sub03/x", "subset1/x"))
    assert pairs(discovery) == [(FLAIR, mask)]
    assert discovery.notes == (
        "SUB-02, sub03 not read: the folder of a patient of BIDS is named sub-..., in small letters",
    )


def test_a_scan_is_left_out_as_the_message_says(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR, LESION, "sub-2/ses-1/anat/sub-2_ses-1_FLAIR.nii", "sub-2/ses-2/anat/sub-2_ses-2_FLAIR.nii")
    tree(tmp_path, "derivatives/lesions/sub-2/ses-1/sub-2_ses-1_mask.nii")
    (fault,) = look(tmp_path).faults
    assert "or leave it out by a line sub-2/ses-2/ in .bidsignore" in fault
    (tmp_path / ".bidsignore").write_text("sub-2/ses-2/\n")
    assert len(pairs(look(tmp_path))) == 2


def test_a_mask_named_like_its_image_can_be_asked_for(tmp_path: Path) -> None:
    mask = "derivatives/lesions/sub-1/anat/sub-1_FLAIR.nii.gz"
    (fault,) = look(tree(tmp_path, FLAIR, mask)).faults
    assert (
        f"not taken: {mask} (it is named like an image, but lies in a folder of lesions; --mask-select "
        "derivative=lesions takes it)" in fault
    )
    assert pairs(look(tmp_path, mask_select=("derivative=lesions",))) == [(FLAIR, mask)]
    assert pairs(look(tree(tmp_path, LESION))) == [(FLAIR, LESION)]


@pytest.mark.parametrize("word", ["newlesion", "gadlesions", "Gd-lesion", "enhancing-lesion", "corticallesion"])
def test_some_lesions_only_are_not_the_lesions(tmp_path: Path, word: str) -> None:
    part = f"derivatives/lesions/sub-1/anat/sub-1_desc-{word}_mask.nii.gz"
    plain = "derivatives/lesions/sub-1/anat/sub-1_mask.nii.gz"
    tree(tmp_path, FLAIR, part, plain)
    assert pairs(look(tmp_path)) == [(FLAIR, plain)]
    (tmp_path / plain).unlink()
    assert "names something else than lesions" in look(tmp_path).faults[0]
    assert pairs(look(tmp_path, mask_select=(f"desc={word}",))) == [(FLAIR, part)]


def test_masks_that_are_named_in_several_ways_are_told(tmp_path: Path) -> None:
    for i, name in ((1, "label-deepWMH"), (2, "run-1_label-DeepWMH"), (3, "label-WMH")):
        tree(tmp_path, f"sub-{i}/anat/sub-{i}_FLAIR.nii", f"derivatives/wmh/sub-{i}/anat/sub-{i}_{name}_mask.nii")
    discovery = look(tmp_path)
    assert len(pairs(discovery)) == 3
    assert discovery.notes == (
        "masks are named in several ways: wmh/*_label-deepwmh_mask of sub-1, sub-2, wmh/*_label-wmh_mask of sub-3; do "
        "all show the same lesions?",
    )
    assert look(tmp_path, mask_select=("label=WMH", "label=deepWMH")).notes == ()


def test_the_same_masks_of_many_patients_are_one_fault(tmp_path: Path) -> None:
    for i in range(1, 8):
        stem = f"derivatives/lst-ai/sub-{i}/anat/sub-{i}_space-flair"
        tree(tmp_path, f"sub-{i}/anat/sub-{i}_FLAIR.nii", f"{stem}_seg-lst.nii.gz", f"{stem}_brainmask.nii.gz")
    (fault,) = look(tmp_path).faults
    assert fault.endswith("; the same for 6 more scans (sub-2, sub-3, sub-4 and 3 more)")
    assert "(seg-lst is an unknown word, which may stand for lesions or not; --mask-select seg=lst takes it)" in fault
    assert len(pairs(look(tmp_path, mask_select=("seg=lst",)))) == 7
