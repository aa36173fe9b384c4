"""The user's own files are followed wherever they are; content that is not here is named with what fetches it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from wmlsearch.data.sources import Discovery, survey
from wmlsearch.errors import InputError

FLAIR = "sub-1/anat/sub-1_FLAIR.nii.gz"
LESION = "derivatives/lesions/sub-1/anat/sub-1_label-lesion_mask.nii.gz"


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def annex(dataset: Path, root: Path) -> None:
    """Move the files below `root` into the git-annex of a data set, as `datalad save` does."""
    for path in sorted(root.rglob("*.nii.gz")):
        key = f"MD5E-s1--{abs(hash(path)):x}.nii.gz"
        store = dataset / ".git/annex/objects" / key[9:11] / key[11:13] / key / key
        store.parent.mkdir(parents=True)
        shutil.move(path, store)
        path.symlink_to(os.path.relpath(store, path.parent))


def names(discovery: Discovery) -> list[str]:
    assert discovery.faults == ()
    return [source.name(path) for source in discovery.sources for path in (*source.image, *source.mask)]


@pytest.mark.parametrize("place", [".", "rawdata", "inputs/bids"])
def test_datalad(tmp_path: Path, place: str) -> None:
    raw = tree(tmp_path / "super" / place, FLAIR, LESION)
    annex(tmp_path / "super", raw)
    assert names(survey(raw)) == [FLAIR, LESION]
    shutil.rmtree(tmp_path / "super/.git")
    (fault,) = survey(raw).faults
    assert fault == (
        f"{FLAIR}, {LESION}: their content is not here, only a link of git-annex (DataLad); fetch it with: "
        f"cd {raw} && datalad get {FLAIR} {LESION}"
    )


def test_the_command_that_fetches_many_files_can_be_pasted(tmp_path: Path) -> None:
    """Its patterns fit all files that are needed, and no others."""
    raw = tmp_path / "my data"
    for number in range(1, 7):
        tree(
            raw,
            FLAIR.replace("-1", f"-{number}"),
            LESION.replace("-1", f"-{number}"),
            f"sub-{number}/anat/sub-{number}_T1w.nii.gz",
        )
    annex(raw, raw)
    shutil.rmtree(raw / ".git")
    (fault,) = survey(raw).faults
    assert "and 9 more: their content is not here" in fault
    command = fault.split("fetch it with: ")[1].replace("datalad get", "printf '%s\\n'")
    listed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) == 12
    assert not any("T1w" in name for name in listed)


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (b"/annex/objects/MD5E-s12345--d41d8.nii.gz\n", "datalad get"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    ],
)
def test_pointers_in_the_place_of_content(tmp_path: Path, content: bytes, command: str) -> None:
    tree(tmp_path, FLAIR, LESION)
    (tmp_path / LESION).write_bytes(content)
    (fault,) = survey(tmp_path).faults
    assert fault.startswith(f"{LESION}: its content is not here")
    assert f"&& {command}" in fault


def test_a_data_set_within_the_data_set_that_is_not_installed(tmp_path: Path) -> None:
    tree(tmp_path, FLAIR)
    (tmp_path / "derivatives/lesions").mkdir(parents=True)
    (tmp_path / ".gitmodules").write_text(
        '[submodule "derivatives/lesions"]\n\tpath = derivatives/lesions\n\turl = ./l\n'
        '[submodule "code"]\n\tpath = code\n'
    )
    missing, advice = survey(tmp_path).faults
    assert missing.startswith(f"{FLAIR}: missing mask")
    assert advice == (
        "derivatives/lesions: this data set within the data set is not here; fetch it with: "
        f"cd {tmp_path} && datalad get -n derivatives/lesions"
    )


def test_links_to_files_and_folders_elsewhere(tmp_path: Path) -> None:
    """A data lake: subjects are links to folders, masks links to files, and one link leads to another."""
    lake = tree(tmp_path / "lake", "s1/anat/sub-1_FLAIR.nii.gz", "masks/1.nii.gz")
    raw = tmp_path / "raw"
    (raw / LESION).parent.mkdir(parents=True)
    (raw / "sub-1").symlink_to(lake / "s1")
    (tmp_path / "hop.nii.gz").symlink_to(lake / "masks/1.nii.gz")
    (raw / LESION).symlink_to("../../../../../hop.nii.gz")
    assert names(survey(raw)) == [FLAIR, LESION]
    (lake / "masks/1.nii.gz").unlink()
    assert survey(raw).faults == (f"{LESION}: no such file; correct the path or the link",)


def table(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["patient,timepoint,image,mask", *rows]) + "\n")
    return path


def test_a_table_may_name_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "lake/a.nii", "lake/am.nii", "lists/b.nii", "lists/bm.nii", "home/c.nii", "home/cm.nii")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    rows = [f"a,0,{tmp_path}/lake/a.nii,../lake/am.nii", "b,0,b.nii,./bm.nii", "c,0,~/c.nii,~/cm.nii"]
    path = table(tmp_path / "lists/t.csv", *rows)
    # Names never lead out of the data set, as copies of test volumes are stored by them.
    assert names(survey(path)) == [
        "lake/a.nii",
        "lake/am.nii",
        "lists/b.nii",
        "lists/bm.nii",
        "home/c.nii",
        "home/cm.nii",
    ]
    monkeypatch.chdir(tmp_path / "lists")
    assert names(survey(Path("t.csv"))) == names(survey(path))
    tabs = path.with_suffix(".tsv")
    tabs.write_text(path.read_text().replace(",", "\t"))
    assert names(survey(tabs)) == names(survey(path))
    inside = table(tmp_path / "lake/t.csv", f"a,0,{tmp_path}/lake/a.nii,am.nii")
    assert names(survey(inside)) == ["a.nii", "am.nii"]


def test_two_points_behind_a_link(tmp_path: Path) -> None:
    """`..` from a table in a linked folder leads where a reader expects it, or else where the system goes."""
    tree(tmp_path, "real/lists/x", "real/a.nii", "real/am.nii", "b.nii", "bm.nii")
    (tmp_path / "link").symlink_to("real/lists")
    path = table(tmp_path / "link/t.csv", "a,0,../a.nii,../am.nii", "b,0,../b.nii,../bm.nii")
    assert names(survey(path)) == ["real/a.nii", "real/am.nii", "b.nii", "bm.nii"]


def test_missing_files_of_a_table_are_named_as_written(tmp_path: Path) -> None:
    tree(tmp_path, "m.nii")
    path = table(tmp_path / "t.csv", "a,0,/gone/a.nii,m.nii", "b,0,b.nii,m.nii")
    with pytest.raises(InputError) as error:
        survey(path).check()
    assert error.value.faults == (
        "/gone/a.nii: no such file; correct the path or the link",
        "b.nii: no such file; correct the path or the link",
    )


def test_dangling_annex_links_of_a_table(tmp_path: Path) -> None:
    tree(tmp_path, "m.nii")
    (tmp_path / "a.nii").symlink_to("../super/.git/annex/objects/Xx/Yy/K/K")
    (fault,) = survey(table(tmp_path / "t.csv", "a,0,a.nii,m.nii")).faults
    assert fault.endswith(f"cd {tmp_path} && datalad get a.nii")
