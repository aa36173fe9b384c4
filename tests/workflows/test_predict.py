"""`wmlsearch predict` and `export`: files in, files out, on the grid they came on."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result
from paths import REAL as MS_FLAIR
from PIL import Image
from scipy import ndimage

from wmlsearch.cli import main
from wmlsearch.data.sources import Source
from wmlsearch.inference.export import export_model, load_exported
from wmlsearch.inference.overlay import select_slices
from wmlsearch.inference.postprocessing import Postprocessing
from wmlsearch.inference.predictor import predict
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.runs.folders import SearchDir
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.model_registry import register
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows.model_lookup import find_model

REAL = MS_FLAIR / "unlabelled"
Say = Callable[..., Result]


@pytest.fixture
def say(searched: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """`say("predict", ...)` types it in an empty folder, with the runs elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*words: object) -> Result:
        texts = [str(word) for word in words] + ["--runs", str(searched.path.parent)]
        return CliRunner().invoke(main, texts, prog_name="wmlsearch")

    return run


@pytest.fixture
def flairs(raw: Path, tmp_path: Path) -> Path:
    """A flat folder: one patient as LAS with odd codes in its header, another as PSR with a fourth dimension."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, codes in (("01", "LAS"), ("02", "PSR")):
        image: Any = nib.load(next(raw.rglob(f"sub-{name}*_FLAIR.nii.gz")))
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
        )
        turned = image.as_reoriented(turn)
        data = np.asarray(turned.dataobj)
        new = nib.Nifti1Image(data if name == "01" else data[..., None], turned.affine)
        new.set_sform(turned.affine, 4)
        new.set_qform(turned.affine, 1)
        new.header["descrip"], new.header["db_name"], new.header["aux_file"] = b"Jane Doe", b"Doe", b"Doe"
        new.header["intent_name"] = b"Jane Doe"
        new.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
        new.to_filename(folder / f"{name}.nii.gz")
    return folder


def table(out: Path) -> list[dict[str, str]]:
    with (out / "lesions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr.removeprefix("wmlsearch: ").removesuffix("\n")


# -- volumes


def test_volumes_on_their_own_grid(say: Say, flairs: Path, searched: SearchDir) -> None:
    result = say("predict", "s", "in", "--single", "--out", "found")
    assert result.exit_code == 0, result.output
    model = load_exported(searched.model("champion").export).members[0]
    found = Path("found")
    names = [f"{stem}_{kind}" for stem in ("01", "02") for kind in ("mask.nii.gz", "overlay.png", "probability.nii.gz")]
    assert sorted(path.name for path in found.iterdir()) == sorted([*names, "lesions.csv"])
    rows = table(found)
    for stem, row in zip(("01", "02"), rows, strict=True):
        given, mask, likely = (
            nib.load(path)
            for path in (flairs / f"{stem}.nii.gz", found / f"{stem}_mask.nii.gz", found / f"{stem}_probability.nii.gz")
        )
        for image, kind in ((mask, np.uint8), (likely, np.float32)):
            assert image.shape == given.shape
            assert np.array_equal(image.affine, given.affine)
            assert (image.header["sform_code"], image.header["qform_code"]) == (4, 1)
            assert image.get_data_dtype() == kind
            assert not image.header.extensions
            assert b"Doe" not in image.header.binaryblock
        wanted = predict([model], Source("", "", flairs, (flairs / f"{stem}.nii.gz",)))
        assert np.array_equal(np.asarray(mask.dataobj).reshape(wanted.mask.shape), wanted.mask)
        assert np.array_equal(np.asarray(likely.dataobj).reshape(wanted.mask.shape), wanted.probabilities)
        voxels = np.asarray(mask.dataobj).squeeze()
        edges = nib.affines.voxel_sizes(given.affine)
        assert row == {
            "input": f"in/{stem}.nii.gz",
            "predicted_by": "model",
            "model": model.name,
            "threshold": f"{model.threshold:.6g}",
            "lesions": str(ndimage.label(voxels, np.ones((3, 3, 3)))[1]),
            "volume_ml": f"{voxels.sum() * edges.prod() / 1000:.4f}",
            "mask": f"{stem}_mask.nii.gz",
            "notes": "",
            "postprocessing": "nothing",
        }
        assert float(row["volume_ml"]) > 0
    assert result.stdout.splitlines() == [
        "checking: 2 of 2",
        "predicting: 2 of 2",
        *(
            f"{row['input']}: {row['lesions']} lesion{'' if row['lesions'] == '1' else 's'}, "
            f"{float(row['volume_ml']):.3f} ml"
            for row in rows
        ),
        "masks, probability maps and overlays: found; lesion counts and volumes: found/lesions.csv",
    ]
    again = refused(say("predict", "s", "in/01.nii.gz", "--out", "found"))
    assert again == (
        "--out found: has lesions.csv, 01_mask.nii.gz, 01_probability.nii.gz and 1 more already, and nothing is "
        "overwritten; name another folder, or delete them"
    )


def test_the_postprocessing_is_named(say: Say, flairs: Path, searched: SearchDir) -> None:
    members = load_exported(searched.model("champion").export).members
    chosen = Postprocessing(mirror_averaging=True, smallest_lesion_mm3=7.0)
    export_model([replace(member, postprocessing=chosen) for member in members], Path("both"))
    result = say("predict", "both", flairs / "01.nii.gz", "--out", "found")
    assert result.exit_code == 0, result.output
    words = "averaged with the mirrored head, lesions below 7 mm3 removed"
    assert f"the model's postprocessing was applied: {words}" in result.stdout.splitlines()
    assert [row["postprocessing"] for row in table(Path("found"))] == [words, words]
    answer = json.loads(say("predict", "both", flairs / "01.nii.gz", "--out", "again", "--json").stdout)
    assert [(one["mirror_averaging"], one["smallest_lesion_mm3"]) for one in answer["images"]] == [(True, 7.0)] * 2


def test_the_ensemble_has_rows_of_its_own(say: Say, flairs: Path, searched: SearchDir) -> None:
    result = say("predict", "s", flairs / "01.nii.gz", "--out", "found", "--threshold", 0.4)
    assert result.exit_code == 0, result.output
    single, ensemble = table(Path("found"))
    assert [row["predicted_by"] for row in (single, ensemble)] == ["model", "ensemble"]
    assert [row["mask"] for row in (single, ensemble)] == ["", "01_mask.nii.gz"]
    assert [row["threshold"] for row in (single, ensemble)] == ["0.4", "0.4"]
    models = load_exported(searched.model("champion").export).members
    assert ensemble["model"] == " ".join(model.name for model in models)
    source = Source("", "", flairs, (flairs / "01.nii.gz",))
    wanted = predict(models, source, 0.4)
    assert np.array_equal(np.asarray(nib.load("found/01_mask.nii.gz").dataobj), wanted.mask)
    cubic = float(np.prod(wanted.voxel_mm))
    for row, mask in ((single, predict(models[:1], source, 0.4).mask), (ensemble, wanted.mask)):
        assert row["volume_ml"] == f"{mask.sum() * cubic / 1000:.4f}"
    assert refused(say("predict", searched.trial(0).path, flairs, "--out", "f", "--ensemble")) == (
        "--ensemble: needs a model of several networks, but there is only trial-0000; name a search that has a "
        "champion, or an export of one, or leave --ensemble out"
    )


def test_nothing_found_and_an_overlay_of_square_pixels(say: Say, tmp_path: Path) -> None:
    volume = np.zeros((40, 60, 7), np.float32)
    volume[8:32, 10:50, 1:6] = np.random.default_rng(0).uniform(50, 100, (24, 40, 5))
    nib.Nifti1Image(volume, np.diag([2.0, 1.0, 4.0, 1.0])).to_filename("v.nii")
    result = say("predict", "s", "v.nii", "--out", "found", "--threshold", 0.9999)
    assert result.exit_code == 0, result.output
    assert "v.nii: 0 lesions, 0.000 ml" in result.stdout
    assert table(Path("found"))[0]["lesions"] == "0"
    with Image.open("found/v_overlay.png") as image:  # a slice is 80 x 60 mm; six of them, in rows of three
        assert (image.mode, image.size) == ("RGB", (3 * 320, 2 * 240))
        assert len(np.unique(np.asarray(image))) > 10


def test_slices_worth_a_look() -> None:
    areas = np.zeros(100, int)
    areas[[20, 21, 22, 60, 61, 90]] = [5, 9, 5, 3, 4, 1]
    assert select_slices(areas) == [14, 21, 29, 43, 61, 90]  # the largest of each, and some between
    assert select_slices(np.zeros(3, int)) == [0, 1, 2]
    assert select_slices(np.zeros(1, int)) == [0]
    assert len(select_slices(np.arange(40))) == 6


# -- pictures


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_pictures(say: Say, searched: SearchDir, ending: str) -> None:
    model = TrainedModel.from_run(searched.judgement_run("trial-0000", 0))
    export_model([replace(model, preprocessing=Preprocessing("image", None, 48, "crop", None))], Path("model"))
    picture = np.zeros((40, 56), np.uint8)
    picture[4:36, 8:48] = np.random.default_rng(0).integers(80, 120, (32, 40))
    picture[10:16, 20:26] = 255
    Image.fromarray(picture).save(f"a.{ending}")
    result = say("predict", "model", f"a.{ending}", "--out", "found", "--threshold", 0.3)
    assert result.exit_code == 0, result.output
    mask, likely = (np.asarray(Image.open(f"found/a_{name}")) for name in ("mask.png", "probability.tif"))
    assert (mask.shape, mask.dtype, likely.shape, likely.dtype) == ((40, 56), np.uint8, (40, 56), np.float32)
    assert np.array_equal(mask, (likely >= np.float32(0.3)) * 255)
    assert Image.open("found/a_overlay.png").size == (56, 40)
    (row,) = table(Path("found"))
    assert row["area_pixels"] == str(int((mask > 0).sum()))
    assert row["lesions"] == str(ndimage.label(mask, np.ones((3, 3)))[1])
    assert "volume_ml" not in row


# -- what is given


def test_folders_and_names(say: Say, raw: Path, flairs: Path) -> None:
    result = say("predict", "s", raw, "--single", "--out", "bids")
    assert result.exit_code == 0, result.output
    assert len(table(Path("bids"))) == 8
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "x.nii.gz").write_bytes((flairs / "01.nii.gz").read_bytes())
        Path(folder, "x_mask.nii.gz").write_bytes(b"an expert's, not an image to predict")
    result = say("predict", "s", "a", "b", "a/x.nii.gz", "in/02.nii.gz", "--single", "--out", "found")
    assert result.exit_code == 0, result.output
    assert [row["mask"] for row in table(Path("found"))] == ["a_x_mask.nii.gz", "b_x_mask.nii.gz", "02_mask.nii.gz"]


def test_what_a_folder_leaves_out_is_said(say: Say, flairs: Path) -> None:
    (flairs / "01.nii.gz").rename(flairs / "01_flair.nii.gz")
    (flairs / "._01_FLAIR.nii.gz").write_bytes(b"as macOS leaves them")
    (flairs / "03_FLAIR.nii.gz").write_bytes((flairs / "01_flair.nii.gz").read_bytes())
    result = say("predict", "s", "in", "--single", "--out", "found", "--json")
    assert result.exit_code == 0, result.output
    note = (
        "in: left out: 1 image not named FLAIR as others are (02.nii.gz); name a file to predict it whatever its name"
    )
    assert f"note: {note}" in result.stderr.splitlines()
    answer = json.loads(result.stdout)
    assert answer["notes"] == [note]
    assert [Path(one["input"]).name for one in answer["images"]] == ["01_flair.nii.gz", "03_FLAIR.nii.gz"]


def test_all_faults_at_once_and_nothing_written(say: Say, flairs: Path, tmp_path: Path) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("?")
    message = refused(say("predict", "s", "in", "empty", "notes.txt", "nowhere", "--out", "found"))
    kinds = ".nii, .nii.gz, .png, .tif, .tiff, .jpg, .jpeg"
    assert message == (
        "3 faults, nothing was written\n"
        f"  - empty: no image in this folder; {kinds}, or BIDS (sub-*/[ses-*/]anat/*_FLAIR.nii.gz)\n"
        f"  - notes.txt: must be one of {kinds}; convert it\n"
        "  - nowhere: no such file or folder; check the path"
    )
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(flairs / "p.png")
    (flairs / "cut.nii.gz").write_bytes((flairs / "01.nii.gz").read_bytes()[:2000])
    nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.float32), np.eye(4)).to_filename(flairs / "four.nii")
    message = refused(say("predict", "s", "in", "--out", "found"))
    lines = message.splitlines()
    assert lines[0] == "3 faults, nothing was written"
    assert lines[1].startswith("  - in/cut.nii.gz: cannot be read (")
    assert lines[2:] == [
        "  - in/four.nii: must be one 3-D volume, but its shape is (8, 8, 8, 2); extract one volume",
        "  - in/p.png: is a picture, but the model was trained on volumes; choose another model",
    ]
    assert not Path("found").exists()
    assert refused(say("predict", "s", "in", "--out", "found", "--threshold", 1)) == (
        "--threshold: must be a number above 0 and below 1, but got 1.0"
    )
    assert refused(say("predict", "t", "in", "--out", "found")).startswith("t: no search or run of this name in ")


def test_results_so_far_are_kept(say: Say, flairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wmlsearch.workflows import predict as predict_workflow

    def fails_later(models: Any, source: Source, *more: Any) -> Any:
        if source.image[0].name == "02.nii.gz":
            raise KeyboardInterrupt
        return predict(models, source, *more)

    monkeypatch.setattr(predict_workflow, "predict", fails_later)
    assert say("predict", "s", "in", "--single", "--out", "found").exit_code == 130
    assert [row["input"] for row in table(Path("found"))] == ["in/01.nii.gz"]
    assert sorted(path.name for path in Path("found").iterdir()) == [
        "01_mask.nii.gz", "01_overlay.png", "01_probability.nii.gz", "lesions.csv",
    ]  # fmt: skip


def test_a_second_process_in_the_same_folder_is_refused(
    say: Say, flairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins after the first has looked at the folder, and before that has written anything."""
    from wmlsearch.workflows import predict as predict_workflow

    seconds = list[str]()

    def meanwhile(models: Any, source: Source, *more: Any) -> Any:
        if not seconds:
            with monkeypatch.context() as patch:
                patch.setattr(predict_workflow, "predict", predict)
                seconds.append(refused(say("predict", "s", "in/02.nii.gz", "--single", "--out", "found")))
        return predict(models, source, *more)

    monkeypatch.setattr(predict_workflow, "predict", meanwhile)
    assert say("predict", "s", "in/01.nii.gz", "--single", "--out", "found").exit_code == 0
    assert seconds == [
        "--out found: has lesions.csv already, and nothing is overwritten; name another folder, or delete them"
    ]
    assert [row["input"] for row in table(Path("found"))] == ["in/01.nii.gz"]
    assert not Path("found/02_mask.nii.gz").exists()


def test_no_table_is_left_where_nothing_was_predicted(say: Say, flairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wmlsearch.workflows.predict.predict", fails)
        assert say("predict", "s", "in", "--single", "--out", "found").exit_code == 130
    assert not list(Path("found").iterdir())
    assert say("predict", "s", "in/01.nii.gz", "--single", "--out", "found").exit_code == 0


def test_the_longest_names(say: Say, flairs: Path) -> None:
    """`NAME_probability.nii.gz` may have as many bytes as the file system takes, and no more."""
    limit = os.pathconf(".", "PC_NAME_MAX") - len("_probability.nii.gz")
    fits, too_long = "ä" * (limit // 2) + "a" * (limit % 2), "a" * (limit + 1)
    for name in (fits, too_long):
        shutil.copy(flairs / "01.nii.gz", f"{name}.nii.gz")
    assert say("predict", "s", f"{fits}.nii.gz", "--single", "--out", "found").exit_code == 0
    assert Path("found", f"{fits}_probability.nii.gz").exists()
    assert refused(say("predict", "s", f"{too_long}.nii.gz", "--out", "other")) == (
        f"{too_long}.nii.gz: the name of its result {too_long}_probability.nii.gz has 256 bytes, and {Path.cwd()} "
        "takes names of at most 255; give the image a name that is 1 byte shorter"
    )
    assert not Path("other").exists()


# -- which model


def test_what_a_model_may_be(say: Say, searched: SearchDir, flairs: Path, tmp_path: Path) -> None:
    def names(model: object) -> list[str]:
        return [member.name for member in find_model(str(model), searched.path.parent, default_uri(tmp_path)).members]

    seeds = names("s")
    assert sorted(seeds) == ["trial-0000-run0", "trial-0000-run1"]
    assert names(searched.path) == names(searched.model("champion").path) == seeds
    assert names(searched.judgement_run("trial-0000", 1).path) == ["trial-0000-run1"]
    result = say("export", "s", "model")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"model: 2 networks, the first is {seeds[0]}; next: wmlsearch predict model IMAGE --out predicted\n"
    )
    assert names("model") == seeds
    client = connect(default_uri(tmp_path))
    run_id = client.create_run(client.create_experiment("e", (tmp_path / "artifacts").as_uri())).info.run_id
    register(client, run_id, Path("model"), "champion")
    assert names("models:/wml-unet@champion") == names("models:/wml-unet/1") == seeds
    uri = ("--mlflow-uri", default_uri(tmp_path))
    assert say("predict", "models:/wml-unet@champion", "in/01.nii.gz", "--out", "a", *uri).exit_code == 0
    assert say("predict", "s", "in/01.nii.gz", "--out", "b").exit_code == 0
    for path in Path("b").iterdir():
        assert (Path("a") / path.name).read_bytes() == path.read_bytes()
    other = SearchDir(shutil.copytree(searched.path, tmp_path / "other"))
    other.model("champion").remove()
    assert names(other.path) == ["trial-0000"]  # no champion: the best trial
    assert len(load_exported(Path("model")).members) == 2


@pytest.mark.skipif(not REAL.is_dir(), reason="the real volumes (shared/data/ms-flair) are not beside this repository")
def test_real_volumes_without_masks(say: Say) -> None:
    result = say("predict", "s", REAL, "--out", "found")
    assert result.exit_code == 0, result.output
    for path in sorted(REAL.rglob("*_FLAIR.nii.gz")):
        given, mask = nib.load(path), nib.load(f"found/{path.name.removesuffix('.nii.gz')}_mask.nii.gz")
        assert mask.shape == given.shape
        assert nib.aff2axcodes(mask.affine) == nib.aff2axcodes(given.affine) == ("L", "P", "S")
        assert np.array_equal(mask.affine, given.affine)
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}
