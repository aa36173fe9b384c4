"""Which images the paths given to `predict` mean: in folders those that `prepare` finds, with masks or without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from wmlsearch.data.sources import Choices, survey
from wmlsearch.errors import InputError
from wmlsearch.inference import inputs
from wmlsearch.inference.inputs import find_images


def write(folder: Path, *names: str) -> None:
    """Write files whose content nobody reads."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"?")


def names_and_notes(folder: Path, *paths: Path) -> tuple[list[str], Sequence[str]]:
    """Return the images of the paths, or of the folder, relative to it, and the notes."""
    images = find_images(paths or [folder])
    return [image.path.relative_to(folder).as_posix() for image in images.images], images.notes


def test_a_bids_folder_holds_the_images_that_prepare_finds(tmp_path: Path) -> None:
    images = [
        "derivatives/registered/sub-05/anat/sub-05_FLAIR.nii.gz",
        "sub-01/anat/sub-01_T2FLAIR.nii.gz",
        "sub-02/sub-02_flair.nii",
        "sub-03/ses-1/anat/sub-03_ses-1_FLAIR.nii.gz",
        "sub-03/ses-2/other/sub-03_ses-2_acq-3D_FLAIR.nii.gz",
    ]
    masks = [f"derivatives/lesions/sub-0{n}/anat/sub-0{n}_label-lesion_mask.nii.gz" for n in (1, 2, 5)]
    masks += [f"derivatives/lesions/sub-03/ses-{n}/sub-03_ses-{n}_label-lesion_mask.nii.gz" for n in (1, 2)]
    other = [
        "derivatives/lesions/sub-01/anat/sub-01_FLAIR.nii.gz",  # in a folder of lesions
        "derivatives/registered/sub-03/ses-1/anat/sub-03_ses-1_FLAIR.nii.gz",  # that scan has one of its own
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/._sub-01_T2FLAIR.nii.gz",  # as macOS leaves them on other disks
        "derivatives/.hidden/sub-06_FLAIR.nii.gz",
    ]
    write(tmp_path, *images, *masks, *other)
    assert names_and_notes(tmp_path) == (images, ())
    assert sorted(path for source in survey(tmp_path).check().sources for path in source.image) == [
        tmp_path / n for n in images
    ]
    assert names_and_notes(tmp_path, tmp_path / "sub-03")[0] == images[3:]
    assert names_and_notes(tmp_path, tmp_path / "sub-03" / "ses-2")[0] == images[4:]
    assert names_and_notes(tmp_path, tmp_path / "sub-01" / "anat")[0] == images[1:2]
    write(tmp_path, ".bidsignore")
    (tmp_path / ".bidsignore").write_text("sub-01/\n")  # as prepare advises for a scan without a mask
    assert names_and_notes(tmp_path) == (images, ())


def test_the_images_of_a_scan_are_all_predicted(tmp_path: Path) -> None:
    """`prepare` has to choose one, for one mask."""
    images = [f"sub-01/anat/sub-01_{acq}_FLAIR.nii.gz" for acq in ("acq-2D", "acq-3D")]
    write(tmp_path, *images, "sub-01_FLAIR.nii.gz")
    assert names_and_notes(tmp_path) == ([*images, "sub-01_FLAIR.nii.gz"], ())


def test_what_a_bids_folder_does_not_give_is_named(tmp_path: Path) -> None:
    spaces = [f"derivatives/p/sub-04/sub-04_space-{space}_FLAIR.nii.gz" for space in ("MNI", "T1w")]
    write(tmp_path, "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz", *spaces)
    write(tmp_path, "sub-01/anat/sub-01_desc-lesion_FLAIR.nii.gz", "Sub-5/anat/sub-5_FLAIR.nii.gz", "atlas.nii.gz")
    (tmp_path / "sub-03").mkdir()
    assert names_and_notes(tmp_path) == (
        ["sub-01/anat/sub-01_FLAIR.nii.gz"],
        (
            f"{tmp_path}: left out: sub-04, which has no FLAIR image of its own, but 2 among derivatives "
            f"({', '.join(spaces)}); 2 scans without a FLAIR image (sub-02, sub-03); "
            "sub-01/anat/sub-01_desc-lesion_FLAIR.nii.gz, by the name a mask of lesions; Sub-5: the folder of a "
            "subject is named sub-..., in small letters; 1 image not named FLAIR as others are (atlas.nii.gz); name a "
            "file to predict it whatever its name",
        ),
    )


def test_the_only_flair_of_a_scan_may_have_a_name_that_says_lesions(tmp_path: Path) -> None:
    """`wmh` may name the protocol of a study."""
    only, other = "sub-01/anat/sub-01_acq-wmh_FLAIR.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_acq-wmh_FLAIR.nii.gz"
    write(tmp_path, only)
    doubt = "1 image predicted although the name says lesions, because the scan has no other FLAIR image ({}); if one "
    doubt += "is a mask, delete its results"
    assert names_and_notes(tmp_path) == ([only], (f"{tmp_path}: {doubt.format(only)}",))
    note = f"{tmp_path / 'sub-01'}: {doubt.format(only.removeprefix('sub-01/'))}"
    assert names_and_notes(tmp_path, tmp_path / "sub-01") == ([only], (note,))
    derived = "derivatives/p/sub-02/ses-1/sub-02_ses-1_FLAIR.nii.gz"
    write(tmp_path, other, derived)
    left_out = f"left out: {other}, by the name a mask of lesions; name a file to predict it whatever its name"
    notes = (f"{tmp_path}: {doubt.format(only)}", f"{tmp_path}: {left_out}")
    assert names_and_notes(tmp_path) == ([derived, only], notes)
    write(tmp_path / "masks", "sub-03/lesions/sub-03_FLAIR.nii.gz")
    with pytest.raises(InputError) as caught:
        find_images([tmp_path / "masks"])
    assert caught.value.faults[0].endswith(
        "left out: 1 scan without a FLAIR image (sub-03); sub-03/lesions/sub-03_FLAIR.nii.gz, by the name a mask of "
        "lesions; name a file to predict it whatever its name"
    )


def test_a_plain_folder_holds_its_flairs_or_else_all_images(tmp_path: Path) -> None:
    write(tmp_path, "sub-01_FLAIR.nii.gz", "sub-02_flair.nii.gz", "sub-03.nii.gz", "._sub-01_FLAIR.nii.gz")
    write(tmp_path, "sub-01_FLAIR_mask.nii.gz", "sub-01_FLAIR_overlay.png", "lesions.csv")
    advice = "name a file to predict it whatever its name"
    note = f"{tmp_path}: left out: 1 image not named FLAIR as others are (sub-03.nii.gz); {advice}"
    assert names_and_notes(tmp_path) == (["sub-01_FLAIR.nii.gz", "sub-02_flair.nii.gz"], (note,))
    plain = tmp_path / "plain"
    write(plain, "10.nii.gz", "9.nii", "p.png", ".hidden.nii", "sub-01_T1w_mask.nii.gz")
    (plain / "link.nii").symlink_to("nowhere")
    note = f"{plain}: left out: 1 link to files that are not here (link.nii); {advice}"
    assert names_and_notes(plain) == (["9.nii", "10.nii.gz", "p.png"], (note,))
    pairs = tmp_path / "pairs"
    write(pairs, "images/1.nii", "images/2.nii", "masks/1.nii", "masks/2.nii")
    assert names_and_notes(pairs) == (["images/1.nii", "images/2.nii"], ())
    assert sorted(path for source in survey(pairs).check().sources for path in source.image) == sorted(
        (pairs / "images").iterdir()
    )


def test_formats_and_subfolders_that_are_not_read_are_named(tmp_path: Path) -> None:
    plain, bids = tmp_path / "plain", tmp_path / "bids"
    write(plain, "1.nii", "2.mha", "3.hdr", "3.img", "1.json", "more/4.nii", "found/1_mask.nii", ".hidden/5.nii")
    notes = ["2 files not NIfTI, PNG, TIFF or JPEG (2.mha, 3.img); 1 subfolder with images (more)"]
    write(bids, "sub-01/anat/sub-01_FLAIR.nii", "sub-01/anat/sub-01_FLAIR.mgz", "sub-02/anat/sub-02_FLAIR.mgz")
    write(bids, "sub-03/anat/sub-03_T1w.mgz")
    notes += ["1 FLAIR image not NIfTI (sub-02/anat/sub-02_FLAIR.mgz); 1 scan without a FLAIR image (sub-03)"]
    for folder, image, note in zip((plain, bids), ("1.nii", "sub-01/anat/sub-01_FLAIR.nii"), notes, strict=True):
        assert names_and_notes(folder) == (
            [image],
            (f"{folder}: left out: {note}; name a file to predict it whatever its name",),
        )
    assert names_and_notes(bids, bids / "sub-01") == (["sub-01/anat/sub-01_FLAIR.nii"], ())
    with pytest.raises(InputError, match=r"left out: 1 FLAIR image not NIfTI \(anat/sub-02_FLAIR.mgz\)"):
        find_images([bids / "sub-02"])


def test_subfolders_of_images_are_read_as_prepare_reads_them(tmp_path: Path) -> None:
    images = ["images/sub-1/1.png", "images/sub-1/2.png", "images/sub-2/1.png"]
    write(tmp_path, *images, *(name.replace("images", "masks") for name in images))
    assert names_and_notes(tmp_path) == names_and_notes(tmp_path, tmp_path / "images") == (images, ())
    for paths in [tmp_path], [tmp_path / name for name in images], [tmp_path / "images" / "sub-1"]:
        volumes = {image.volume for image in find_images(paths).images if image.volume}
        assert volumes == {tuple(tmp_path / name for name in images[:2])}
        assert paths != [tmp_path] or volumes == {
            source.image for source in survey(tmp_path).check().sources if source.image[1:]
        }
    for name in "images", "masks":
        (tmp_path / name / "sub-1").rename(tmp_path / name / "p1")
        (tmp_path / name / "sub-2").rename(tmp_path / name / "p2")
    pattern = "^([^/]+)/"
    volumes = {image.volume for image in find_images([tmp_path], pattern).images}
    assert volumes == {(), tuple(tmp_path / "images" / "p1" / name for name in ("1.png", "2.png"))}
    assert {
        source.image for source in survey(tmp_path, Choices(pattern)).check().sources if source.image[1:]
    } == volumes - {()}


def test_results_in_subfolders_of_images_are_no_images(tmp_path: Path) -> None:
    """`prepare` takes images of any name there, so a name alone does not make a file a result."""
    images = ["images/p1/a.png", "images/p1/b_mask.png", "images/p2/c.png"]
    write(tmp_path, *images, "masks/p1/a.png", "images/p1/a_mask.png", "images/p1/a_probability.tif")
    write(tmp_path, *(f"images/out/{name}" for name in ("lesions.csv", "p2_c_mask.png", "p2_c_overlay.png")))
    assert names_and_notes(tmp_path) == (images, ())


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "sub-01"))

    monkeypatch.setattr(inputs, "find_flair_images", refuse)
    with pytest.raises(InputError) as caught:
        find_images([tmp_path])
    assert caught.value.faults == (f"{tmp_path}: sub-01 cannot be read (Permission denied); check its permissions",)


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/._sub-01_FLAIR.nii.gz")
    with pytest.raises(InputError) as caught:
        find_images([tmp_path])
    assert caught.value.faults == (
        f"{tmp_path}: no image in this folder; .nii, .nii.gz, .png, .tif, .tiff, .jpg, .jpeg, or BIDS "
        "(sub-*/[ses-*/]anat/*_FLAIR.nii.gz); left out: 1 scan without a FLAIR image (sub-01); name a file to "
        "predict it whatever its name",
    )


def test_images_whose_content_is_elsewhere_are_named_with_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_FLAIR.nii.gz").symlink_to("../../.git/annex/objects/x")
    with pytest.raises(InputError) as caught:
        find_images([tmp_path])
    assert caught.value.faults == (
        "sub-01/anat/sub-01_FLAIR.nii.gz: its content is not here, only a link of git-annex (DataLad); fetch it with: "
        f"cd {tmp_path} && datalad get sub-01/anat/sub-01_FLAIR.nii.gz",
    )
