"""Damaged prepared data are refused before a training starts: each file, a flipped bit, an invalid manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmlsearch.data.manifest import Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.model.checks import check_validation_lesions

Refused = Callable[..., str]
Change = Callable[[Path], object]
AGAIN = "make it again with `wmlsearch prepare`"
pytestmark = pytest.mark.usefixtures("no_ray")


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda data: (data / name).write_bytes(change((data / name).read_bytes()))


def flipped(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def manifest(change: Callable[[Any], object], name: str = "manifest.json") -> Change:
    """Return a change of the fields of a manifest."""

    def apply(data: Path) -> None:
        fields = json.loads((data / name).read_text())
        change(fields)
        (data / name).write_text(json.dumps(fields))

    return apply


def row(**values: Any) -> Change:
    return manifest(lambda fields: fields["slices"][0].update(values))


def objects(data: Path) -> None:
    np.save(data / "images.npy", np.array([{}, []], dtype=object), allow_pickle=True)


MANIFEST = f"data/manifest.json: is damaged ({{}}); {AGAIN}"
WHOLE = f"data: the prepared data set is damaged\n  - {{}}; {AGAIN}"
SHAPE = "the manifest says (60, 32, 32) uint8, but it holds {}; " + AGAIN

FAULTS: dict[str, tuple[Change, str]] = {
    "a bit of the images": (
        bytes_of("images.npy", flipped),
        WHOLE.format("images.npy: is damaged, its checksum is not the manifest's"),
    ),
    "a bit of the masks": (
        bytes_of("masks.npy", flipped),
        WHOLE.format("masks.npy: is damaged, its checksum is not the manifest's"),
    ),
    "a volume elsewhere": (
        manifest(lambda fields: fields["volumes"][0].update(images=["../../secret.nii.gz"])),
        MANIFEST.format("the name '../../secret.nii.gz' leads out of the folder"),
    ),
    "a volume at an absolute path": (
        manifest(lambda fields: fields["volumes"][0].update(masks=["/etc/passwd"])),
        MANIFEST.format("the name '/etc/passwd' leads out of the folder"),
    ),
    "images and masks swapped": (
        lambda data: [
            (data / a).rename(data / b)
            for a, b in (("images.npy", "x"), ("masks.npy", "images.npy"), ("x", "masks.npy"))
        ],
        "data: the prepared data set is damaged\n"
        f"  - images.npy: is damaged, its checksum is not the manifest's; {AGAIN}\n"
        f"  - masks.npy: is damaged, its checksum is not the manifest's; {AGAIN}",
    ),
    "a row's split": (
        row(split="val"),
        WHOLE.format("manifest.json: is damaged, its fingerprint does not fit its slices"),
    ),
    "no images": (
        lambda data: (data / "images.npy").unlink(),
        f"data/images.npy: cannot be read ([Errno 2] No such file or directory: 'data/images.npy'); {AGAIN}",
    ),
    "empty images": (
        bytes_of("images.npy", lambda _: b""),
        f"data/images.npy: cannot be read (EOF: reading magic string, expected 8 bytes got 0); {AGAIN}",
    ),
    "images cut": (
        bytes_of("images.npy", lambda content: content[:-1]),
        f"data/images.npy: cannot be read (mmap length is greater than file size); {AGAIN}",
    ),
    "images that are pickled": (
        objects,
        f"data/images.npy: cannot be read (Array can't be memory-mapped: Python objects in dtype.); {AGAIN}",
    ),
    "images of another size": (
        lambda data: np.save(data / "images.npy", np.zeros((60, 16, 16), np.uint8)),
        f"data/images.npy: {SHAPE.format('(60, 16, 16) uint8')}",
    ),
    "masks of floats": (
        lambda data: np.save(data / "masks.npy", np.zeros((60, 32, 32), np.float32)),
        f"data/masks.npy: {SHAPE.format('(60, 32, 32) float32')}",
    ),
    "an empty manifest": (
        bytes_of("manifest.json", lambda _: b""),
        MANIFEST.format("Expecting value: line 1 column 1 (char 0)"),
    ),
    "a manifest that is a list": (
        bytes_of("manifest.json", lambda _: b"[1]"),
        MANIFEST.format("manifest: '[1]' is not of type Manifest"),
    ),
    "a manifest in UTF-16": (
        bytes_of("manifest.json", lambda content: content.decode().encode("utf-16")),
        MANIFEST.format("'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ),
    "a manifest of depths": (
        bytes_of("manifest.json", lambda _: b"[" * 100_000),
        MANIFEST.format("nested too deeply"),
    ),
    "another format": (
        manifest(lambda fields: fields.update(format=5)),
        f"data/manifest.json: format must be 2, 3 or 4, but is 5; {AGAIN}",
    ),
    "no size": (
        manifest(lambda fields: fields.pop("size")),
        MANIFEST.format("manifest: missing or unknown fields: size"),
    ),
    "a size of text": (
        manifest(lambda fields: fields.update(size="32")),
        MANIFEST.format("size: '32' is not of type int"),
    ),
    "an unknown field": (
        manifest(lambda fields: fields.update(colour=1)),
        MANIFEST.format("manifest: missing or unknown fields: colour"),
    ),
    "a volume that isn't there": (
        row(volume=99),
        MANIFEST.format("slice 0 is in split 'train' and volume 99"),
    ),
    "a fold that is missing": (
        manifest(lambda fields: fields["certificate"]["folds"].pop()),
        MANIFEST.format("the folds are not the patients of train and val, with val as the first fold"),
    ),
    "folds without training patients": (
        manifest(lambda fields: fields["certificate"]["patients"].pop("train")),
        MANIFEST.format("the folds are not the patients of train and val, with val as the first fold"),
    ),
    "folds in another order": (
        manifest(lambda fields: fields["certificate"]["folds"].append(fields["certificate"]["folds"].pop(1))),
        WHOLE.format("manifest.json: is damaged, its fingerprint does not fit its slices"),
    ),
    "a split that isn't one": (row(split="extra"), MANIFEST.format("slice 0 is in split 'extra' and volume 0")),
    "a sealed manifest that was changed": (
        manifest(lambda fields: fields.update(seed=1), "sealed/manifest.json"),
        f"data/sealed/manifest.json: is not the one that was sealed, its checksum differs; {AGAIN}",
    ),
    "no sealed patients": (
        lambda data: shutil.rmtree(data / "sealed"),
        f"data/sealed/manifest.json: cannot be read (No such file or directory); {AGAIN}",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_data_set(name: str, prepared: Path, refused: Refused) -> None:
    change, message = FAULTS[name]
    shutil.copytree(prepared, "data")
    change(Path("data"))
    assert refused("tune", "quick", "--data", "data") == message
    if "sealed" not in name:
        assert refused("train", "paper", "--data", "data", "--workers", 0) == message
        assert refused("plan", "quick", "--data", "data") == message
    assert [path.name for path in Path().iterdir()] == ["data"], "nothing was started"


def without_lesions(patients: list[str]) -> Change:
    """Return a change that takes all lesions of some patients from the manifest."""

    def change(fields: Any) -> None:
        for row in fields["slices"]:
            if row["patient"] in patients:
                row["lesion_pixels"] = 0

    return manifest(change)


def test_folds_without_a_lesion(prepared: Path, refused: Refused) -> None:
    folds = Manifest.read(prepared).folds
    for empty, words in ([1], "fold 1"), ([1, 3], "folds 1, 3"):
        shutil.rmtree("data", ignore_errors=True)
        shutil.copytree(prepared, "data")
        without_lesions([name for fold in empty for name in folds[fold]])(Path("data"))
        for verb in "tune", "plan":
            assert refused(verb, "quick", "--data", "data") == (
                f"data: the slices of {words} hold no lesion, so runs that validate on them would have no Dice; "
                "prepare the data with other --val-patients, another --seed or fewer --folds"
            )
    assert refused("train", "paper", "--data", "data", "--workers", 0, "--fold", 3) == (
        "data: the slices of fold 3 hold no lesion, so runs that validate on them would have no Dice; validate another "
        "--fold, or prepare the data with other --val-patients, another --seed or fewer --folds"
    )
    check_validation_lesions(Manifest.read(Path("data")), Path("data"), [0])
    assert [path.name for path in Path().iterdir()] == ["data"], "nothing was started"


def test_a_validation_set_without_a_lesion(raw: Path, refused: Refused) -> None:
    prepare(raw, Path("data"), PrepareOptions(size=32, fit="resize", val_patients=("04",), folds=1, jobs=1))
    without_lesions(["04"])(Path("data"))
    message = (
        "data: the validation slices hold no lesion, so no Dice can be computed; prepare the data with other "
        "--val-patients or another --seed"
    )
    assert refused("tune", "quick", "--data", "data") == message
    assert refused("train", "paper", "--data", "data", "--workers", 0) == message
