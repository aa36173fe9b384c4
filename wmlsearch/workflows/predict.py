"""`wmlsearch predict`: from images to masks, probability maps, overlays and a table of lesions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.errors import InputError
from wmlsearch.inference.export import ExportedModel
from wmlsearch.inference.inputs import InputImage, find_images
from wmlsearch.inference.lesion_table import LesionRow, lesion_csv
from wmlsearch.inference.postprocessing import label_lesions
from wmlsearch.inference.predictor import Prediction, predict
from wmlsearch.inference.preprocessing import Preprocessing, picture_geometries
from wmlsearch.inference.result_files import check_nothing_overwritten, new_table, write_result_files
from wmlsearch.inference.trained_model import TrainedModel, common_preprocessing
from wmlsearch.runs.files import write_text
from wmlsearch.runs.progress import Progress
from wmlsearch.runs.wording import plural


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction of an image, and its row of the table of lesions."""

    prediction: Prediction
    row: LesionRow


def predict_files(
    model: ExportedModel,
    paths: Sequence[Path],
    out: Path,
    threshold: float | None = None,
    ensemble: bool = False,
    progress: Progress = lambda *_: None,
    *,
    nan_background: bool = False,
    note: Callable[[str], None] = lambda _: None,
    patient_pattern: str | None = None,
) -> list[LesionRow]:
    """Predict the images of `paths` (files, or folders of them) and write the results into the folder `out`.

    Writes for each image NAME: NAME_mask and NAME_probability on its own grid, NAME_overlay.png, and a row in
    lesions.csv; with `ensemble` two rows, and the files are the ensemble's. All images are read and checked before the
    first is predicted, and nothing is overwritten. With `nan_background`, voxels that are not finite are background
    wherever they are. Pictures of a volume are scaled together if they were in the training data: `patient_pattern`, or
    else `sub-` and `ses-`, finds patient and time point in their names. `progress(what, done, total)` is called after
    each image, and `note` before them with what was left out of each folder, and what is scaled together.

    Raises InputError with all faults.
    """
    if ensemble and len(model.members) < 2:
        raise InputError(
            f"--ensemble: needs a model of several networks, but there is only {model.members[0].name}; name a search "
            "that has a champion, or an export of one, or leave --ensemble out"
        )
    inputs = find_images(paths, patient_pattern)
    images = _with_volumes(inputs.images, common_preprocessing(model.members), patient_pattern)
    check_nothing_overwritten(out, images)
    for text in (*inputs.notes, *_notes_on_volumes(images, patient_pattern)):
        note(text)
    geometries = _check_images(model, images, progress, nan_background)
    rows: list[LesionRow] = []
    with new_table(out) as table:
        progress("predicting", 0, len(images))
        for done, (image, geometry) in enumerate(zip(images, geometries, strict=True), 1):
            predicted = predict_image(model, image, threshold, geometry=geometry)
            rows.append(replace(predicted.row, mask="" if ensemble else image.mask_file))
            if ensemble:
                predicted = predict_image(model, image, threshold, ensemble=True, geometry=geometry)
                rows.append(predicted.row)
            write_result_files(image, predicted.prediction, out)
            write_text(table, lesion_csv(rows))
            progress("predicting", done, len(images))
    return rows


def predict_image(
    model: ExportedModel,
    image: InputImage,
    threshold: float | None = None,
    ensemble: bool = False,
    geometry: VolumeGeometry | None = None,
) -> ImagePrediction:
    """Predict one image with the model's first network, or with all of them together (`ensemble`).

    Args:
        model: The trained model.
        image: The image, whose file is read.
        threshold: None: the model's own, or that of the ensemble.
        ensemble: Whether the probabilities of all networks are averaged.
        geometry: Geometry of the slices of this image, if it is known already.

    Raises InputError for an image that cannot be read or cut as the training data were.
    """
    members = model.members if ensemble else model.members[:1]
    if threshold is None and ensemble:
        threshold = model.threshold_of_all
    prediction = predict(members, image.source, threshold, geometry)
    row = _lesion_row(image, "ensemble" if ensemble else "model", members, prediction, image.mask_file)
    return ImagePrediction(prediction, row)


def _check_images(
    model: ExportedModel, images: Sequence[InputImage], progress: Progress, nan_background: bool
) -> list[VolumeGeometry]:
    """Return where each image is cut. Raises InputError with the faults of all images."""
    preprocessing = common_preprocessing(model.members)
    geometries: dict[Path, VolumeGeometry] = {}
    read: set[Path] = set()
    faults: list[str] = []
    for done, image in enumerate(images, 1):
        source = image.volume_source
        try:
            if image.path not in read:  # a volume is read with the first of its pictures
                read.update(source.image)
                of_each = picture_geometries(source, preprocessing, nan_background)
                geometries.update(zip(source.image, of_each, strict=True))
        except InputError as error:  # each of its lines begins with the file name
            folder = "" if image.path.parent == Path() else f"{image.path.parent}/"
            faults += [f"{folder}{line}" for line in error.faults or [error.headline]]
        progress("checking", done, len(images))
    if faults:
        raise InputError(f"{plural(len(faults), 'fault')}, nothing was written", faults)
    return [geometries[image.path] for image in images]


def _with_volumes(
    images: Sequence[InputImage], preprocessing: Preprocessing, patient_pattern: str | None
) -> list[InputImage]:
    """Return the images: pictures without their volumes where those of the training data were scaled one by one."""
    if preprocessing.scaled_by != "picture":
        return list(images)
    if patient_pattern is not None:
        raise InputError(
            "--patient-pattern: the model was trained on pictures that were scaled one by one, and so are these; leave "
            "it out"
        )
    return [replace(image, volume=()) for image in images]


def _notes_on_volumes(images: Sequence[InputImage], patient_pattern: str | None) -> list[str]:
    volumes = dict.fromkeys(image.volume for image in images if image.volume)
    if not volumes:
        return []
    count, by = sum(map(len, volumes)), "--patient-pattern" if patient_pattern else "sub- and ses- in their names"
    first, last, *_ = (path.name for volume in volumes for path in (volume[0], volume[-1]))
    number = plural(len(volumes), "volume")
    return [f"{plural(count, 'picture')} scaled as slices of {number}, by {by} ({first} to {last})"]


def _lesion_row(
    image: InputImage, predicted_by: str, members: Sequence[TrainedModel], prediction: Prediction, mask_file: str
) -> LesionRow:
    voxel_ml, pixels = prediction.geometry.voxel_ml, int(prediction.mask.sum())
    # A 2-D picture is a stack of one slice.
    _, lesions = label_lesions(prediction.mask[0] if voxel_ml is None else prediction.mask)
    return LesionRow(
        str(image.path),
        predicted_by,
        " ".join(member.name for member in members),
        prediction.threshold,
        lesions,
        volume_ml=None if voxel_ml is None else pixels * voxel_ml,
        area_pixels=pixels if voxel_ml is None else None,
        mask=mask_file,
        findings=prediction.geometry.findings,
        postprocessing=members[0].postprocessing,
    )
