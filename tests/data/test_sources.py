"""Which files make up a raw data set: the three forms, odd names, loops of links, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wmlsearch.data.sources import Choices, survey
from wmlsearch.errors import InputError


def bids(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_bids_with_and_without_sessions(tmp_path: Path) -> None:
    bids(tmp_path, [
        "sub-10/anat/sub-10_FLAIR.nii.gz", "derivatives/a b/sub-10/sub-10_mask.nii",
        "sub-9 'é'/ses-12/anat/x_FLAIR.nii", "derivatives/a b/sub-9 'é'/ses-12/deep/er/x_mask.nii.gz",
        "sub-9 'é'/ses-2/anat/x_FLAIR.nii.gz", "derivatives/a b/sub-9 'é'/ses-2/x_mask.nii.gz",
        "unlabelled/sub-1/anat/sub-1_FLAIR.nii.gz", "sub-11/anat/sub-11_T1w.nii.gz",
    ])  # fmt: skip
    (tmp_path / "derivatives" / "loop").symlink_to(tmp_path / "derivatives")
    (tmp_path / "derivatives" / "a b" / "sub-8").symlink_to(tmp_path / "derivatives" / "a b" / "sub-8")
    sources = survey(tmp_path).check().sources
    assert [(s.patient, s.timepoint) for s in sources] == [("9 'é'", "2"), ("9 'é'", "12"), ("10", "")]
    assert sources[2].name(sources[2].mask[0]) == "derivatives/a b/sub-10/sub-10_mask.nii"


def test_bids_faults_all_at_once(tmp_path: Path) -> None:
    bids(tmp_path / "d", [
        "sub-1/anat/a_FLAIR.nii", "sub-2/anat/a_FLAIR.nii", "sub-2/anat/b_FLAIR.nii", "sub-3/ses-1/anat/a_FLAIR.nii",
        "derivatives/x/sub-3/ses-1/a_mask.nii", "derivatives/y/sub-3/ses-1/b_mask.nii",
        "derivatives/x/sub-4/a_mask.nii", "sub-4/anat/a_T1w.nii", "sub-5/anat/x", "derivatives/x/sub-5/a_mask.nii",
    ])  # fmt: skip
    (tmp_path / "secret.nii").touch()
    (tmp_path / "d/sub-5/anat/a_FLAIR.nii").symlink_to(tmp_path / "secret.nii")
    bids(tmp_path / "d", ["derivatives/x/sub-6/a_mask.nii", "sub-6/anat/x"])
    (tmp_path / "d/sub-6/anat/a_FLAIR.nii").symlink_to(tmp_path / "d/sub-6/anat/a_FLAIR.nii")
    with pytest.raises(InputError) as error:
        survey(tmp_path / "d").check()
    assert error.value.headline == f"{tmp_path / 'd'}: 5 faults, nothing was written"
    assert error.value.faults == (
        "sub-1/anat/a_FLAIR.nii: missing mask; add one file derivatives/*/sub-1/**/*_mask.nii.gz with its lesions, or "
        "leave it out by a line sub-1/ in .bidsignore",
        "sub-4: no FLAIR image for the mask derivatives/x/sub-4/a_mask.nii; add sub-4/anat/sub-4_FLAIR.nii.gz",
        "sub-2: must have exactly one FLAIR image, but has 2 (sub-2/anat/a_FLAIR.nii, "
        "sub-2/anat/b_FLAIR.nii); choose with --select name='*a_FLAIR.nii' or --select name='*b_FLAIR.nii'",
        "sub-3/ses-1/anat/a_FLAIR.nii: must have exactly one mask, but has 2 (derivatives/x/sub-3/ses-1/a_mask.nii, "
        "derivatives/y/sub-3/ses-1/b_mask.nii); choose with --mask-select derivative=x or --mask-select derivative=y",
        "sub-6/anat/a_FLAIR.nii: no such file; correct the path or the link",
    )


def table(root: Path, text: str) -> Path:
    path = root / "table.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_table_groups_slices_of_a_time_point_in_order(tmp_path: Path) -> None:
    bids(tmp_path, ["b 1.png", "a.png", "m1.png", "m2.png", "c.png"])
    rows = 'patient,timepoint,image,mask,note\nsub-é,0,"b 1.png",m1.png,\né,0,a.png,m2.png,x\né,6,c.png,m1.png,\n'
    sources = survey(table(tmp_path, rows)).check().sources
    assert [(s.patient, s.timepoint, [p.name for p in s.image]) for s in sources] == [
        ("é", "0", ["b 1.png", "a.png"]),
        ("é", "6", ["c.png"]),
    ]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    bids(tmp_path, ["a,1.nii", "m.nii"])
    rows = "patient,timepoint,image,mask\np,0,a+1.nii,m.nii\n".replace(",", delimiter).replace("+", ",")
    assert [(s.patient, s.image[0].name) for s in survey(table(tmp_path, rows)).check().sources] == [("p", "a,1.nii")]


def test_table_faults_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    bids(tmp_path, ["outside.nii", "d/a.nii", "d/m.nii", "d/b.nii"])
    rows = "patient,timepoint,image,mask\np,0,a.nii,m.nii\nq,0,../outside.nii,m.nii\nr,0,gone.nii,m.nii\n"
    rows += "s,0,b.nii,\nt,0,a.nii,m.nii\nu,0,x.bmp,m.nii\n"
    with pytest.raises(InputError) as error:
        survey(table(tmp_path / "d", rows)).check()
    assert error.value.faults == (
        "table.csv, line 5: no mask; name its file, or leave the line out",
        "table.csv, line 6: a.nii is in line 2 already; remove one",
        "table.csv, line 7: x.bmp: must be NIfTI, PNG, TIFF or JPEG",
        "gone.nii: no such file; correct the path or the link",
    )
    with pytest.raises(
        InputError, match=r"needs the columns patient,timepoint,image,mask; mask missing, got patient, "
    ):
        survey(table(tmp_path, "patient,image\n")).check()
    (tmp_path / "table.csv").write_bytes(b"patient,image,mask\n\xff\xfe,a,b\n")
    with pytest.raises(InputError, match="must be a CSV table in UTF-8"):
        survey(tmp_path / "table.csv").check()


def test_images_and_masks_of_equal_names(tmp_path: Path) -> None:
    bids(tmp_path, [f"{kind}/p{p}_m{t}_{i}.{end}" for kind, end in (("images", "jpg"), ("masks", "png"))
                    for p, t, i in ((1, 0, 2), (1, 0, 10), (1, 6, 1), (2, 0, 1))])  # fmt: skip
    bids(tmp_path, ["images/.hidden.png", "images/notes.txt"])
    sources = survey(tmp_path, Choices(r"^(?P<patient>p\d)_m(?P<timepoint>\d)")).check().sources
    assert [(s.patient, s.timepoint, [p.name for p in s.image]) for s in sources] == [
        ("p1", "0", ["p1_m0_2.jpg", "p1_m0_10.jpg"]),
        ("p1", "6", ["p1_m6_1.jpg"]),
        ("p2", "0", ["p2_m0_1.jpg"]),
    ]
    assert [s.patient for s in survey(tmp_path, Choices(r"(p\d)")).check().sources] == ["p1", "p2"]
    assert [s.patient for s in survey(tmp_path).check().sources] == [""] * 4
    with pytest.raises(InputError, match="needs one group, the patient"):
        survey(tmp_path, Choices("p1")).check()
    with pytest.raises(InputError, match="not a regular expression"):
        survey(tmp_path, Choices("(")).check()
    with pytest.raises(
        InputError, match=r"images/p1_m0_10.jpg: --patient-pattern '\(q\)' finds no patient in the name"
    ):
        survey(tmp_path, Choices("(q)")).check()
    bids(tmp_path, ["images/only.png", "masks/lonely.png", "images/p2_m0_1.png"])
    with pytest.raises(InputError) as error:
        survey(tmp_path).check()
    assert error.value.faults == (
        "masks/lonely.png: no image; add images/lonely.* (same name, extension aside)",
        "images/only.png: missing mask; add masks/only.* (same name, extension aside)",
        "images/p2_m0_1: must be exactly one file, but there are 2; keep one",
    )


def test_a_pattern_that_takes_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bids(tmp_path, [f"{kind}/{'a' * 60}!.png" for kind in ("images", "masks")])
    monkeypatch.setattr("wmlsearch.data.sources.patient_pattern.TIMEOUT_S", 1.0)
    with pytest.raises(InputError) as error:
        survey(tmp_path, Choices(r"^((?:a+)+)$")).check()
    assert str(error.value) == (
        "--patient-pattern '^((?:a+)+)$': takes more than 1 s on 1 name; write it without a repetition within a "
        "repetition, such as '^(p[0-9]+)_'"
    )


def test_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"RAW must be a CSV table"):
        survey(tmp_path).check()
    with pytest.raises(InputError, match=r"no such file or folder"):
        survey(tmp_path / "nowhere").check()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError):
        survey(tmp_path / "loop").check()


def test_sub_and_ses_in_the_names_of_pairs_are_patients_and_time_points(tmp_path: Path) -> None:
    names = ["sub-1_ses-a_FLAIR", "sub-1_ses-b_FLAIR", "sub-2_FLAIR", "sub-3_run-1", "sub-3_run-2"]
    bids(tmp_path, [f"{folder}/{name}.nii" for folder in ("images", "masks") for name in names])
    discovery = survey(tmp_path)
    assert [(source.patient, source.timepoint) for source in discovery.sources] == [
        ("1", "a"), ("1", "b"), ("2", ""), ("3", "sub-3_run-1"), ("3", "sub-3_run-2"),
    ]  # fmt: skip
    assert discovery.notes == (
        "patients and time points are read from sub- and ses- in the names (sub-1_ses-a_FLAIR, sub-1_ses-b_FLAIR, "
        "sub-2_FLAIR and 2 more)",
    )
    named = survey(tmp_path, Choices("(FLAIR|run)"))
    assert {source.patient for source in named.sources} == {"FLAIR", "run"}, "the pattern is the user's"


def test_pictures_of_one_sub_are_one_volume(tmp_path: Path) -> None:
    bids(
        tmp_path, [f"{folder}/sub-{i}_slice-{j}.png" for folder in ("images", "masks") for i in (1, 2) for j in (9, 10)]
    )
    first, _ = survey(tmp_path).sources
    assert [path.name for path in first.image] == ["sub-1_slice-9.png", "sub-1_slice-10.png"]


def test_one_name_without_sub_leaves_all_patients_to_the_user(tmp_path: Path) -> None:
    bids(tmp_path, [f"{folder}/{name}.nii" for folder in ("images", "masks") for name in ("sub-1", "p2")])
    assert [source.patient for source in survey(tmp_path).sources] == ["", ""]


def test_images_and_masks_of_other_names(tmp_path: Path) -> None:
    """Names that differ by words for image and mask, or in case, belong together where nothing else does."""
    bids(tmp_path, ["images/p1_T2-FLAIR.nii.gz", "masks/p1_lesion_mask.nii", "images/P2.nii", "masks/p2.nii"])
    bids(tmp_path, ["images/p.3.1.nii", "masks/p.3.1.nii.gz"])
    discovery = survey(tmp_path)
    assert [(s.image[0].name, s.mask[0].name) for s in discovery.sources] == [
        ("P2.nii", "p2.nii"),
        ("p1_T2-FLAIR.nii.gz", "p1_lesion_mask.nii"),
        ("p.3.1.nii", "p.3.1.nii.gz"),
    ]
    assert "images and masks of other names are taken together, such as P2.nii and p2.nii (2)" in discovery.notes
    bids(tmp_path, ["masks/p1_wmh.nii", "masks/p2_brain_mask.nii", "images/p4_T1.nii", "masks/p4_mask.nii"])
    bids(tmp_path, ["masks/p.3.1_mask.nii"])
    faults = survey(tmp_path).faults
    assert [fault.partition(": ")[0] for fault in faults] == [
        "masks/p.3.1_mask.nii", "images/p1_T2-FLAIR.nii.gz", "masks/p1_lesion_mask.nii", "masks/p1_wmh.nii",
        "masks/p2_brain_mask.nii", "images/p4_T1.nii", "masks/p4_mask.nii",
    ]  # fmt: skip


def test_masks_of_two_patients_and_patients_of_two_names(tmp_path: Path) -> None:
    bids(tmp_path, ["a.nii", "b.nii", "c.nii", "m.nii", "n.nii"])
    table(tmp_path, "patient,timepoint,image,mask\np1,0,a.nii,m.nii\np2,0,b.nii,m.nii\nP02,1,c.nii,n.nii\n")
    discovery = survey(tmp_path / "table.csv")
    assert len(discovery.sources) == 3
    assert discovery.notes == (
        "m.nii is the mask of 2 patients (p1, p2): right if it is empty",
        "look like names of one patient: 'p2' and 'P02'; if so, give all scans of a patient the same name",
    )
    table(tmp_path, "patient,timepoint,image,mask\np1,0,a.nii,m.nii\np2,0,b.nii,a.nii\n")
    assert survey(tmp_path / "table.csv").faults == (
        "a.nii: is an image here, and the mask of b.nii; name the mask of that image",
    )


def test_tables_as_other_programs_write_them(tmp_path: Path) -> None:
    bids(tmp_path, ["x y/a.nii", "m/A.nii.gz", "m/b.nii.gz", "m/b.nii"])
    table(tmp_path, "patient;image;mask\r\np1;x y\\a.nii;m\\A.nii.gz\r\np2;x y/a.nii;N/A\r\n")
    discovery = survey(tmp_path / "table.csv")
    assert [(s.name(s.image[0]), s.name(s.mask[0])) for s in discovery.sources] == [("x y/a.nii", "m/A.nii.gz")]
    assert discovery.faults[0] == "table.csv, line 3: mask is N/A; name its file, or leave the line out"
    table(tmp_path, "patient,image,mask\np1,x y/A.nii.gz,m/a.nii.gz\np2,x y/a.nii,m/B.nii\np3,gone/a.nii,n/a\n")
    assert survey(tmp_path / "table.csv").faults == (
        "table.csv, line 4: mask is n/a; name its file, or leave the line out",
        "x y/A.nii.gz: no such file; is a.nii meant?",
        "m/a.nii.gz: no such file; is A.nii.gz meant?",
        "m/B.nii: no such file; correct the path or the link",
    )


def test_a_folder_without_a_pair_is_said_to_be_empty(tmp_path: Path) -> None:
    bids(tmp_path, ["images/README", "masks/notes.txt"])
    empty = f"{tmp_path} is read as a folder with images/ and masks/, but no image with its mask was found there"
    with pytest.raises(InputError) as error:
        survey(tmp_path).check()
    assert str(error.value) == empty
    bids(tmp_path, ["images/p1.img", "images/p1.hdr", "masks/p1.img.gz"])
    with pytest.raises(InputError) as error:
        survey(tmp_path).check()
    assert (error.value.headline, error.value.faults) == (
        empty,
        (
            "2 files not used, because they are not NIfTI, PNG, TIFF or JPEG (images/p1.img, masks/p1.img.gz); convert "
            "them if they are images or masks",
        ),
    )


def test_images_that_are_not_read_are_told(tmp_path: Path) -> None:
    bids(tmp_path, [f"{folder}/{name}.nii" for folder in ("images", "masks") for name in ("p1", "p2")])
    bids(tmp_path, ["images/p3.mgz", "masks/p3.mgz", "images/IM0001", "images/p1.json", "images/.p4.mgz"])
    bids(tmp_path, ["images/more/p5.nii", "images/more/again/p6.png", "masks/more/p5.nii", "images/docs/a.txt"])
    discovery = survey(tmp_path)
    assert len(discovery.sources) == 2
    assert discovery.notes == (
        "subfolders beside the files are not read (images/more with 2 files, masks/more with 1 file); move their files "
        "up if they are part of the data",
        "3 files not used, because they are not NIfTI, PNG, TIFF or JPEG (images/IM0001, images/p3.mgz, "
        "masks/p3.mgz); convert them if they are images or masks",
    )
    assert [unused.name for unused in discovery.unused] == [
        "images/more", "masks/more", "images/IM0001", "images/p3.mgz", "masks/p3.mgz",
    ]  # fmt: skip
    bids(tmp_path, ["masks/IM0001.nii", "images/p7.nii", "masks/p7.nrrd", "masks/p6.nii.gz"])
    assert survey(tmp_path).faults == (
        "masks/IM0001.nii: no image; convert images/IM0001",
        "masks/p6.nii.gz: no image; move images/more/again/p6.png up to images/",
        "images/p7.nii: missing mask; convert masks/p7.nrrd",
    )


def test_subfolders_that_cannot_be_read_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lost+found where images/ is a disk of its own; nothing in them would be used."""
    scan = os.scandir

    def refuse(folder: Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name in ("lost+found", "private"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    bids(tmp_path / "pairs", ["images/p1.nii", "masks/p1.nii", "images/old/p0.nii"])
    bids(tmp_path / "nnunet", ["imagesTr/p1_0000.nii", "labelsTr/p1.nii", "imagesTr/old/p0.nii"])
    for name in ("pairs/images", "nnunet/imagesTr"):
        for inner in ("lost+found", "private", "old/private"):
            (tmp_path / name / inner).mkdir()
        discovery = survey(tmp_path / name.split("/")[0])
        assert len(discovery.check().sources) == 1
        old = f"{name.split('/')[1]}/old with 1 file"
        assert discovery.notes[0].startswith(f"subfolders beside the files are not read ({old});")
    bids(tmp_path / "below", ["images/p1/a.nii", "masks/p1/a.nii"])
    (tmp_path / "below/images/lost+found").mkdir()
    assert len(survey(tmp_path / "below").check().sources) == 1


def test_a_stray_file_does_not_keep_subfolders_from_being_read(tmp_path: Path) -> None:
    bids(tmp_path, ["images/p1/a.nii", "masks/p1/a.nii", "images/checksums.md5", "images/CITATION.cff"])
    discovery = survey(tmp_path)
    assert [source.name(source.image[0]) for source in discovery.check().sources] == ["images/p1/a.nii"]
    assert discovery.notes[0].startswith("2 files not used, because they are not NIfTI, PNG, TIFF or JPEG (")


def test_subfolders_of_images_and_masks(tmp_path: Path) -> None:
    """They are read where no image lies beside them. The folder may name the patient; the files may differ."""
    names = [
        "images/sub-1/ses-1/flair.nii",
        "masks/sub-1/ses-1/lesion_mask.nii",
        "images/sub-2/a.nii",
        "masks/sub-2/a.nii",
    ]
    bids(tmp_path / "nifti", names)
    sources = survey(tmp_path / "nifti").check().sources
    assert [(s.patient, s.timepoint, s.name(s.image[0]), s.name(s.mask[0])) for s in sources] == [
        ("1", "1", "images/sub-1/ses-1/flair.nii", "masks/sub-1/ses-1/lesion_mask.nii"),
        ("2", "", "images/sub-2/a.nii", "masks/sub-2/a.nii"),
    ]
    bids(
        tmp_path / "slices",
        [f"{folder}/p{i}/{j}.png" for folder in ("images", "masks") for i in (1, 2) for j in (9, 10)],
    )
    discovery = survey(tmp_path / "slices")
    assert {source.patient for source in discovery.sources} == {""}
    pattern = discovery.notes[0].split("if these are the patients', give --patient-pattern '")[1].rstrip("'")
    by_folder = survey(tmp_path / "slices", Choices(pattern)).check().sources
    assert [(s.patient, [path.name for path in s.image]) for s in by_folder] == [
        ("p1", ["9.png", "10.png"]), ("p2", ["9.png", "10.png"]),
    ]  # fmt: skip
    bids(tmp_path / "slices", ["images/p2/11.png"])
    assert survey(tmp_path / "slices").faults == (
        "images/p2/11.png: missing mask; add masks/p2/11.* (same name, extension aside)",
    )


@pytest.mark.parametrize("word", ["NaN", "n/a", "sub-nan", "<NA>", "None"])
def test_a_missing_patient_of_a_table_is_no_patient(tmp_path: Path, word: str) -> None:
    """As pandas, R and Excel write it: four people would be the one patient "NaN"."""
    bids(tmp_path, ["a.png", "b.png", "c.png", "m.png"])
    rows = (
        f"patient,timepoint,image,mask,site\n{word},1,a.png,m.png,n/a\n{word},1,b.png,m.png,A\nP3,nan,c.png,m.png,NaN\n"
    )
    discovery = survey(table(tmp_path, rows))
    assert [(s.patient, s.timepoint, s.site, s.image[0].name) for s in discovery.sources] == [
        ("", "1", "", "a.png"),
        ("", "1", "A", "b.png"),
        ("P3", "", "", "c.png"),
    ]
    assert discovery.notes[0] == (
        f"table.csv: the patient is '{word}' in 2 rows (line 2, 3), which is read as not known; if it is a name, write "
        "it in another way"
    )


def test_a_quotation_mark_without_an_end_takes_no_rows_of_a_table(tmp_path: Path) -> None:
    bids(tmp_path, ["a.nii", "b.nii", "c.nii", "m.nii", "n.nii", "o.nii"])
    rows = 'patient,image,mask,note\np1,a.nii,m.nii,"two\nlines, see x.nii"\np2,b.nii,n.nii,"q\np3,c.nii,o.nii,\n'
    assert survey(table(tmp_path, rows)).faults == (
        "table.csv, line 4: a quotation mark has no end here, so that 1 line after it would be part of a cell; close "
        "the quotation mark, or remove it",
    )
    assert len(survey(table(tmp_path, rows.replace('"q', "q"))).sources) == 3
    short = rows.replace("o.nii,", "o.nii")  # without its empty last cell
    ended = f'{rows}p4,a.nii,o.nii,r"\n'  # the quotation mark of another row
    for text, count in ((short, "1 line"), (ended, "2 lines")):
        (fault,) = survey(table(tmp_path, text)).faults
        assert f"so that {count} after it would be part of a cell" in fault


def test_a_remark_of_several_lines_may_name_files(tmp_path: Path) -> None:
    bids(tmp_path, ["a.nii", "b.nii", "m.nii", "n.nii"])
    remark = '"first a.nii, m.nii\nthen b.nii, n.nii"'
    rows = f'patient,image,mask,note\np1,a.nii,m.nii,{remark}\np2,b.nii,n.nii,5" or "so"\n'
    assert len(survey(table(tmp_path, rows)).check().sources) == 2


def test_a_patient_at_two_sites_is_told(tmp_path: Path) -> None:
    """Two people of one number would be one patient, with two time points or as slices of one volume."""
    bids(tmp_path, ["a.nii", "b.nii", "c.nii", "a.png", "b.png", "m.nii", "n.nii", "o.nii", "m.png", "n.png"])
    header = "patient,timepoint,image,mask,site\n"
    rows = "1,2019,a.nii,m.nii,Utrecht\n1,2020,b.nii,n.nii,Singapore\n2,2020,c.nii,o.nii,Singapore\n"
    note = (
        "1 patient with scans at several sites ('1': Utrecht and Singapore); if these are different people, give each "
        "an id of their own, such as the site's name before the number"
    )
    assert survey(table(tmp_path, header + rows)).notes == (note,)
    assert survey(table(tmp_path, header + "1,,a.png,m.png,Utrecht\n1,,b.png,n.png,Singapore\n")).notes == (note,)
    assert survey(table(tmp_path, header + rows.replace("Singapore", "n/a"))).notes == ()
    (fault,) = survey(table(tmp_path, header + rows.replace("2019", "").replace("2020", ""))).faults
    assert fault == (
        "patient '1', time point '': must be one NIfTI volume, but got a.nii, b.nii; give each volume its own time "
        "point or, if they are of two people, its own patient"
    )
