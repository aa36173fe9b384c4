"""`prepare --pseudonymise`: nothing that names a patient is left in what is written, and the scores don't change."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_prepare import FAST, volume

from wmlsearch.cli import main
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import Opener, open_sealed_test
from wmlsearch.errors import InputError

MARKER = "Mustermann"  # in every name, path and header that a patient could be known by
DAY = "19700131"


def words(image: Any) -> Any:
    """A NIfTI image with texts wherever its header has room for them."""
    for name, room in (("descrip", 80), ("aux_file", 24), ("intent_name", 16), ("db_name", 18), ("data_type", 10)):
        image.header[name] = f"{MARKER} {name}"[:room]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{MARKER} was here".encode()))
    return image


def bids(root: Path, patients: range = range(1, 6)) -> Path:
    """A cohort whose files say everywhere whom they show; of patient 2 there are two scans, one of them NIfTI-2."""
    for p in patients:
        for s, session in enumerate((DAY, "19710131") if p == 2 else (DAY,)):
            image, mask = volume(10 * p + s)
            where = Path(f"sub-{MARKER}{p}", f"ses-{session}")
            kind = nib.Nifti2Image if s else nib.Nifti1Image
            for folder, name, data in (
                (where / "anat", "FLAIR.nii.gz", image),
                ("derivatives/l" / where, "mask.nii", mask),
            ):
                (root / folder).mkdir(parents=True)
                made = kind(data, np.diag([-1, 1, 1, 1])) if s else words(kind(data, np.diag([-1, 1, 1, 1])))
                made.to_filename(root / folder / f"{MARKER}_{name}")
    return root


def leaks(folder: Path, words: tuple[str, ...] = (MARKER, DAY)) -> list[str]:
    """Return the names of the files below a folder that have one of the words in their path or (unpacked) content."""
    names = []
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        texts = [str(path.relative_to(folder)).encode(), content]
        texts += [gzip.decompress(content)] if path.suffix == ".gz" else []
        if any(word.lower().encode() in text.lower() for word in words for text in texts):
            names.append(path.name)
    return names


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Manifest]:
    """The raw cohort, and what was prepared of it with a table beside."""
    root = tmp_path_factory.mktemp("hidden")
    raw, out = bids(root / "raw"), root / "out"
    lists = {"val_patients": (f"{MARKER}2",), "test_patients": (f"sub-{MARKER}3", f"{MARKER}4")}
    manifest = prepare(raw, out, PrepareOptions(**FAST, **lists, pseudonyms=root / "who.json"))
    return raw, out, manifest


def table(out: Path) -> dict[str, str]:
    return dict(json.loads((out.parent / "who.json").read_text())["pseudonyms"])


def test_no_byte_names_a_patient(hidden: tuple[Path, Path, Manifest]) -> None:
    raw, out, _ = hidden
    assert len(leaks(raw)) > 20, "they are found where they are"
    assert leaks(out) == []
    assert list((out / "sealed/originals").rglob("*.nii.gz")), "the test volumes are there"


def test_the_table_is_its_owners_alone_and_says_who_is_who(hidden: tuple[Path, Path, Manifest]) -> None:
    _, out, manifest = hidden
    assert (out.parent / "who.json").stat().st_mode & 0o777 == 0o600
    who = table(out)
    assert sorted(who) == [f"{MARKER}{p}" for p in range(1, 6)]
    assert all(re.fullmatch("p[0-9a-f]{8}", pseudonym) for pseudonym in who.values())
    assert manifest.certificate.patients["val"] == (who[f"{MARKER}2"],), "lists are given by the patients' own names"
    assert set(manifest.certificate.patients["test"]) == {who[f"{MARKER}3"], who[f"{MARKER}4"]}
    scans = [(v.patient, v.timepoint, v.images, v.masks) for v in manifest.volumes if v.patient == who[f"{MARKER}2"]]
    assert scans == [
        (pseudonym, scan, (f"{pseudonym}/{scan}/image.nii.gz",), (f"{pseudonym}/{scan}/mask.nii",))
        for pseudonym in [who[f"{MARKER}2"]]
        for scan in "12"
    ]
    assert [v.patient for v in manifest.volumes] == sorted(v.patient for v in manifest.volumes), "not in the ids' order"


def test_the_slices_are_the_same_and_the_sealed_volumes_too(
    hidden: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    raw, out, manifest = hidden
    lists = {"val_patients": (f"{MARKER}2",), "test_patients": (f"{MARKER}3", f"{MARKER}4")}
    plain = prepare(raw, tmp_path / "plain", PrepareOptions(**FAST, **lists))
    who = table(out)
    assert sorted((who[row.patient], row.index, row.split, row.checksum) for row in plain.slices) == sorted(
        (row.patient, row.index, row.split, row.checksum) for row in manifest.slices
    )
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    for sealed in open_sealed_test(copy, Opener()).volumes():  # each is cut anew and compared with what was sealed
        (image,), (mask,) = sealed.source.image, sealed.source.mask
        (name,) = (name for name, pseudonym in who.items() if pseudonym == sealed.source.patient)
        (original,) = raw.glob(f"sub-{name}/*/anat/*")
        first, second = nib.load(original), nib.load(image)
        assert np.array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
        assert np.array_equal(first.affine, second.affine)
        assert not second.header.extensions
        assert mask.name == "mask.nii"


def test_a_later_cohort_has_the_same_pseudonyms(hidden: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    _, out, _ = hidden
    before = table(out)
    shutil.copy(out.parent / "who.json", tmp_path / "who.json")
    later = prepare(bids(tmp_path / "raw", range(4, 9)), tmp_path / "out", PrepareOptions(
        **FAST, pseudonyms=tmp_path / "who.json"
    ))  # fmt: skip
    after = table(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    everyone = {name for names in later.certificate.patients.values() for name in names}
    assert everyone == {after[f"{MARKER}{p}"] for p in range(4, 9)}
    other = prepare(bids(tmp_path / "again", range(4, 9)), tmp_path / "other", PrepareOptions(
        **FAST, pseudonyms=tmp_path / "new.json"
    ))  # fmt: skip
    assert not everyone & {name for names in other.certificate.patients.values() for name in names}, "no hash of the id"


def test_from_the_command_line_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bids(Path("raw"))
    words = ["prepare", "raw", "out", "--plane", "axial", "--size", "32", "--jobs", "1", "--pseudonymise"]
    first = CliRunner().invoke(main, words)
    assert first.exit_code == 0, first.output
    path = tmp_path / "out-pseudonyms.json"
    assert first.output.endswith(f"the table of pseudonyms is {path}; keep it apart from out, and do not pass it on\n")
    assert path.stat().st_mode & 0o777 == 0o600
    patients, before = Manifest.read(Path("out")).certificate.patients, path.read_text()
    shutil.rmtree("out")
    assert CliRunner().invoke(main, words).exit_code == 0
    assert Manifest.read(Path("out")).certificate.patients == patients
    assert path.read_text() == before


def test_leaks_between_splits_are_told_by_the_patients_own_names(tmp_path: Path) -> None:
    raw = bids(tmp_path / "raw")
    for part in ("", "derivatives/l/"):  # the first patient's scan again, as the third's
        shutil.rmtree(raw / f"{part}sub-{MARKER}3")
        shutil.copytree(raw / f"{part}sub-{MARKER}1", raw / f"{part}sub-{MARKER}3")
    lists = {"val_patients": (f"{MARKER}2",), "test_patients": (f"{MARKER}3",)}
    with pytest.raises(InputError, match=rf"patient '{MARKER}3' \(test\) and patient '{MARKER}1' \(fold \d\)"):
        prepare(raw, tmp_path / "out", PrepareOptions(**FAST, **lists, pseudonyms=tmp_path / "who.json"))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "who.json").exists(), "nothing is left behind"


@pytest.mark.parametrize("form", ["pairs", "table", "images without patients"])
def test_pictures_too(form: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for kind in ("images", "masks"):
        (raw / kind).mkdir(parents=True)
    lines = ["patient,timepoint,image,mask"]
    for p in range(4):
        image, mask = volume(p)
        for k in range(4):
            name = f"{MARKER}{p}_{DAY}_{k}.png"
            Image.fromarray(image[:, :, 3 + k].clip(0, 255).astype(np.uint8)).save(raw / "images" / name)
            Image.fromarray(mask[:, :, 3 + k] * 255).save(raw / "masks" / name)
            lines.append(f"{MARKER}{p},{DAY},images/{name},masks/{name}")
    given: Path = raw
    if form == "table":
        given = raw / "table.csv"
        given.write_text("\n".join(lines))
    options: dict[str, Any] = {"size": 32, "jobs": 1, "pseudonyms": tmp_path / "who.json"}
    if form == "pairs":
        options["patient_pattern"] = rf"^(?P<patient>{MARKER}\d)_(?P<timepoint>\d+)"
    if form == "images without patients":
        options |= {"split": "image", "allow_leakage": True}
    manifest = prepare(given, tmp_path / "out", PrepareOptions(**options))
    assert leaks(tmp_path / "out") == []
    who = table(tmp_path / "out")
    if form == "images without patients":
        assert {row.patient for row in manifest.slices} == {""}
        assert f"images/{MARKER}0_{DAY}_0.png" in who
    else:
        assert sorted(who) == [f"{MARKER}{p}" for p in range(4)]
        assert {row.patient for row in manifest.slices} < set(who.values())
        assert {row.timepoint for row in manifest.slices} == {"1"}


def test_tables_that_are_refused(tmp_path: Path) -> None:
    raw, path = bids(tmp_path / "raw"), tmp_path / "who.json"

    def refused(pseudonyms: Path) -> str:
        with pytest.raises(InputError) as error:
            prepare(raw, tmp_path / "out", PrepareOptions(**FAST, pseudonyms=pseudonyms))
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert refused(tmp_path / "out/who.json") == (
        f"{tmp_path}/out/who.json: the table of pseudonyms must not be inside {tmp_path}/out, which is passed on; "
        "name another place"
    )
    assert refused(tmp_path / "no/who.json") == (
        f"{tmp_path}/no/who.json: cannot be written, because its folder is missing; make it, or name another place"
    )
    path.write_text('{"format": 1, "pseudonyms": {}}')
    path.chmod(0o644)
    assert refused(path) == (
        f"{path}: must be a file that only you can read, but others can read or change it (mode 644); "
        f"`chmod 600 {path}`"
    )
    path.chmod(0o600)
    for content in ('{"format": 1}', '{"format": 1, "pseudonyms": {"a": "p1", "b": "p1"}}', "{}"):
        path.write_text(content)
        assert refused(path) == f"{path}: is not a table of pseudonyms (format 1), or is damaged; name another file"
