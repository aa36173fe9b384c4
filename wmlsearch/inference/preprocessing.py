"""How the slices that a model was trained on were cut, and how to cut another image in the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wmlsearch.data.examine import ExaminedVolume, examine_head
from wmlsearch.data.geometry import MAX_SPACING_FACTOR, PLANES, VolumeGeometry, place_window
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.inference.suitability import coarse_slices, head_outside_window, scaled_alone

SCALED_BY = ("volume", "picture")
ADDED = ("scaled_by", "padding_background")  # names that models of older versions lack


@dataclass(frozen=True)
class Preprocessing:
    """All that prediction needs to cut an image as the training data were cut."""

    plane: str  # sagittal, axial, coronal, native; image for 2-D pictures
    axis: int | None  # slicing axis in RAS+; None for 2-D pictures
    size: int  # pixels, edge of the square slices
    fit: str  # crop: a window on the head; resize: the head scaled to the window
    spacing_mm: float | None  # of a pixel; with fit resize the training's median, each volume has its own
    # Of 2-D pictures: volume, if those of a volume had one window and one grey range; picture, if each had its own.
    # None for volumes, and in models of older versions, which can be used together with others.
    scaled_by: str | None = field(default=None, compare=False)
    # Padding far below all other grey values was looked for and is background; False in models of older versions. Not
    # compared: networks of one data set differ in it where that was prepared again, alike, by a newer version.
    padding_background: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Preprocessing:
        """Validate `values`, which may have other names too. Raises InputError with all faults; `where` names them."""
        names = [name for name in cls.__dataclass_fields__ if name not in ADDED]
        if missing := [name for name in names if name not in values]:
            raise InputError(
                f"{where}: does not say how its data were prepared ({', '.join(missing)} missing), so no image can be "
                "prepared in the same way; train it again with this version"
            )
        plane, axis, size, fit, spacing = (values[name] for name in names)
        faults = []
        axes = {**{name: (number,) for name, number in PLANES.items()}, "native": (0, 1, 2), "image": (None,)}
        if not isinstance(plane, str) or plane not in axes:
            faults.append(f"plane must be one of {', '.join(axes)}, but got {plane!r}")
        elif isinstance(axis, bool) or axis not in axes[plane]:
            faults.append(f"axis must be {' or '.join(map(str, axes[plane]))} with plane {plane}, but got {axis!r}")
        if type(size) is not int or not 16 <= size <= 4096:
            faults.append(f"size must be a whole number from 16 to 4096, but got {size!r}")
        if fit not in ("crop", "resize"):
            faults.append(f"fit must be crop or resize, but got {fit!r}")
        is_spacing = type(spacing) in (int, float) and 0 < spacing < math.inf
        if not (spacing is None if axis is None else is_spacing):
            rule = "null for 2-D pictures" if axis is None else "a number above 0"
            faults.append(f"spacing_mm must be {rule}, but got {spacing!r}")
        scaled_by = values.get("scaled_by")
        if scaled_by not in (None, *SCALED_BY):
            faults.append(f"scaled_by must be {' or '.join(SCALED_BY)}, but got {scaled_by!r}")
        padding = values.get("padding_background", False)
        if type(padding) is not bool:
            faults.append(f"padding_background must be true or false, but got {padding!r}")
        if faults:
            raise InputError(f"{where}: its preprocessing is not valid; export or train the model again", faults)
        return cls(plane, axis, size, fit, None if spacing is None else float(spacing), scaled_by, padding)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as `of` reads them."""
        return {name: value for name, value in asdict(self).items() if value or name not in ADDED}


def spacing_fault(name: str, picture_mm: tuple[float, float] | None, preprocessing: Preprocessing) -> str | None:
    """Return a line for an image whose pixels are too far from those of the training data, None for others.

    Args:
        name: Name of the image, for messages.
        picture_mm: Edges of its pixels in the slices of the model's plane; None for 2-D pictures.
        preprocessing: How the training data were cut.
    """
    spacing = preprocessing.spacing_mm
    if picture_mm is None or spacing is None or preprocessing.fit != "crop":
        return None
    down, across = picture_mm
    if spacing / MAX_SPACING_FACTOR <= min(down, across) <= spacing * MAX_SPACING_FACTOR:
        return None
    return (
        f"{name}: in-plane voxel edges must be within a factor of {MAX_SPACING_FACTOR} of the {spacing:.4g} mm "
        f"that the model was trained on, but are {down:.4g} x {across:.4g} mm; check the header's units"
    )


def slicing_geometry(source: Source, preprocessing: Preprocessing, nan_background: bool = False) -> VolumeGeometry:
    """Return where an image is cut, as the training data were. Reads and checks the image, but not its mask.

    Its findings say how much of the head the window does not show, and where the slices are coarser than the model's.
    With `nan_background`, voxels that are not finite are background wherever they are, not only from the border on.

    Raises InputError with what is wrong with the image, or why it cannot be cut like the training data.
    """
    facts, head = _examine(source, preprocessing, nan_background)
    spacing = preprocessing.spacing_mm
    geometry = place_window(source, facts, preprocessing.size, preprocessing.fit, spacing)
    doubts = (*head_outside_window(head, geometry), *coarse_slices(facts.picture_mm, spacing, preprocessing.plane))
    if facts.axis is None and len(source.image) == 1:
        doubts += scaled_alone(geometry, preprocessing.fit, preprocessing.scaled_by)
    return replace(geometry, findings=geometry.findings + doubts)


def picture_geometries(
    source: Source, preprocessing: Preprocessing, nan_background: bool = False
) -> list[VolumeGeometry]:
    """Return where each picture of a volume is cut: all in one window and in one grey range, as the training data were.

    Each is the geometry of a volume of that picture alone, with what was found in it. A single picture, and a NIfTI
    volume, are cut by themselves. Arguments and errors as those of `slicing_geometry`.
    """
    if len(source.image) == 1:
        return [slicing_geometry(source, preprocessing, nan_background)]
    facts, head = _examine(source, preprocessing, nan_background)
    volume = place_window(source, facts, preprocessing.size, preprocessing.fit, preprocessing.spacing_mm)
    geometries = []
    for index, path in enumerate(source.image):
        picture = replace(source, image=(path,), mask=())
        geometry = replace(
            volume,
            images=(source.name(path),),
            masks=(),
            shape=(1, *facts.picture),
            head_grey=(facts.head_grey[index],),
            voxels_sha256="",
            # Those of the volume do not say which picture they are about.
            findings=load_volume(picture, None, nan_background=nan_background).findings if facts.findings else (),
        )
        span = slice(index, index + 1)
        region = replace(head, pixels=head.pixels[span], area=head.area[span])
        geometries.append(replace(geometry, findings=geometry.findings + head_outside_window(region, geometry)))
    return geometries


def _examine(source: Source, preprocessing: Preprocessing, nan_background: bool) -> ExaminedVolume:
    """Return the measures of an image, not of its mask. Raises InputError where it does not fit the training data."""
    name = source.name(source.image[0])
    if source.is_nifti == (preprocessing.axis is None):
        trained_on, image = ("pictures", "a volume") if source.is_nifti else ("volumes", "a picture")
        raise InputError(f"{name}: is {image}, but the model was trained on {trained_on}; choose another model")
    examined, faults = examine_head(
        replace(source, mask=()),
        preprocessing.axis,
        nan_background=nan_background,
        padding_background=preprocessing.padding_background,
    )
    if examined is None:
        raise InputError(f"{name}: cannot be predicted", faults)
    if fault := spacing_fault(name, examined.facts.picture_mm, preprocessing):
        raise InputError(fault)
    return examined
