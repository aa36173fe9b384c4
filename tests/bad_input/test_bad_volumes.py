"""Bad NIfTI files in a BIDS data set: damaged, unusual, or links out of their folder, with the complete messages."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from wmlsearch.data.prepare import PrepareOptions, prepare

Change = Callable[[Path, Path], object]
FLAIR = Path("sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz")
MASK = Path("derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz")
OPTIONS = ("--size", 32, "--fit", "resize", "--jobs", 1)


def three_patients(raw: Path) -> Path:
    """The first patients of the phantom, in the working folder."""
    for number in ("01", "02", "03"):
        for part in (f"sub-{number}", f"derivatives/lesions/sub-{number}"):
            shutil.copytree(raw / part, Path("raw") / part)
    return Path("raw")


def opened(path: Path) -> Any:
    return nib.load(path)


def voxels(path: Path) -> Any:
    return np.asarray(opened(path).dataobj)


def write(path: Path, array: Any, affine: Any = None) -> None:
    nib.Nifti1Image(array, opened(path).affine if affine is None else affine).to_filename(path)


def unpacked(change: Callable[[bytes], bytes]) -> Change:
    """Return a change of the FLAIR's uncompressed bytes."""
    return lambda flair, _: flair.write_bytes(gzip.compress(change(gzip.decompress(flair.read_bytes()))))


def header(offset: int, form: str, *values: Any) -> Change:
    """Return a change of a value in the FLAIR's header."""
    new = struct.pack(f"<{form}", *values)
    return unpacked(lambda content: content[:offset] + new + content[offset + len(new) :])


def extended(size: int, extensions: bytes) -> Change:
    """Return a change that inserts bytes, which start with these extensions, between the FLAIR's header and voxels."""
    offset = struct.pack("<f", 352 + size)
    return unpacked(
        lambda content: (
            content[:108] + offset + content[112:348] + b"\1\0\0\0" + extensions.ljust(size, b"\0") + content[352:]
        )
    )


def before_voxels(rule: str) -> str:
    return f"{FLAIR}: {rule}; save it again, without extensions of its header"


def cut(size: int) -> Change:
    return lambda flair, _: flair.write_bytes(flair.read_bytes()[:size])


def link(path: Path, target: str | Path) -> None:
    path.unlink()
    path.symlink_to(target)


def outside(flair: Path, _: Path) -> None:
    shutil.move(flair.parent, "elsewhere")
    flair.parent.symlink_to("/etc/ssl")


def unreadable(why: str) -> str:
    return f"{FLAIR}: cannot be read ({why}); replace the file"


def of_kind(dtype: Any) -> Change:
    return lambda flair, _: nib.Nifti1Image(np.zeros((8, 8, 8), dtype), np.eye(4)).to_filename(flair)


NAME = FLAIR.name
ENDED = "Compressed file ended before the end-of-stream marker was reached"
RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]

FAULTS: dict[str, tuple[Change, str]] = {
    "empty": (cut(0), unreadable(f"Empty file: '{NAME}'")),
    "gzip cut in its header": (cut(9), unreadable(f'Cannot work out file type of "{NAME}"')),
    "gzip cut in the middle": (cut(2000), unreadable(ENDED)),
    "gzip cut before its checksum": (
        lambda flair, _: flair.write_bytes(flair.read_bytes()[:-8]),
        unreadable(ENDED),
    ),
    "gzip of nothing": (unpacked(lambda _: b""), unreadable(f'Cannot work out file type of "{NAME}"')),
    "text": (lambda flair, _: flair.write_text("hello"), unreadable(f"File {NAME} is not a gzip file")),
    "unpacked but named .gz": (
        lambda flair, _: flair.write_bytes(gzip.decompress(flair.read_bytes())),
        unreadable(f"File {NAME} is not a gzip file"),
    ),
    "header cut": (unpacked(lambda content: content[:200]), unreadable(f'Cannot work out file type of "{NAME}"')),
    "voxels cut": (
        unpacked(lambda content: content[:2000]),
        unreadable(f"Expected 55296 bytes, got 1648 bytes from {NAME}"),
    ),
    "wrong magic": (header(344, "4s", b"zzzz"), unreadable(f'Cannot work out file type of "{NAME}"')),
    "negative size": (header(42, "h", -5), unreadable("negative count")),
    "no such type": (header(70, "h", 9999), unreadable("data code 9999 not recognized")),
    "offset that is no number": (header(108, "f", np.nan), unreadable("cannot convert float NaN to integer")),
    "offset before the file": (
        header(108, "f", -400.0),
        unreadable("vox offset -400 too low for single file nifti1"),
    ),
    "more voxels than memory": (
        header(42, "3h", 2000, 2000, 2000),
        f"{FLAIR}: may have 268,435,456 voxels, but its header promises (2000, 2000, 2000); correct the header",
    ),
    "as many voxels as can be said": (
        header(42, "3h", 32767, 32767, 32767),
        f"{FLAIR}: may have 268,435,456 voxels, but its header promises (32767, 32767, 32767); correct the header",
    ),
    "a bomb that its header denies": (
        unpacked(lambda content: content + bytes(2**26)),  # 64 MiB of nothing in 64 KiB
        unreadable("more than 1,048,576 bytes follow the voxels that its header promises"),
    ),
    "a header that promises what no gzip file of this size holds": (
        header(42, "3h", 600, 600, 600),
        f"{FLAIR}: its header promises 432,000,000 bytes of voxels, which cannot be in a gzip file of {{size:,}}; "
        "replace the file",
    ),
    "96 MiB of nothing before its voxels": (
        extended(2**20 * 96, struct.pack("<2i", 2**20 * 96, 6)),
        before_voxels("its voxels must begin between byte 352 and byte 1048576, but its header says byte 100663648"),
    ),
    "voxels that begin with the header": (
        header(108, "f", 0.0),
        before_voxels("its voxels must begin between byte 352 and byte 1048576, but its header says byte 0"),
    ),
    "an extension longer than what is before the voxels": (
        extended(64, struct.pack("<2i", 32, 6) + bytes(24) + struct.pack("<2i", 2**31 - 16, 6)),
        before_voxels(
            "an extension of its header must have from 8 to 32 bytes, up to the voxels, but it says 2147483632"
        ),
    ),
    "an extension that is read to the file's end": (
        extended(64, bytes(64)),
        before_voxels("an extension of its header must have from 8 to 64 bytes, up to the voxels, but it says 0"),
    ),
    "colours": (of_kind(RGB), f"{FLAIR}: voxels must be plain numbers, but are {RGB}; convert it"),
    "complex": (of_kind(np.complex64), f"{FLAIR}: voxels must be plain numbers, but are complex64; convert it"),
    "two dimensions": (
        lambda flair, _: nib.Nifti1Image(np.zeros((8, 8), np.float32), np.eye(4)).to_filename(flair),
        f"{FLAIR}: must be one 3-D volume, but its shape is (8, 8); extract one volume",
    ),
    "flat affine": (
        header(312, "4f", 0, 0, 0, 0),
        f"{FLAIR}: the affine must be finite and invertible, but is [[4.0, 0.0, 0.0, -94.0], [0.0, 4.0, 0.0, -94.0], "
        "[0.0, 0.0, 0.0, 0.0]]; correct the header",
    ),
    "affine with NaN": (
        header(280, "f", np.nan),
        f"{FLAIR}: the affine must be finite and invertible, but is [[nan, 0.0, 0.0, -94.0], [0.0, 4.0, 0.0, -94.0], "
        "[0.0, 0.0, 12.0, -66.0]]; correct the header",
    ),
    "one value": (
        lambda flair, _: write(flair, np.full_like(voxels(flair), 7)),
        f"{FLAIR}: the FLAIR is empty, every voxel is 7; leave it out or replace it",
    ),
    "scaled to infinity": (
        header(112, "f", 1e38),
        f"{FLAIR}: its header's scale (scl_slope 1e+38, scl_inter 0) makes 27446 voxels infinite; correct the header",
    ),
    "metres for millimetres": (
        lambda flair, _: write(flair, voxels(flair), np.diag([4000.0, 4000.0, 12000.0, 1.0])),
        f"{FLAIR}: voxel edges must be from 0.02 to 60 mm, but are 4000 x 4000 x 1.2e+04 mm; correct the header (its "
        "unit may be metres or micrometres)",
    ),
    "ten times the voxels of the others": (
        lambda *both: [write(file, voxels(file), np.diag([40.0, 40.0, 60.0, 1.0])) for file in both],
        f"{FLAIR}: in-plane voxel edges must be within a factor of 8 of the data set's 4 mm, but are 40 x 40 mm; "
        "check the header's units, or leave it out",
    ),
    "mask a voxel off": (
        lambda _, mask: write(mask, voxels(mask), opened(mask).affine + np.eye(4, k=3) * 4),
        f"{MASK}: affine must be that of {FLAIR} to half a voxel, but the grids lie up to 1 voxels apart; resample the "
        "mask onto the image, or copy the image's header to it if it was drawn on this image",
    ),
    "mask with NaN": (
        lambda _, mask: write(mask, np.where(voxels(mask) > 0, np.nan, 0).astype(np.float32)),
        f"{MASK}: every voxel must be a finite number, but 11 inside the mask are NaN or infinite, such as voxel "
        "(14, 26, 8); make it again without them, or give --nan-background if they are background",
    ),
    "a folder of that name": (
        lambda flair, _: (flair.unlink(), flair.mkdir()),
        f"sub-01/ses-1: no FLAIR image for the mask {MASK}; add sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
    ),
    "a loop of links": (lambda flair, _: link(flair, NAME), f"{FLAIR}: no such file; correct the path or the link"),
    "a subject that is a loop": (
        lambda *_: Path("raw/sub-99").symlink_to("sub-99"),
        "sub-99: the link leads nowhere; correct or delete it",
    ),
    "a link to /etc/passwd": (
        lambda flair, _: link(flair, "/etc/passwd"),
        unreadable(f"File {NAME} is not a gzip file"),
    ),
    "a folder that leads to no images": (
        outside,
        f"sub-01/ses-1: no FLAIR image for the mask {MASK}; add sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_volume(name: str, raw: Path, refused: Callable[..., str]) -> None:
    change, fault = FAULTS[name]
    root = three_patients(raw)
    change(root / FLAIR, root / MASK)
    if "{size" in fault:
        fault = fault.format(size=(root / FLAIR).stat().st_size)
    assert refused("prepare", "raw", "out", *OPTIONS) == f"raw: 1 fault, nothing was written\n  - {fault}"
    assert not Path("out").exists()


def test_gzip_checksum_detects_a_flipped_bit(raw: Path, refused: Callable[..., str]) -> None:
    flair = three_patients(raw) / FLAIR
    content = flair.read_bytes()
    flair.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    crc = zlib.crc32(gzip.decompress(content))
    assert refused("prepare", "raw", "out", *OPTIONS) == (
        f"raw: 1 fault, nothing was written\n  - {unreadable(f'CRC check failed {crc ^ 1:#x} != {crc:#x}')}"
    )


def test_masks_without_lesions(raw: Path, refused: Callable[..., str]) -> None:
    for mask in three_patients(raw).glob("derivatives/**/*_mask.nii.gz"):
        write(mask, voxels(mask) * 0)
    assert refused("prepare", "raw", "out", *OPTIONS) == (
        "raw: no mask has a lesion, so there is nothing to learn; check the masks"
    )


def test_terminal_control_characters_in_names_are_escaped(raw: Path, refused: Callable[..., str]) -> None:
    root = three_patients(raw)
    (root / FLAIR).rename((root / FLAIR).with_name("\x1b[31m\n_FLAIR.nii.gz"))
    (root / FLAIR).with_name("\x1b[31m\n_FLAIR.nii.gz").write_bytes(b"")
    message = refused("prepare", "raw", "out", *OPTIONS)
    assert "sub-01/ses-1/anat/\\x1b[31m" in message
    assert "\x1b" not in message


@pytest.mark.parametrize("name", [b"two words, 'quotes\" and \xc3\xa9", b"no text \xff", b"two\nlines"])
def test_any_printable_name_is_accepted(
    name: bytes, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flair = three_patients(raw) / FLAIR
    flair.rename(flair.with_name(os.fsdecode(name + b"_FLAIR.nii.gz")))
    manifest = prepare(Path("raw"), Path("out"), PrepareOptions(size=32, fit="resize", jobs=1))
    assert sum(count.timepoints for count in manifest.counts.values()) == 3
