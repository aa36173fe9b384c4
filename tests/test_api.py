"""The Python API: what `import wmlsearch` gives, in a notebook too, and that it is what the commands do."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import wmlsearch
from wmlsearch.api.keywords import BudgetKeywords, PrepareKeywords, SettingKeywords
from wmlsearch.api.wording import in_python
from wmlsearch.cli import main
from wmlsearch.cli.tune import CHANGEABLE_ON_RESUME
from wmlsearch.cluster import connect
from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.prepare import PrepareOptions
from wmlsearch.runs.folders import SearchDir
from wmlsearch.workflows.model_lookup import find_model
from wmlsearch.workflows.predict import predict_files

SPACE = {
    "depth": 2,
    "base_channels": {"choices": [4, 8]},
    "dropout": 0.0,
    "loss": "bce_dice",
    "learning_rate": {"low": 3e-3, "high": 1e-2, "log": True},
}
SMALL: dict[str, Any] = {
    "trials": 2, "epochs": 2, "grace_epochs": 1, "confirm_top": 1, "confirm_seeds": 1, "final_runs": 1,
    "forecast": False,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the door


def test_importing_it_imports_nothing_slow() -> None:
    heavy = ("torch", "ray", "mlflow", "numpy", "optuna", "matplotlib", "pydantic", "nibabel", "pandas", "scipy")
    code = f"import sys, wmlsearch; print(dir(wmlsearch), [name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" []\n")
    assert "'load_search', 'phantom', 'prepare', 'resume', 'tune'" in done.stdout


def test_a_notebooks_plots_stay_as_they_are() -> None:
    code = (
        "import matplotlib; matplotlib.use('svg'); before = dict(matplotlib.rcParams)\n"
        "import wmlsearch.api, wmlsearch.report.page; assert dict(matplotlib.rcParams) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_its_names_are_there_and_no_others() -> None:
    from wmlsearch import api

    others = ("annotations", "data", "keywords", "models", "searches", "wording")  # the modules of the package
    assert wmlsearch.__all__ == sorted(name for name in vars(api) if not name.startswith("_") and name not in others)
    assert all(getattr(wmlsearch, name) is getattr(api, name) for name in wmlsearch.__all__)
    assert all(getattr(wmlsearch, name).__doc__ for name in wmlsearch.__all__)
    assert [name for name in dir(wmlsearch) if not name.startswith("__")] == wmlsearch.__all__
    with pytest.raises(AttributeError, match="module 'wmlsearch' has no attribute 'predikt'"):
        wmlsearch.predikt  # noqa: B018


@pytest.mark.slow
def test_type_checkers_see_it(tmp_path: Path) -> None:
    assert (Path(wmlsearch.__file__).parent / "py.typed").is_file()
    code = """
import wmlsearch
search = wmlsearch.tune("quick", data="prepared", trials=2, sampler="tpe")
reveal_type(search.trials)
reveal_type(wmlsearch.load_model(search).predict("flair.nii.gz").volume_ml)
wmlsearch.tune("quick", trials="two")
wmlsearch.prepare("raw", "out", plane="oblique")
"""
    (tmp_path / "notebook.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", "nul", "notebook.py"]
    # an editable installation is an import hook, which type checkers do not run
    environment = {**os.environ, "MYPYPATH": str(Path(wmlsearch.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    lines = [line.split(": ", 2)[2] for line in done.stdout.splitlines() if line.startswith("notebook.py")]
    assert lines[0].startswith('Revealed type is "pandas.'), done.stdout
    assert lines[1] == 'Revealed type is "float | None"'
    assert lines[2].startswith('Argument "trials" to "tune" has incompatible type "str"')
    assert lines[3].startswith('Argument "plane" to "prepare" has incompatible type')


def test_the_keywords_are_those_of_the_options() -> None:
    assert set(PrepareKeywords.__annotations__) == {field.name for field in dataclasses.fields(PrepareOptions)}
    assert set(SettingKeywords.__annotations__) == set(RunSettings.model_fields) - {"workers_per_trial"}
    assert set(BudgetKeywords.__annotations__) == set(CHANGEABLE_ON_RESUME)


@pytest.mark.parametrize(
    ("of_command", "of_python"),
    [
        ("--size must be a whole number, but got 1", "size must be a whole number, but got 1"),
        ("--folds 9: one each; give --folds 3", "folds=9: one each; give folds=3"),
        ("add --allow-leakage to do it", "add allow_leakage=True to do it"),
        ("--protocol paper means --keep lesion; drop one", "protocol='paper' means keep='lesion'; drop one"),
        ("--lesion-label 1 --ignore-label 2", "lesion_labels=[1] ignore_labels=[2]"),
        ("take it with --select acq=3D", "take it with select=['acq=3D']"),
        ("--patient-pattern 'a(.)': finds none", "patient_pattern='a(.)': finds none"),
        ("search without it (--no-baseline)", "search without it (baseline=False)"),
        ("give another --name, or --seed; more --trials", "give another name, or seed; more trials"),
        ("RAW must be a folder; name another OUT", "raw must be a folder; name another out"),
        ("make it with `wmlsearch prepare RAW x --size 64`", "make it with `wmlsearch prepare RAW x --size 64`"),
        ("to send them later: wmlsearch sync s --out x", "to send them later: wmlsearch sync s --out x"),
        ("the same command with --dry-run lists them", "the same command with --dry-run lists them"),
    ],
)
def test_messages_name_keywords_and_not_options(of_command: str, of_python: str) -> None:
    assert in_python(of_command) == of_python


def test_mistakes_are_input_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = [
        (lambda: wmlsearch.prepare("nowhere", "out"), "nowhere: no such file or folder; raw must be "),
        (lambda: wmlsearch.prepare(".", "out", size=1), "- size must be a whole number from 16 to 4096, but got 1"),
        (lambda: wmlsearch.prepare(".", "out", split="image"), "- split='image' puts .* or add allow_leakage=True to "),
        (
            lambda: wmlsearch.prepare(".", "out", sise=1),
            r"^wmlsearch.prepare\(\) has no keyword 'sise' \(did you mean 'size'\?\)$",
        ),
        (
            lambda: wmlsearch.prepare(".", "out", colour=1, plain="axial"),
            r"no keyword 'colour', 'plain' \(did you mean 'plane'\?\); it has allow_leakage, fit, ",
        ),
        (lambda: wmlsearch.tune("quick", trials=0), "trials must be "),
        (
            lambda: wmlsearch.tune("quick", objective="val_loss"),
            "objective must be val_dice.* but got 'val_loss'",
        ),
        (lambda: wmlsearch.tune("quick", naem="s"), r"has no keyword 'naem' \(did you mean 'name'\?\)$"),
        (lambda: wmlsearch.resume("s", trails=9), r"resume\(\) has no keyword 'trails' \(did you mean 'trials'\?\)$"),
        (lambda: wmlsearch.tune("quick", workers_per_trial=0), "workers_per_trial must be a whole number from 1 to "),
        (lambda: wmlsearch.tune({"depth": 3}), "space: has only values and no ranges, so there is nothing to search"),
        (lambda: wmlsearch.tune("quick", data="no"), "no: no such folder; make it with `wmlsearch prepare RAW no`"),
        (lambda: wmlsearch.resume("s", trials=3), "s: no search or run of this name in runs"),
        (lambda: wmlsearch.load_search("s"), "s: no search or run of this name in runs"),
        (lambda: wmlsearch.load_model("s"), "s: no search or run of this name in runs"),
    ]
    for call, message in calls:
        with pytest.raises(wmlsearch.InputError, match=message):
            call()
    assert list(tmp_path.iterdir()) == [], "nothing was written"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers_per_trial": 64, "trials": 2, "epochs": 2}, "does not fit on the machines"),
        ({"workers_per_trial": 64}, "does not fit on the machines"),
        ({"ray_address": "127.0.0.1:9"}, "127.0.0.1:9: no Ray cluster answers there"),
        ({"max_epochs_total": 3}, "no epochs are left for trials"),
        ({"scheduler": "pbt", "epochs": 2}, "grace_epochs < epochs must hold with pbt"),
    ],
)
def test_what_cannot_run_is_refused_before_the_phantom_is_made(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS", "WMLSEARCH_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("wmlsearch.api.searches.ensure_builtin_phantom", lambda *_: pytest.fail("a phantom was made"))
    with pytest.raises(wmlsearch.InputError, match=message):
        wmlsearch.tune("quick", out=tmp_path / "runs", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_ray_of_this_process_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from wmlsearch.api.searches import _placement

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.delenv("WMLSEARCH_STORAGE", raising=False)
    monkeypatch.setattr(connect, "own_address", lambda: "10.1.2.3:6379")
    own, given = _placement(None, None), _placement("localhost:6379", None)
    assert (own.ray_address, own.given_ray_address) == ("10.1.2.3:6379", None), "it may end with this process"
    assert (given.ray_address, given.given_ray_address) == ("localhost:6379", "localhost:6379")
    monkeypatch.setattr(connect, "own_address", lambda: None)
    assert _placement(None, None).given_ray_address == "127.0.0.1:6379"


def test_prepare_is_the_command(raw: Path, prepared: Path, tmp_path: Path) -> None:
    stages = []
    manifest = wmlsearch.prepare(
        str(raw), tmp_path / "out", size=32, fit="resize", val_patients="04", test_patients=None, select=None, jobs=1,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )  # fmt: skip
    for name in ("images.npy", "masks.npy", "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (prepared / name).read_bytes()
    assert manifest.folds[0] == ("04",)
    assert stages[0] == ("reading", 0, 8)
    assert stages[-1] == ("cutting", 8, 8)


@pytest.fixture
def doubtful(raw: Path, tmp_path: Path) -> Path:
    """A raw data set in which one mask is turned over, and two patients' lesions reach beyond a small window."""
    folder = tmp_path / "doubtful"
    shutil.copytree(raw, folder)
    mask = next(folder.rglob("sub-02*mask.nii.gz"))
    image: Any = nib.load(mask)
    nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine).to_filename(mask)
    return folder


def test_prepare_says_what_the_command_prints(
    doubtful: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Splits, folds, duplicates, warnings and the contact sheet: only the next step is in Python's words."""
    words = ["prepare", str(doubtful), str(tmp_path / "c"), "--size", "16", "--jobs", "1"]
    printed = CliRunner().invoke(main, words).stdout.replace(str(tmp_path / "c"), "FOLDER").splitlines()
    lines: list[str] = []
    manifest = wmlsearch.prepare(doubtful, tmp_path / "p", size=16, jobs=1, say=lines.append)
    said = [line.replace(str(tmp_path / "p"), "FOLDER") for line in lines]
    assert capsys.readouterr().out == ""
    assert [line.split()[:2] for line in said[:4]] == [
        ["split", "patients"], ["train", "4"], ["val", "1"], ["test", "(sealed)"]
    ]  # fmt: skip
    assert any(line.startswith("warning: the window cuts off ") for line in said)
    assert any(line.startswith("warning: ") and "is the mask, or a header, flipped?" in line for line in said)
    assert any(" slices compared: no duplicates across " in line for line in said)
    assert said[-1] == "check the slices in FOLDER/contact_sheet.png; next: wmlsearch.tune(data='FOLDER')"
    assert [in_python(line) for line in printed if not line.endswith(" 8 of 8")][:-1] == said[:-1]
    assert any(row.finding.kind == "flipped" for row in manifest.findings)


def test_what_prepare_returns_is_shown_in_short(prepared: Path) -> None:
    manifest = Manifest.read(prepared)
    assert repr(manifest) == (
        "<Manifest: native slices of 32 x 32 pixels: train 4 patients, 48 slices; val 1 patient, 12 slices; "
        "test 3 patients, 36 slices; 5 folds>"
    )
    html = manifest._repr_html_()
    for part in ("<th>patients</th>", "<td>test (sealed)</td><td>3</td>", "5 folds of ", "native slices of 32 x 32"):
        assert part in html
    optimistic = dataclasses.replace(manifest.certificate, note="image-level <split>")
    worse = dataclasses.replace(manifest, certificate=optimistic)
    assert repr(worse).endswith("; 1 warning>")
    assert "warning: image-level &lt;split&gt;" in worse._repr_html_()


# ------------------------------------------------------------------------------------------------------------ searches


def test_a_search_that_was_loaded(searched: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = wmlsearch.load_search("s", out=searched.path.parent)
    assert search == wmlsearch.load_search(searched.path) == wmlsearch.load_search(search)
    assert (search.name, search.state, search.reason) == ("s", "completed", "")
    assert search.settings.final_runs == 2
    (row,) = searched.trial(0).rows()[-1:]
    trials = search.trials
    assert list(trials.index) == ["trial-0000"]
    assert trials.loc["trial-0000", "depth"] == 2
    assert trials.loc["trial-0000", "val_dice_patients_best"] == max(
        one.metrics["val_dice_patients_best"] or 0 for one in searched.trial(0).rows()
    )
    curves = search.curves
    assert list(curves.columns[:3]) == ["run", "purpose", "epoch"]
    assert curves.groupby("purpose").size().to_dict() == {"judgement": 12, "trial": 6}
    wide = curves.pivot(index="epoch", columns="run", values="val_loss")
    assert list(wide.columns) == ["trial-0000", "trial-0000-run0", "trial-0000-run1"]
    assert wide.loc[6, "trial-0000"] == row.metrics["val_loss"]
    assert search.champion == wmlsearch.Champion("trial-0000", searched.trial(0).record().config, "It is the champion.")
    assert not search.champion.is_baseline
    assert list(search.final_runs["role"]) == ["champion", "champion"]
    assert (search.verdict, search.report) == (None, None), "the sealed test is closed"


def test_a_search_without_an_epoch(searched: SearchDir, tmp_path: Path) -> None:
    new = SearchDir.create(tmp_path / "new", searched.record().model_copy(update={"name": "new"}))
    search = wmlsearch.load_search(new.path)
    with new.locked():
        assert search.state == "running"
    assert search.state == "gone", "its process let go without recording an end"
    assert search.trials.empty
    assert search.curves.empty
    assert search.final_runs.empty
    assert search.champion is None


def test_missing_numbers_are_nan() -> None:
    from wmlsearch.api.searches import _frame

    frame = _frame([{"run": "a", "dice": None, "state": None}, {"run": "b", "dice": 1, "state": "good"}], "run")
    assert frame["dice"].dtype == float
    assert np.isnan(frame.loc["a", "dice"])
    assert frame.loc["b", "state"] == "good"
    assert isinstance(frame, pd.DataFrame)


# -------------------------------------------------------------------------------------------------------------- models


@pytest.fixture
def flair(raw: Path) -> Path:
    return next(raw.rglob("sub-01*_FLAIR.nii.gz"))


@pytest.fixture
def model(searched: SearchDir) -> wmlsearch.Model:
    return wmlsearch.load_model(wmlsearch.load_search(searched.path), runs=searched.path.parent)


def test_a_prediction_is_the_commands(model: wmlsearch.Model, searched: SearchDir, flair: Path, tmp_path: Path) -> None:
    out = tmp_path / "command"
    single, ensemble = predict_files(find_model("s", searched.path.parent, ""), [flair], out, ensemble=True)
    prediction = model.predict(flair)
    assert set(model.names) == {"trial-0000-run0", "trial-0000-run1"}
    assert prediction.volume_ml == ensemble.volume_ml
    assert prediction.volume_ml is not None
    assert prediction.volume_ml > 0, "the fixture finds lesions"
    assert (prediction.lesions, prediction.threshold) == (ensemble.lesions, ensemble.threshold)
    assert prediction.area_pixels is None
    files = prediction.save(tmp_path / "saved")
    assert {file.name for file in files} == {file.name for file in out.iterdir()} - {"lesions.csv"}
    for file in files:
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    image: Any = nib.load(files[0])
    assert np.array_equal(np.asarray(image.dataobj), prediction.mask)
    assert np.array_equal(image.affine, prediction.affine)
    assert prediction.probabilities.shape == prediction.mask.shape == image.shape
    assert np.array_equal(prediction.mask, prediction.probabilities >= prediction.threshold)
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    assert prediction.volume_ml == pytest.approx(prediction.mask.sum() * voxel_ml)
    assert model.predict(str(flair), single=True).volume_ml == single.volume_ml
    assert model.predict(flair, threshold=0.999).mask.sum() < prediction.mask.sum()
    assert model.predict(flair, threshold=np.float32(0.5)).threshold == 0.5
    members = ", ".join(model.names)
    assert model.threshold == prediction.threshold
    assert repr(model) == (
        f"<Model: champion of search s, 2 networks ({members}), threshold {model.threshold:.3g}, trained on prepared>"
    )
    assert repr(prediction) == (
        f"<Prediction: {prediction.lesions} lesions, {prediction.volume_ml:.3g} ml, threshold "
        f"{prediction.threshold:.3g}, on a grid of 48 x 48 x 12>"
    )
    exported = searched.model("champion").export
    assert repr(wmlsearch.load_model(exported)).startswith(f"<Model: {exported}, 2 networks (")
    trial = repr(wmlsearch.load_model(searched.trial(0).path))
    assert trial.startswith("<Model: run trial-0000, 1 network (trial-0000), threshold ")


def test_a_nibabel_image(model: wmlsearch.Model, flair: Path, tmp_path: Path) -> None:
    """With a scale in its header, changed in memory, without a file, and of another type."""
    image: Any = nib.load(flair)
    expected = model.predict(flair)
    for given in image, nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine):
        prediction = model.predict(given)
        assert np.array_equal(prediction.probabilities, expected.probabilities)
    scaled = nib.Nifti1Image(image.get_fdata() * 0.37 + 5, image.affine)
    scaled.set_data_dtype(np.int16)
    scaled.to_filename(tmp_path / "scaled.nii.gz")
    from_file = model.predict(tmp_path / "scaled.nii.gz")
    assert np.array_equal(model.predict(nib.load(tmp_path / "scaled.nii.gz")).probabilities, from_file.probabilities)
    mgh = nib.MGHImage(np.asarray(image.dataobj, np.float32), image.affine)
    assert np.array_equal(model.predict(mgh).mask, expected.mask)
    second = nib.Nifti2Image(np.asarray(image.dataobj), image.affine)
    assert np.array_equal(model.predict(second).mask, expected.mask)
    files = model.predict(scaled).save(tmp_path / "out", name="patient")
    assert [file.name for file in files] == [
        "patient_mask.nii.gz", "patient_probability.nii.gz", "patient_overlay.png",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti1Pair, nib.Nifti2Image])
def test_a_nibabel_image_has_its_header(kind: Any, model: wmlsearch.Model, flair: Path, tmp_path: Path) -> None:
    """In micrometres, whose unit is in the header, and without an orientation, as the same file."""
    image: Any = nib.load(flair)
    expected = model.predict(flair)
    assert expected.affine is not None
    micrometres = kind(np.asarray(image.dataobj), np.diag([1000, 1000, 1000, 1]) @ image.affine)
    micrometres.header.set_xyzt_units("micron")
    with pytest.warns(UserWarning, match="4000 x 4000 x 1.2e[+]04 micrometres, taken so"):
        prediction = model.predict(micrometres)
    assert np.array_equal(prediction.mask, expected.mask)
    assert prediction.volume_ml == pytest.approx(expected.volume_ml)
    assert prediction.affine == pytest.approx(expected.affine), "in mm"
    bare = kind(np.asarray(image.dataobj), None)
    bare.header.set_zooms(image.header.get_zooms())
    bare.to_filename(tmp_path / ("bare.img" if kind is nib.Nifti1Pair else "bare.nii"))
    with pytest.warns(UserWarning, match="the header gives no orientation"):
        model.predict(kind.from_filename(bare.get_filename()))


def test_a_turned_volume_comes_back_on_its_own_grid(model: wmlsearch.Model, flair: Path) -> None:
    image: Any = nib.load(flair)
    expected = model.predict(flair)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt("PSR")
    )
    turned = image.as_reoriented(turn)
    prediction = model.predict(turned)
    assert prediction.mask.shape == turned.shape != image.shape
    assert prediction.affine is not None
    assert np.array_equal(prediction.affine, turned.affine)
    assert prediction.volume_ml == pytest.approx(expected.volume_ml)
    back = nib.Nifti1Image(prediction.mask, prediction.affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("PSR"), nib.orientations.io_orientation(image.affine)
        )
    )
    assert np.array_equal(np.asarray(back.dataobj), expected.mask)


def test_the_mask_alone_and_nothing_overwritten(model: wmlsearch.Model, flair: Path, tmp_path: Path) -> None:
    prediction = model.predict(flair)
    file = tmp_path / "new" / "lesions.nii.gz"
    assert prediction.save(file) == (file,)
    assert [path.name for path in file.parent.iterdir()] == ["lesions.nii.gz"]
    saved: Any = nib.load(file)
    assert np.array_equal(np.asarray(saved.dataobj), prediction.mask)
    with pytest.raises(wmlsearch.InputError, match=r"lesions\.nii\.gz: exists already, and nothing is overwritten"):
        prediction.save(file)
    with pytest.raises(wmlsearch.InputError, match=r"lesions.png: the mask of this image must be a .nii or .nii.gz"):
        prediction.save(tmp_path / "lesions.png")
    prediction.save(tmp_path / "folder")
    with pytest.raises(wmlsearch.InputError, match="already, and nothing is overwritten"):
        prediction.save(tmp_path / "folder")


def test_what_is_no_image_is_refused(model: wmlsearch.Model, flair: Path, tmp_path: Path) -> None:
    with pytest.raises(wmlsearch.InputError, match="must be a path or a nibabel image, but is a ndarray; make a nib"):
        model.predict(np.zeros((3, 3, 3)))
    with pytest.raises(wmlsearch.InputError, match="no such file or folder; check the path"):
        model.predict(tmp_path / "none.nii.gz")
    with pytest.raises(wmlsearch.InputError, match="threshold: must be a number above 0 and below 1, but got 1"):
        model.predict(flair, threshold=1)
    for wrong in (True, np.float32(1.5), np.nan, np.array([0.5]), "0.5"):
        with pytest.raises(wmlsearch.InputError, match="threshold: must be a number above 0 and below 1"):
            model.predict(flair, threshold=wrong)  # type: ignore[arg-type]
    with pytest.raises(wmlsearch.InputError, match="is a folder, and one image is needed; name a file"):
        model.predict(flair.parent)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "picture.png")
    with pytest.raises(wmlsearch.InputError, match="is a picture, but the model was trained on volumes"):
        model.predict(tmp_path / "picture.png")


def test_a_model_of_each_kind(searched: SearchDir, tmp_path: Path) -> None:
    runs = searched.path.parent
    for given, names in (
        ("s", {"trial-0000-run0", "trial-0000-run1"}),
        (searched.trial(0).path, {"trial-0000"}),
        (searched.model("champion").export, {"trial-0000-run0", "trial-0000-run1"}),
    ):
        model = wmlsearch.load_model(given, runs=runs)
        assert set(model.names) == names
        assert {config.depth for config in model.configs} == {2}


# ---------------------------------------------------------------------------------------------------------- with Ray


class _NotebookOutput(io.StringIO):
    """What a notebook has for standard output: no terminal and no file descriptor."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def test_a_search_in_a_thread_with_an_event_loop(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a notebook can run it: no main thread for signals, a running event loop, no terminal. Ray ends with it."""
    import ray

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS", "WMLSEARCH_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", _NotebookOutput())
    lines: list[str] = []

    async def cell() -> wmlsearch.Search:
        return wmlsearch.tune(
            SPACE, data=prepared, name="s", out=tmp_path, say=lines.append, **{**SMALL, "baseline": False}
        )

    with ThreadPoolExecutor(1) as thread:
        search = thread.submit(asyncio.run, cell()).result()
        assert not ray.is_initialized()
        assert search == wmlsearch.load_search("s", out=tmp_path)
        assert (search.state, len(search.trials)) == ("completed", 2)
        assert lines[0].startswith("trials run ")
        ends = [line for line in lines if line.startswith("trial-")]
        assert sorted(line.split()[0] for line in ends) == ["trial-0000", "trial-0001"]
        assert ends[1].endswith("(2 of 2 trials)")
        complete: list[str] = []
        thread.submit(wmlsearch.resume, search, say=complete.append).result()
        assert complete == [f"s: is completed, so nothing is left to do; its results: {search.path}"]
        resumed = thread.submit(wmlsearch.resume, search, trials=3, say=lines.append).result()
    assert not ray.is_initialized()
    assert resumed == search
    assert len(search.trials) == 3
    assert "s is resumed: 2 of 3 trials have ended" in lines
    with pytest.raises(wmlsearch.InputError, match="there is a run of this name already"):
        wmlsearch.tune(SPACE, data=prepared, name="s", out=tmp_path, **SMALL)


def test_a_search_on_the_ray_of_the_process(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: its sockets have at most 107 characters
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            lines: list[str] = []
            search = wmlsearch.tune(
                SPACE, data=prepared, name="s", out=tmp_path, say=lines.append, trials=1, epochs=1, forecast=False,
                baseline=False,
            )  # fmt: skip
            assert search.state == "completed"
            assert ray.is_initialized(), "it was running before"
            assert "trials run 1 at a time, each 1 worker with 1 CPU each" in lines, "of its CPUs"
            assert SearchDir(search.path).record().ray_address is None, "nobody can resume there"
            wmlsearch.resume(search, trials=2, say=lines.append)
            assert len(search.trials) == 2
            assert SearchDir(search.path).record().ray_address is None
            with (
                pytest.raises(wmlsearch.InputError, match=r"connected to another Ray, at .*; call ray\.shutdown"),
                connect.ray_session("127.0.0.1:1"),
            ):
                pass
        finally:
            ray.shutdown()
