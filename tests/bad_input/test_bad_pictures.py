"""Bad pictures in images/ and masks/, and bad tables: complete messages. Unusual but valid ones are accepted."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wmlsearch.data.labels import MaskRule
from wmlsearch.data.pictures import load_pictures
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sources import Source

Change = Callable[[Path, Path], object]
IMAGE, MASK = Path("p/images/p00_1.png"), Path("p/masks/p00_1.png")
PATTERN = r"^(p\d+)_"
OPTIONS = ("--size", 32, "--fit", "resize", "--jobs", 1)


def pictures(patients: int = 12) -> None:
    """A data set in `p` with a picture and a mask of each patient, all different."""
    rng = np.random.default_rng(0)
    for place in ("images", "masks"):
        Path("p", place).mkdir(parents=True)
    for number in range(patients):
        grey = np.zeros((40, 40), np.uint8)
        grey[4:36, 4:36] = rng.integers(60, 200, (32, 32))
        mask = np.zeros((40, 40), np.uint8)
        mask[10 + number : 14 + number, 10:14] = 255
        Image.fromarray(grey).save(f"p/images/p{number:02d}_1.png")
        Image.fromarray(mask).save(f"p/masks/p{number:02d}_1.png")


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


def save(path: Path, array: Any, ending: str = ".png", **how: Any) -> None:
    path.unlink()
    Image.fromarray(array).save(path.with_suffix(ending), **how)


def colours(grey: Any) -> Any:
    return np.stack([grey, grey // 2, grey // 3], axis=-1)


def as_palette(path: Path, array: Any) -> None:
    Image.fromarray(array).convert("P").save(path)


def label_colours(path: Path, palette: list[int], label: int = 1) -> None:
    """Save a mask as a label with a colour, as Pascal VOC does."""
    image = Image.fromarray((pixels(path) // 255 * label).astype(np.uint8), mode="P")
    image.putpalette(palette)
    image.save(path)


def promising(rows: int, columns: int) -> bytes:
    """Return a PNG of a few bytes whose header declares a large number of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def unreadable(why: str) -> str:
    return f"images/p00_1.png: cannot be read ({why}); replace the file"


TOO_MANY = "exceeds limit of {} pixels, could be decompression bomb DOS attack."

FAULTS: dict[str, tuple[Change, str]] = {
    "empty": (lambda image, _: image.write_bytes(b""), unreadable("cannot identify image file 'p00_1.png'")),
    "text": (lambda image, _: image.write_text("hello"), unreadable("cannot identify image file 'p00_1.png'")),
    "a bitmap by another name": (
        lambda image, _: Image.fromarray(pixels(image)).save(image, "BMP"),
        unreadable("cannot identify image file 'p00_1.png'"),
    ),
    "a program for Ghostscript": (
        lambda image, _: Image.fromarray(pixels(image)).save(image, "EPS"),
        unreadable("cannot identify image file 'p00_1.png'"),
    ),
    "cut": (lambda image, _: image.write_bytes(image.read_bytes()[:300]), unreadable("image file is truncated")),
    "more pixels than can be": (
        lambda image, _: image.write_bytes(promising(60000, 60000)),
        unreadable("Image size (3600000000 pixels) " + TOO_MANY.format(178956970)),
    ),
    "more pixels than are wise": (
        lambda image, _: image.write_bytes(promising(10000, 10000)),
        unreadable("Image size (100000000 pixels) " + TOO_MANY.format(89478485)),
    ),
    "a coloured palette": (
        lambda image, _: as_palette(image, colours(pixels(image))),
        "images/p00_1.png: must be grey, but its colour channels differ; convert it to grey",
    ),
    "a palette of a mask without a black background": (
        lambda _, mask: label_colours(mask, [255, 255, 255, 128, 0, 0]),
        "masks/p00_1.png: must be grey, but its colour channels differ; save each label as a grey value, 0 for the "
        "background",
    ),
    "transparent": (
        lambda image, _: save(image, np.stack([pixels(image)] * 4, axis=-1)),
        "images/p00_1.png: must be opaque, but has transparent pixels; save it as grey",
    ),
    "two pages": (
        lambda image, _: save(
            image, pixels(image), ".tif", save_all=True, append_images=[Image.fromarray(pixels(image))]
        ),
        "images/p00_1.tif: must hold one picture, but holds 2; save one file per slice",
    ),
    "floats with NaN": (
        lambda image, _: save(image, np.where(pixels(image) > 0, np.nan, 0).astype(np.float32), ".tif"),
        "images/p00_1.tif: every pixel must be a finite number, but 1024 inside the head are NaN or infinite, such as "
        "row 4, column 4; make it again without them, or give --nan-background if they are background",
    ),
    "one grey": (
        lambda image, _: save(image, pixels(image) * 0 + 9),
        "images/p00_1.png: the FLAIR is empty, every voxel is 9; leave it out or replace it",
    ),
    "a mask of another shape": (
        lambda _, mask: save(mask, pixels(mask)[:30]),
        "masks/p00_1.png: shape must be that of images/p00_1.png, (40, 40), but is (30, 40); resample the mask",
    ),
    "a mask as JPEG": (
        lambda _, mask: save(mask, pixels(mask) // 255 * 9 + np.eye(40, dtype=np.uint8), ".png"),
        "the masks hold label 1 in masks/p00_1.png (36 voxels), label 9 in masks/p00_1.png (12 voxels), label 10 in "
        "masks/p00_1.png (4 voxels), label 255 in 11 of 12 masks (176 voxels) beside the background 0; give "
        "--lesion-label L for each label that is lesion, and --ignore-label L for each that is to be left out of "
        "training and scores, neither lesion nor background; labels without an option become background. Or give "
        "--mask-threshold T to take every value above T as lesion (0 where lesions are numbered)",
    ),
    "a name that is an ending": (
        lambda image, _: image.rename(image.with_name(".png")),
        "masks/p00_1.png: no image; add images/p00_1.* (same name, extension aside)",
    ),
    "a link to /etc/passwd": (
        lambda image, _: (image.unlink(), image.symlink_to("/etc/passwd")),
        "images/p00_1.png: cannot be read (cannot identify image file 'p00_1.png'); replace the file",
    ),
    "volumes among pictures": (
        lambda image, mask: [file.rename(file.with_suffix(".nii.gz")) for file in (image, mask)],
        "NIfTI volumes and 2-D pictures must not be mixed, but both were found; prepare them apart",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_picture(name: str, refused: Callable[..., str]) -> None:
    change, fault = FAULTS[name]
    pictures()
    change(IMAGE, MASK)
    assert refused("prepare", "p", "out", "--patient-pattern", PATTERN, *OPTIONS) == (
        f"p: 1 fault, nothing was written\n  - {fault}"
    )
    assert not Path("out").exists()


GOOD: dict[str, Change] = {
    "16 bits": lambda image, _: save(image, pixels(image).astype(np.uint16) * 257),
    "32 bits": lambda image, _: save(image, pixels(image).astype(np.int32) * 70000, ".tif"),
    "floats": lambda image, _: save(image, pixels(image).astype(np.float32) / 7, ".tif"),
    "a grey palette": lambda image, _: as_palette(image, pixels(image)),
    "a mask with a palette": lambda _, mask: as_palette(mask, pixels(mask)),
    "a mask whose palette colours labels": lambda _, mask: label_colours(mask, [0, 0, 0, 128, 0, 0]),
    "grey as RGB": lambda image, _: save(image, np.stack([pixels(image)] * 3, axis=-1)),
    "a mask of one bit": lambda _, mask: save(mask, pixels(mask) > 0),
    "a name with everything": lambda *both: [file.rename(file.with_name("p00_ 'é\"\udcff\n.png")) for file in both],
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_valid_pictures_are_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures()
    GOOD[name](IMAGE, MASK)
    options = PrepareOptions(size=32, fit="resize", patient_pattern=PATTERN, jobs=1)
    manifest = prepare(Path("p"), Path("out"), options)
    assert sum(count.slices for count in manifest.counts.values()) == 12


RED = [0, 0, 0, 128, 0, 0, 255, 255, 255, 128, 128, 128]  # colours of the labels 0 to 3


@pytest.mark.parametrize(
    ("palette", "label", "rule", "value"),
    [
        (RED, 1, MaskRule(), 1),
        (RED, 3, MaskRule(), 3),
        (RED, 2, MaskRule(), 255),  # black and white, as any program may save a binary mask
        (RED, 2, MaskRule(lesion_labels=(1.0,), ignore_labels=(2.0,)), 2),
        ([0, 0, 0, 9, 9, 9], 1, MaskRule(), 9),  # a grey palette
    ],
)
def test_values_of_masks_with_a_palette(
    tmp_path: Path, palette: list[int], label: int, rule: MaskRule, value: int
) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:5] = 255
    for name in ("image.png", "mask.png"):
        Image.fromarray(mask).save(tmp_path / name)
    label_colours(tmp_path / "mask.png", palette, label)
    stack = load_pictures(Source("", "", tmp_path, (tmp_path / "image.png",), (tmp_path / "mask.png",)), rule)
    assert stack.labels[0].voxels == ((value, 6),)


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("(a{99999999999999999999})", "the repetition number is too large), got '(a{99999999999999999999})'"),
        ("(" * 3000 + ")" * 3000, f"nested too deeply), got '{'(' * 499}... (6002 characters)"),
    ],
    ids=["a huge repetition", "depths"],
)
def test_a_bad_pattern(pattern: str, fault: str, refused: Callable[..., str]) -> None:
    pictures(1)
    assert refused("prepare", "p", "out", "--patient-pattern", pattern) == (
        f"--patient-pattern: not a regular expression ({fault}"
    )


def test_patient_name_with_a_line_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(6)
    rows = "".join(f'"p\n{n}",0,images/p{n:02d}_1.png,masks/p{n:02d}_1.png\n' for n in range(6))
    Path("p/t.csv").write_text(f"patient,timepoint,image,mask\n{rows}")
    prepare(Path("p/t.csv"), Path("out"), PrepareOptions(size=32, fit="resize", jobs=1))
    assert Path("out/contact_sheet.png").is_file()


HEADER = "patient,timepoint,image,mask\n"
LONG = "x" * 300

TABLES: dict[str, tuple[str, str]] = {
    "an absolute path": (
        HEADER + "a,0,/etc/ssl.png,masks/p00_1.png\n",
        ": 1 fault, nothing was written\n  - /etc/ssl.png: no such file; correct the path or the link",
    ),
    "what is no picture": (
        HEADER + "a,0,/etc/passwd,masks/p00_1.png\n",
        ": 1 fault, nothing was written\n  - t.csv, line 2: /etc/passwd: must be NIfTI, PNG, TIFF or JPEG",
    ),
    "a path that leads out": (
        HEADER + "a,0,../gone/outside.png,masks/p00_1.png\n",
        ": 1 fault, nothing was written\n  - gone/outside.png: no such file; correct the path or the link",
    ),
    "a long name": (
        HEADER + f"a,0,{LONG}.png,masks/p00_1.png\n",
        f": 1 fault, nothing was written\n  - {LONG}.png: no such file; correct the path or the link",
    ),
    "a name with a zero byte": (
        HEADER + "a,0,x\0.png,masks/p00_1.png\n",
        ": 1 fault, nothing was written\n  - x\\x00.png: no such file; correct the path or the link",
    ),
    "a cell longer than cells are": (
        HEADER + f"a,0,{'x' * 200_000}.png,masks/p00_1.png\n",
        ": must be a CSV table in UTF-8, but field larger than field limit (131072); export it again",
    ),
    "nothing": (
        "",
        ": needs the columns patient,timepoint,image,mask; patient, image, mask missing, got an empty file",
    ),
    "semicolons": (
        HEADER.replace(",", ";"),
        " is read as a CSV table (patient,timepoint,image,mask), but no image with its mask was found there",
    ),
    "a column twice": (
        "patient,image,image,mask\na,images/p00_1.png,images/p01_1.png,masks/p00_1.png\n",
        ": column names must differ, but image is repeated; keep one",
    ),
    "an image that is its own mask": (
        HEADER + "a,0,images/p00_1.png,images/p00_1.png\n",
        ": 1 fault, nothing was written\n  - t.csv, line 2: images/p00_1.png is both image and mask; name the "
        "mask's file",
    ),
    "an open quote": (
        HEADER + 'a,0,"images/p00_1.png,masks/p00_1.png\n',
        ": 1 fault, nothing was written\n  - t.csv, line 2: no mask; name its file, or leave the line out",
    ),
    "more cells than columns": (
        HEADER + "a,0,images/p00_1.png,masks/p00_1.png,x\n",
        ": 1 fault, nothing was written\n  - t.csv, line 2: more cells than columns; quote names that hold a comma",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table(name: str, refused: Callable[..., str]) -> None:
    text, message = TABLES[name]
    pictures(3)
    Path("p/t.csv").write_text(text, encoding="utf-8")
    assert refused("prepare", "p/t.csv", "out", *OPTIONS) == "p/t.csv" + message


def test_files_that_are_not_tables(refused: Callable[..., str]) -> None:
    pictures(3)
    assert refused("prepare", IMAGE, "out") == (
        "p/images/p00_1.png: must be a CSV table in UTF-8, but 'utf-8' codec can't decode byte 0x89 in position 0: "
        "invalid start byte; export it again"
    )
    Path("t.csv").write_text(HEADER, encoding="utf-16")
    assert refused("prepare", "t.csv", "out") == (
        "t.csv: must be a CSV table in UTF-8, but 'utf-8' codec can't decode byte 0xff in position 0: invalid start "
        "byte; export it again"
    )
