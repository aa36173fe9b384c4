"""Load a trained model from Python, and predict with it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from wmlsearch.api.keywords import RUNS, AnyPath
from wmlsearch.api.searches import Search
from wmlsearch.api.wording import in_python, raises_in_python
from wmlsearch.config import TrialConfig
from wmlsearch.data.grids import affine_mm
from wmlsearch.data.sources.source import is_nifti, is_picture, stem
from wmlsearch.errors import InputError
from wmlsearch.inference.export import ExportedModel
from wmlsearch.inference.inputs import InputImage, find_images
from wmlsearch.inference.preprocessing import Preprocessing, picture_geometries
from wmlsearch.inference.result_files import check_nothing_overwritten, write_mask, write_result_files
from wmlsearch.inference.trained_model import check_threshold, common_preprocessing
from wmlsearch.runs.wording import plural
from wmlsearch.workflows.mlflow_store import store_uri
from wmlsearch.workflows.model_lookup import ModelOrigin, find_model_and_origin
from wmlsearch.workflows.predict import ImagePrediction, predict_image

if TYPE_CHECKING:
    from wmlsearch.data.stack import Array


@dataclass(frozen=True, repr=False)
class Prediction:
    """The lesions that a model predicts in one image, on the image's own grid."""

    probabilities: Array  # of lesion, float32: (i, j, k), or (rows, columns) of a picture
    mask: Array  # uint8 of the same shape: 1 where the probability is at least `threshold`
    threshold: float
    lesions: int  # their number; voxels that touch at a corner belong together
    volume_ml: float | None  # of all lesions together; None for 2-D pictures
    area_pixels: int | None  # of all lesions together; None for volumes
    affine: Array | None  # (4, 4), from voxels to mm; None for 2-D pictures
    notes: tuple[str, ...]  # what is doubtful about the image, and how well it suits the model
    _image: Any = field(compare=False)  # the path or nibabel image that was predicted
    _result: ImagePrediction = field(compare=False)

    def __repr__(self) -> str:
        size = plural(self.area_pixels or 0, "pixel") if self.volume_ml is None else f"{self.volume_ml:.3g} ml"
        shape = " x ".join(map(str, self.mask.shape))
        return (
            f"<Prediction: {plural(self.lesions, 'lesion')}, {size}, threshold {self.threshold:.3g}, on a grid of "
            f"{shape}>"
        )

    @raises_in_python()
    def save(self, path: AnyPath, name: str | None = None) -> tuple[Path, ...]:
        """Write the prediction, and return the files. Nothing is overwritten.

        Args:
            path: A file for the mask (`lesions.nii.gz`; for a picture `lesions.png`), or a folder for the files that
                `wmlsearch predict` writes: mask, probability map, and overlay.
            name: Prefix of the file names in a folder. None: the name of the image.

        Raises:
            InputError: A file exists already, or its format does not fit the image.
        """
        target = Path(path)
        with _as_file(self._image) as file:
            if is_nifti(target) or is_picture(target):
                write_mask(InputImage(file, stem(target)), self._result.prediction, target)
                return (target,)
            image = InputImage(file, name or stem(file))
            check_nothing_overwritten(target, [image])
            target.mkdir(parents=True, exist_ok=True)
            write_result_files(image, self._result.prediction, target)
        return tuple(target / file for file in (image.mask_file, image.probability_file, image.overlay_file))


@dataclass(frozen=True, repr=False)
class Model:
    """A trained model: one network, or several whose probabilities are averaged."""

    _networks: ExportedModel
    _origin: ModelOrigin

    def __repr__(self) -> str:
        names = ", ".join(self.names)
        data = f", trained on {self._origin.data}" if self._origin.data else ""
        count = plural(len(self.names), "network")
        return f"<Model: {self._origin.name}, {count} ({names}), threshold {self.threshold:.3g}{data}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the runs that trained the networks, the best one first."""
        return tuple(member.name for member in self._networks.members)

    @property
    def configs(self) -> tuple[TrialConfig, ...]:
        """The configuration of each network."""
        return tuple(member.config for member in self._networks.members)

    @property
    def threshold(self) -> float:
        """Lowest probability of a lesion voxel for the average of all networks; chosen on validation patients."""
        return self._networks.threshold_of_all

    @raises_in_python()
    def predict(
        self,
        image: Any,
        *,
        threshold: float | None = None,
        single: bool = False,
        nan_background: bool = False,
        volume: Sequence[AnyPath] = (),
    ) -> Prediction:
        """Segment the lesions of one image.

        Args:
            image: A nibabel image, or the path of a picture or of a NIfTI volume in any orientation and voxel size. Not
                a folder.
            threshold: Lowest probability of a lesion voxel. None: the threshold that was chosen on validation patients.
            single: Use only the first network, which takes less time.
            nan_background: Treat all NaN or infinite voxels as background.
            volume: If the image is a picture: all pictures of its volume, including the image. They are scaled
                together, as pictures of a volume were in the training data.

        Warns:
            UserWarning: Lesions cannot be found in a part of the image, such as outside the window that the model was
                trained on, or a picture comes without its volume. `Prediction.notes` has the same sentences.

        Raises:
            InputError: The image cannot be read or sliced like the training data, or `volume` does not fit it.
        """
        if threshold is not None:
            threshold = check_threshold(threshold, "threshold")
        ensemble = len(self._networks.members) > 1 and not single
        with _as_file(image) as file:
            preprocessing = common_preprocessing(self._networks.members)
            input_image = _with_volume(file, [_file_not_folder(Path(path)) for path in volume], preprocessing)
            source = input_image.volume_source
            geometries = picture_geometries(source, preprocessing, nan_background)
            geometry = geometries[source.image.index(input_image.path)]
            result = predict_image(self._networks, input_image, threshold, ensemble, geometry)
            opened: Any = nib.load(file) if is_nifti(file) else None
        prediction, row = result.prediction, result.row
        for finding in row.findings:
            if finding.is_warning:
                text = f"{input_image.path.name}: {in_python(finding.text)}"
                warnings.warn(text, UserWarning, stacklevel=3)  # the caller of the decorated function
        is_picture_stack = prediction.voxel_mm is None
        return Prediction(
            prediction.probabilities[0] if is_picture_stack else prediction.probabilities,
            prediction.mask[0] if is_picture_stack else prediction.mask,
            prediction.threshold,
            row.lesions,
            row.volume_ml,
            row.area_pixels,
            None if opened is None else affine_mm(opened),
            tuple(in_python(finding.text) for finding in row.findings),
            image,
            result,
        )


@raises_in_python()
def load_model(model: AnyPath | Search, *, runs: AnyPath = RUNS, mlflow_uri: str | None = None) -> Model:
    """Load a trained model, as `wmlsearch predict` does.

    Args:
        model: A search, as `Search`, folder or name (its champion is loaded, or its best trial before there is a
            champion); the folder of a run or trial; a folder written by `wmlsearch export`; or a registered model, such
            as `models:/wml-unet@champion`.
        runs: Folder of all runs, in which names are looked up.
        mlflow_uri: MLflow registry of `models:/` names. None: `MLFLOW_TRACKING_URI`, or the SQLite file in `runs`.

    Raises:
        InputError: There is no such model, or it is damaged.
    """
    uri = store_uri(Path(runs), mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI"))
    name = os.fspath(model.path if isinstance(model, Search) else model)
    return Model(*find_model_and_origin(name, Path(runs), uri))


def _with_volume(file: Path, volume: Sequence[Path], preprocessing: Preprocessing) -> InputImage:
    """Return an image with the pictures of its volume. Raises InputError for files that are not there or no volume."""
    image, *others = find_images([file, *volume]).images
    if not volume:
        return image
    if not all(is_picture(path) for path in (file, *volume)):
        raise InputError("volume: names the pictures of a volume, but a NIfTI file is a whole volume; leave it out")
    if os.path.realpath(file) not in map(os.path.realpath, volume):
        raise InputError(f"volume: must name all pictures of the volume, but does not name {file}; add it")
    if preprocessing.scaled_by == "picture":
        raise InputError("volume: the model was trained on pictures that were scaled one by one; leave it out")
    return replace(image, volume=(image.path, *(other.path for other in others)))


def _file_not_folder(path: Path) -> Path:
    """Return the path of an image. Raises InputError for a folder, of which one image would be predicted."""
    if path.is_dir():
        raise InputError(
            f"{path}: is a folder, and one image is needed; name a file (`wmlsearch predict` takes folders)"
        )
    return path


@contextlib.contextmanager
def _as_file(image: Any) -> Iterator[Path]:
    """Yield the path of an image: the given one, or that of a temporary file with a nibabel image.

    Raises InputError for anything else. The file's voxels are those of the image, without another rounding.
    """
    if isinstance(image, str | os.PathLike):
        yield _file_not_folder(Path(image))
        return
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise InputError(
            f"the image must be a path or a nibabel image, but is a {type(image).__name__}; make a nibabel image of an "
            "array with nibabel.Nifti1Image(array, affine)"
        )
    voxels = np.asanyarray(image.dataobj)
    named = Path(image.get_filename() or "image.nii")
    with tempfile.TemporaryDirectory(prefix="wmlsearch-") as folder:
        file = Path(folder) / f"{stem(named)}.nii"
        _nifti(image, voxels).to_filename(file)
        yield file


def _nifti(image: nib.spatialimages.SpatialImage, voxels: Array) -> nib.Nifti1Image:
    """Return a NIfTI image with these voxels, which are written as they are.

    It has the header of a NIfTI image, with the units of its affine and whether that gives an orientation. Other
    formats have mm.
    """
    if not isinstance(image, nib.Nifti1Pair):  # the base class of all NIfTI images of nibabel
        return nib.Nifti1Image(voxels, image.affine, dtype=voxels.dtype)
    kind = nib.Nifti2Image if isinstance(image.header, nib.Nifti2Header) else nib.Nifti1Image
    copy = kind(voxels, image.affine, image.header, dtype=voxels.dtype)
    copy.header.set_slope_inter(None, None)  # a scale is in `voxels` already
    return copy
