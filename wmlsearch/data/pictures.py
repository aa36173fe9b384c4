"""Read the 2-D pictures of a volume and their masks: PNG, TIFF and JPEG."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from wmlsearch.data.findings import Finding
from wmlsearch.data.labels import LabelledMask, MaskRule
from wmlsearch.data.non_finite import NAN_ADVICE, check_lesions_have_values, enclosed_finding, fill_background
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import Array, Stack, VolumeFault, unreadable
from wmlsearch.runs.wording import percent

FORMATS = ("PNG", "TIFF", "JPEG")  # of all that Pillow reads: for EPS it would run Ghostscript


def load_pictures(source: Source, rule: MaskRule, nan_background: bool = False) -> Stack:
    """Return the pictures of a source, and their masks, as slices of one shape. Raises VolumeFault."""
    faults: list[str] = []
    images: list[Array] = []
    masks: list[LabelledMask] = []
    findings: list[Finding] = []
    shape: tuple[int, ...] = ()
    missing: list[Array] = []
    for place, path in enumerate((*source.image, *source.mask)):
        is_mask = place >= len(source.image)
        name = source.name(path)
        try:
            picture = _read(name, path, rule if is_mask else None)
            shape = shape or picture.shape
            if picture.shape != shape:
                remedy = "resample the mask" if is_mask else "slices of another size need another time point"
                first = source.name(source.image[0])
                raise VolumeFault(f"{name}: shape must be that of {first}, {shape}, but is {picture.shape}; {remedy}")
            if is_mask:
                masks.append(rule.read(picture, name))
            else:
                missing.append(~np.isfinite(picture))
                images.append(_finite(name, picture, findings, nan_background))
        except VolumeFault as fault:
            faults += fault.lines
    if faults:
        raise VolumeFault(*faults)
    stack = np.stack(images)
    if masks:
        lesions = np.stack([mask.lesion for mask in masks])
        findings += check_lesions_have_values(source, lesions, np.stack(missing), nan_background)
    ignored = None
    if any(mask.ignored is not None for mask in masks):
        nothing = np.zeros(shape, bool)
        ignored = np.stack([nothing if mask.ignored is None else mask.ignored for mask in masks])
    return Stack(
        stack.astype(np.float32),
        lesions if masks else None,
        stack.shape,
        is_8_bit=stack.dtype == np.uint8,
        ignored=ignored,
        labels=tuple(mask.labels for mask in masks if mask.labels),
        findings=tuple(findings),
    )


def _finite(name: str, picture: Array, findings: list[Finding], nan_background: bool) -> Array:
    """Return a picture whose pixels are all finite; those at its border are filled. Raises VolumeFault."""
    if picture.dtype.kind != "f":
        return picture
    filled = fill_background(picture, everywhere=nan_background)
    if filled.first_enclosed is not None and not nan_background:
        row, column = filled.first_enclosed
        raise VolumeFault(
            f"{name}: every pixel must be a finite number, but {filled.enclosed} inside the head are NaN or infinite, "
            f"such as row {row}, column {column}; make it again without them, or {NAN_ADVICE}"
        )
    kinds = {finding.kind for finding in findings}
    if filled.filled and "filled" not in kinds:
        share = percent(filled.share)
        text = f"{share} of a picture's pixels, at its border, are NaN or infinite: treated as background"
        findings.append(Finding("filled", text, share, filled.share))
    if "enclosed" not in kinds:
        findings += enclosed_finding(filled, "a picture")
    return filled.voxels


def _read(name: str, path: Path, rule: MaskRule | None) -> Array:
    """Return one grey picture (rows, columns); colours are accepted where all channels are equal.

    Args:
        name: The file's name, for messages.
        path: The file.
        rule: Which values of a mask are lesion (a palette may colour labels). None: not a mask.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            pages = getattr(image, "n_frames", 1)
            if rule is not None and image.mode == "P" and _palette_colours_labels(image, rule):
                picture = np.asarray(image)
            else:
                picture = np.asarray(image.convert("RGBA") if image.mode in ("P", "PA", "CMYK") else image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError, ...
        raise unreadable(name, path, error) from None
    if pages > 1:
        raise VolumeFault(f"{name}: must hold one picture, but holds {pages}; save one file per slice")
    if picture.dtype == bool:
        picture = picture.astype(np.uint8) * 255
    if picture.ndim == 3:
        if picture.shape[2] in (2, 4):  # the last channel is opacity
            if picture[..., -1].min() != 255:
                raise VolumeFault(f"{name}: must be opaque, but has transparent pixels; save it as grey")
            picture = picture[..., :-1]
        if (picture != picture[..., :1]).any():
            remedy = (
                "save each label as a grey value, 0 for the background" if rule is not None else "convert it to grey"
            )
            raise VolumeFault(f"{name}: must be grey, but its colour channels differ; {remedy}")
        picture = picture[..., 0]
    return picture


def _palette_colours_labels(image: Image.Image, rule: MaskRule) -> bool:
    """Whether the pixels of a mask are labels, which its palette colours, as those of Pascal VOC are.

    They are where the palette has colours and begins with black, the background. Black and white pixels are a binary
    mask all the same, unless an option names one of their labels. With a threshold, a mask has grey values.
    """
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    if rule.threshold is not None or colours[0].any() or (colours == colours[:, :1]).all():
        return False
    labels = np.unique(np.asarray(image))
    used = colours[labels]
    is_black_and_white = ((used == 0) | (used == 255)).all() and (used == used[:, :1]).all()
    return not is_black_and_white or bool({*rule.lesion_labels, *rule.ignore_labels} & set(labels.tolist()))
