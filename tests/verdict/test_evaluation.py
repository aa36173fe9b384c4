"""The sealed test: who opens it is written down, both scopes are right, and a verdict follows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result
from nifti_files import voxels
from PIL import Image

from wmlsearch.cli import main
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.examine import examine
from wmlsearch.data.manifest import LEDGER, SEALED, Manifest
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import Opener, open_sealed_test, openings
from wmlsearch.data.slices import PreparedData
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.inference.ensemble import out_of_fold_threshold
from wmlsearch.inference.export import load_exported
from wmlsearch.inference.postprocessing import NO_POSTPROCESSING, Postprocessing
from wmlsearch.inference.predictor import predict
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.metrics import Confusion
from wmlsearch.model.training import epochs
from wmlsearch.runs.evaluation import (
    SLICES,
    VOLUMES,
    Evaluation,
)
from wmlsearch.runs.folders import RunDir, SearchDir, parent_search
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.uri import default_uri
from wmlsearch.verdict.comparison import unit_means
from wmlsearch.verdict.evaluation import evaluate
from wmlsearch.verdict.scores import score
from wmlsearch.workflows import final_models, sealed_test
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.provenance import data_record, run_record

BY = Opener(run="r")


def _watch(*_: object) -> None:
    """Nobody looks."""


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """The prepared data with a ledger of their own: nobody has opened them."""
    copy = Path(shutil.copytree(prepared, tmp_path / "data"))
    (copy / SEALED / LEDGER).write_text("")
    return copy


@pytest.fixture
def search(searched: SearchDir, data: Path, tmp_path: Path) -> SearchDir:
    """A search with judgement runs of both: its champion, and the paper's configuration, hardly trained."""
    made = SearchDir(Path(shutil.copytree(searched.path, tmp_path / "runs" / "s")))
    about = json.loads((made.path / "search.json").read_text())
    (made.path / "search.json").write_text(json.dumps({**about, "data_path": str(data)}))
    prepared = PreparedData.open(data)
    config = TrialConfig(depth=2, base_channels=4)  # stands for the paper's, which takes longer
    for seed in (0, 1):
        run, settings = made.judgement_run("paper", seed), RunSettings(epochs=1, seed=seed)
        stands_for = run_record(f"paper-run{seed}", "judgement run", config, settings, data_record(data, prepared))
        RunDir.create(run.path, stands_for.model_copy(update={"model": "paper", "purpose": "judgement"}))
        for report in epochs(config, prepared, max_epochs=1, seed=seed, best=run.best):
            run.append(report)
        run.set_status("completed")
    assert final_models.keep_models(made, RunSettings(), data, Observer())
    return made


def evaluation_of(run: RunDir, fingerprint: str = "") -> Evaluation:
    """The run's evaluation, which is there."""
    evaluation = run.evaluation(fingerprint)
    assert evaluation is not None
    return evaluation


def say(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="wmlsearch")


# ----------------------------------------------------------------------------------------- what broke off and goes on


def test_a_model_that_was_not_finished_is_finished(search: SearchDir, data: Path) -> None:
    kept = search.model(CHAMPION)
    key, rows = kept.record().key, kept.rows()
    shutil.rmtree(kept.export)
    (kept.path / ".export.1.partial").mkdir()
    kept.set_status("running")  # as a kill leaves it
    assert final_models.keep_models(search, RunSettings(), data, Observer())
    assert kept.state == "completed"
    assert len(load_exported(kept.export).members) == 2
    assert (kept.record().key, kept.rows()) == (key, rows), "for MLflow it is the same run, with the same rows"
    assert not list(kept.path.glob(".*"))


def test_the_test_is_noted_only_when_all_of_it_is_kept(
    search: SearchDir, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SearchDir, "set_gallery", full)
        with pytest.raises(OSError, match="No space"):
            sealed_test.evaluate_search(search, RunSettings(), data, _watch)
    assert search.evaluation() is None, "so a resumed search opens it again"
    sealed_test.evaluate_search(search, RunSettings(), data, _watch)
    assert evaluation_of(search).opened_before == 1
    kept = search.model(CHAMPION).evaluation_metrics()
    assert kept is not None
    assert kept.metrics


# ------------------------------------------------------------------------------------------------------- the seal


def test_each_opening_is_written_down_before_anything_is_read(data: Path) -> None:
    assert openings(data) == []
    first = open_sealed_test(data, Opener(run="one"))
    second = open_sealed_test(data, Opener(run="two"))
    assert (first.opened_before, second.opened_before) == (0, 1)
    assert [line.by.run for line in openings(data)] == ["one", "two"]
    assert first.opened <= second.opened
    assert [row.split for row in first.manifest.slices] == ["test"] * len(first.manifest.slices)


def test_a_ledger_that_can_not_be_written_keeps_the_seal_closed(data: Path) -> None:
    seal = data / SEALED / "seal.jsonl"
    seal.unlink()
    seal.mkdir()
    with pytest.raises(InputError) as error:
        open_sealed_test(data, BY)
    assert str(error.value) == (
        f"{seal}: cannot be written (Is a directory); test patients are read only after a line is written there, so "
        "make the folder writable"
    )
    # and a search of days says so before it begins
    result = say("tune", "quick", "--data", data, "--out", data / "runs", "--name", "s")
    assert (result.exit_code, result.stderr) == (2, f"wmlsearch: {error.value}\n")
    assert not (data / "runs" / "s").exists()


def test_what_was_changed_after_it_was_sealed_is_refused(data: Path) -> None:
    path = data / SEALED / "manifest.json"
    path.write_text(path.read_text().replace('"kept": true', '"kept": false', 1))
    with pytest.raises(InputError) as error:
        open_sealed_test(data, BY)
    assert str(error.value) == (
        f"{path}: is not the one that was sealed, its checksum differs; make it again with `wmlsearch prepare`"
    )
    assert openings(data) == []


# ------------------------------------------------------------------------------------------------------ the scores


def test_volumes_are_scored_as_predicted_through_files(search: SearchDir, data: Path, tmp_path: Path) -> None:
    """What `wmlsearch predict` writes, scored against the raw masks by hand, is what `evaluate` says."""
    members = load_exported(search.model(CHAMPION).export).members
    found, _ = evaluate({"model": members[:1]}, data, BY)
    originals = data / SEALED / "originals"
    flairs = sorted(originals.rglob("*_FLAIR.nii.gz"))
    given = say("predict", search.model(CHAMPION).path, *flairs, "--single", "--out", tmp_path / "found")
    assert given.exit_code == 0, given.output
    rows = found.models["model"].members[0].scope(VOLUMES).rows
    assert [row.patient for row in rows] == [path.name.split("_")[0].removeprefix("sub-") for path in flairs]
    for row, flair in zip(rows, flairs, strict=True):
        stem = flair.name.removesuffix(".nii.gz")
        mask, expert = (
            nib.load(path)
            for path in (
                tmp_path / "found" / f"{stem}_mask.nii.gz",
                next(originals.rglob(f"*{row.patient}*_mask.nii.gz")),
            )
        )
        wanted = score(np.asarray(mask.dataobj), np.asarray(expert.dataobj), mask.header.get_zooms()[:3])
        for name, value in wanted.as_json().items():
            assert row.value(name) == (pytest.approx(value) if isinstance(value, float) else value), name
    assert sum(row.tp for row in rows) > 0


def test_a_network_that_finds_nothing_is_as_far_off_as_the_head_is_wide(search: SearchDir, data: Path) -> None:
    """The diagonal of the head's box, by what `prepare` measures in the volume before anything is resampled."""
    network = replace(load_exported(search.model(CHAMPION).export).members[0], threshold=1 - 1e-7)
    scores = evaluate({"model": [network]}, data, BY)[0].models["model"].members[0]
    sick = [row for row in scores.scope(VOLUMES).rows if row.has_lesions]
    assert sick
    assert {(row.tp + row.fp, row.dice, row.precision, row.lesion_f1) for row in sick} == {(0, 0, 0, 0)}
    sealed = Manifest.read(data / SEALED)
    for row, volume in zip(scores.scope(VOLUMES).rows, open_sealed_test(data, BY).volumes(), strict=True):
        if not row.has_lesions:
            continue
        axis = sealed.volumes[0].axis
        facts, _ = examine(volume.source, axis)
        assert facts is not None
        assert facts.picture_mm is not None
        assert facts.voxel_mm is not None
        top, left, bottom, right = facts.box
        depth = np.ptp(np.flatnonzero(facts.head)) + 1
        edges = ((bottom - top) * facts.picture_mm[0], (right - left) * facts.picture_mm[1])
        thickness = facts.voxel_mm[sealed.volumes[0].input_axis(axis or 0)]
        assert row.hd95_mm == pytest.approx(np.linalg.norm([*edges, depth * thickness]), rel=0.05)
    pictures = [row for row in scores.scope(SLICES).rows if row.has_lesions]
    assert {row.hd95_px for row in pictures} == {
        row.hd95_px for row in pictures if 0 < (row.hd95_px or 0) <= 32 * 2**0.5
    }


def test_kept_slices_are_the_papers_scope(search: SearchDir, raw: Path, tmp_path: Path) -> None:
    data = tmp_path / "annotated"  # where not all are kept
    prepare(raw, data, PrepareOptions(size=32, fit="resize", keep="lesion", jobs=1))
    model = load_exported(search.model(CHAMPION).export).members[0]
    found, gallery = evaluate({"model": [model]}, data, BY)
    sealed = Manifest.read(data / SEALED)
    images, masks = (np.load(data / SEALED / name) for name in ("images.npy", "masks.npy"))
    kept = [i for i, row in enumerate(sealed.slices) if row.kept]
    assert 0 < len(kept) < len(sealed.slices)
    likely, expert = model.probabilities(images[kept]), masks[kept] != 0
    result = found.models["model"].members[0].scope(SLICES)
    for scores, threshold in ((result.pooled, model.threshold), (result.pooled_half, 0.5)):
        lesion = likely >= threshold
        counts = Confusion(
            *(int(it.sum()) for it in (lesion & expert, lesion & ~expert, ~lesion & expert, ~lesion & ~expert))
        )
        assert [scores.tp, scores.fp, scores.fn, scores.tn] == [
            counts.true_positives, counts.false_positives, counts.false_negatives, counts.true_negatives,
        ]  # fmt: skip
    assert len(result.rows) == len(kept)
    patients = sorted({sealed.slices[i].patient for i in kept})
    assert [row.unit for row in result.units] == list(gallery.units) == patients
    assert gallery.images.shape == gallery.expert.shape == gallery.predictions["model"].shape == (len(patients), 32, 32)


def test_scores_at_one_half_are_without_postprocessing(search: SearchDir, data: Path) -> None:
    """As the paper's are: with mirror averaging and a smallest lesion they stay what they are without."""
    members = load_exported(search.model(CHAMPION).export).members
    chosen = Postprocessing(mirror_averaging=True, smallest_lesion_mm3=500.0)
    (plain, _), (processed, _) = (
        evaluate({"model": [replace(member, postprocessing=one) for member in members]}, data, BY)
        for one in (NO_POSTPROCESSING, chosen)
    )
    for one, other in zip(plain.models["model"].networks, processed.models["model"].networks, strict=True):
        assert (one.has_postprocessing, other.has_postprocessing) == (False, True)
        for scope in (VOLUMES, SLICES):
            assert one.scope(scope).pooled_half == other.scope(scope).pooled_half
            assert one.scope(scope).pooled != other.scope(scope).pooled
    assert (plain.half_threshold, processed.half_threshold) == ("0.5", "0.5, no postprocessing")


def test_several_seeds_are_an_ensemble_too(search: SearchDir, data: Path) -> None:
    exported = load_exported(search.model(CHAMPION).export)
    assert exported.ensemble_threshold == out_of_fold_threshold(exported.members, PreparedData.open(data))
    assert [member.threshold for member in exported.members] == [exported.ensemble_threshold] * 2
    found, _ = evaluate({"model": exported.members}, data, BY, {"model": exported.ensemble_threshold or 0.5})
    ensemble = found.models["model"].ensemble
    assert ensemble is not None
    assert ensemble.threshold == exported.ensemble_threshold
    twice, _ = evaluate({"model": [exported.members[0]] * 2}, data, BY)  # the mean of two equal ones is that one
    single = twice.models["model"].members[0]
    same = twice.models["model"].ensemble
    assert same is not None
    assert (same.volumes, same.slices) == (single.volumes, single.slices)
    assert single.scopes == (VOLUMES, SLICES)


def write_pictures(raw: Path) -> None:
    """Three slices of each of six patients, p0 to p5, with a bright square as lesion."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (raw / folder).mkdir(parents=True)
    for patient in range(6):
        for number in range(3):
            picture = np.zeros((32, 32), np.uint8)
            picture[4:28, 4:28] = rng.integers(60, 140, (24, 24))
            mask = np.zeros((32, 32), np.uint8)
            y, x = rng.integers(6, 20, 2)
            mask[y : y + 4, x : x + 4] = 255
            picture[mask > 0] = 250
            for folder, array in (("images", picture), ("masks", mask)):
                Image.fromarray(array).save(raw / folder / f"p{patient}_{number}.png")


def test_a_training_below_the_root_folder_belongs_to_no_search() -> None:
    run = RunDir(Path("/model"))  # as a container mounts it
    assert parent_search(run) is run


def evaluated(data: Path, out: Path) -> tuple[RunDir, Result]:
    """A single training of an epoch on these data, after `wmlsearch evaluate`."""
    prepared, config = PreparedData.open(data), TrialConfig(depth=2, base_channels=4, norm="instance")
    about = run_record("r", "train", config, RunSettings(epochs=1), data_record(data, prepared))
    run = RunDir.create(out / "r", about.model_copy(update={"data_path": str(data)}))
    for report in epochs(config, prepared, max_epochs=1, seed=0, best=run.best):
        run.append(report)
    run.set_status("completed")
    result = say("evaluate", "r", "--out", out)
    assert result.exit_code == 0, result.output
    return run, result


def test_ignored_voxels_are_in_no_score_of_the_sealed_test(raw: Path, tmp_path: Path) -> None:
    """Compared with counts of what the model predicts in the files that are sealed; and with other ignored labels."""
    options: dict[str, Any] = {"size": 32, "fit": "resize", "jobs": 1, "lesion_labels": (1,), "ignore_labels": (2, 3)}
    for name, labels in (("twos", [2]), ("draws", [2, 3])):
        shutil.copytree(raw, tmp_path / name)
        for path in (tmp_path / name).rglob("*_mask.nii.gz"):
            image: Any = nib.load(path)
            mask = np.asarray(image.dataobj).astype(np.uint8)
            block = mask[20:34, 12:36, 2:10]
            block[:] = np.random.default_rng(0).choice(labels, block.shape)
            nib.Nifti1Image(mask, image.affine).to_filename(path)
        prepare(tmp_path / name, tmp_path / f"{name}-prepared", PrepareOptions(**options))
    run, _ = evaluated(tmp_path / "twos-prepared", tmp_path / "runs")
    model = TrainedModel.from_run(run)
    likely = model.probabilities(PreparedData.open(tmp_path / "twos-prepared").val.images.numpy())
    model = replace(model, threshold=float(np.quantile(likely, 0.9)))  # finds a tenth of everything
    found, gallery = evaluate({"model": [model]}, tmp_path / "twos-prepared", BY)
    again, _ = evaluate({"model": [model]}, tmp_path / "draws-prepared", BY)
    member = found.models["model"].members[0]
    assert member == again.models["model"].members[0]
    assert set(np.unique(gallery.expert)) == {0, 1, 2}
    sealed = tmp_path / "twos-prepared" / SEALED
    for row, geometry in zip(member.scope(VOLUMES).rows, Manifest.read(sealed).volumes, strict=True):
        source = Source("", "", sealed, (sealed / "originals" / geometry.images[0],))
        lesion, expert = predict([model], source).mask > 0, voxels(sealed / "originals" / geometry.masks[0])
        counts = [
            int((counted & (expert != 2)).sum())
            for counted in (
                lesion & (expert == 1), lesion & (expert != 1), ~lesion & (expert == 1), ~lesion & (expert != 1),
            )
        ]  # fmt: skip
        assert [row.tp, row.fp, row.fn, row.tn] == counts
        assert (lesion & (expert == 2)).any(), "ignored, though predicted"
    images, masks = (np.load(sealed / name) for name in ("images.npy", "masks.npy"))
    kept = [i for i, slice_row in enumerate(Manifest.read(sealed).slices) if slice_row.kept]
    lesion = model.probabilities(images[kept]) >= model.threshold
    slices = member.scope(SLICES).pooled
    assert slices.tp == int((lesion & (masks[kept] == 1)).sum())
    assert slices.fp == int((lesion & (masks[kept] == 0)).sum())
    assert slices.tp + slices.fp + slices.fn + slices.tn == int((masks[kept] != 2).sum())


def test_pictures_have_no_millimetres(data: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "own", PrepareOptions(size=32, patient_pattern=r"^(p\d+)_", jobs=1))
    run, result = evaluated(tmp_path / "own", tmp_path / "runs")
    found = evaluation_of(run)
    assert (found.scope, found.unit) == (SLICES, "patients")
    (member,) = found.models["model"].members
    assert member.scopes == (SLICES,)
    assert len(member.scope(SLICES).units) == 2
    row = member.scope(SLICES).rows[0].as_json()
    assert not [name for name in row if name.endswith(("_mm", "_mm3", "_ml"))]
    assert "hd95_px" in row
    assert "The sealed test was opened for the first time" in result.stdout
    assert "whole volumes" not in result.stdout
    volumes = say("evaluate", "r", "--data", data, "--out", tmp_path / "runs")
    assert (volumes.exit_code, openings(data)) == (2, []), volumes.output
    assert "(native, fit resize), but the models were trained on 32 (image, fit crop)" in volumes.stderr


def test_images_of_nobody_stand_for_themselves(tmp_path: Path) -> None:
    """A split by images, whose patients are not known: the units are images, whatever they share."""
    write_pictures(tmp_path / "raw")
    data = tmp_path / "data"
    prepare(tmp_path / "raw", data, PrepareOptions(size=32, split="image", allow_leakage=True, jobs=1))
    run, _ = evaluated(data, tmp_path / "runs")
    found, sealed = evaluation_of(run), Manifest.read(data / SEALED)
    assert (found.scope, found.unit, found.data.optimistic) == (SLICES, "images", True)
    units = found.models["model"].members[0].scope(SLICES).units
    assert [row.unit for row in units] == [f"image {place:04d}" for place in range(1, len(sealed.slices) + 1)]


@pytest.mark.parametrize("what", ["volume", "slices"])
def test_damaged_test_data_are_not_scored(what: str, search: SearchDir, data: Path, tmp_path: Path) -> None:
    if what == "volume":
        path = next((data / SEALED / "originals").rglob("*_FLAIR.nii.gz"))
        image = nib.load(path)
        voxels = np.asarray(image.dataobj).copy()
        voxels[tuple(n // 2 for n in voxels.shape)] += 500
        nib.Nifti1Image(voxels, image.affine, image.header).to_filename(path)
        result = say("evaluate", "s", "--out", search.path.parent)
        assert result.stderr == (
            f"wmlsearch: {path}: is not the file that was sealed, its slices differ; make it again with "
            "`wmlsearch prepare`\n"
        )
    else:
        write_pictures(tmp_path / "raw")
        data = tmp_path / "pictures"
        prepare(tmp_path / "raw", data, PrepareOptions(size=32, patient_pattern=r"^(p\d+)_", jobs=1))
        run, _ = evaluated(data, tmp_path / "others")
        images = np.lib.format.open_memmap(data / SEALED / "images.npy", mode="r+")
        images[0, 16, 16] ^= 1
        images.flush()
        result = say("evaluate", "r", "--out", run.path.parent)
        assert "images.npy: is damaged, its checksum is not the manifest's; make it again with" in result.stderr
    assert result.exit_code == 2
    assert search.evaluation() is None


# ----------------------------------------------------------------------------------------------------- the verdict


def test_a_verdict_of_a_search(search: SearchDir, data: Path) -> None:
    result = say("evaluate", "s", "--out", search.path.parent)
    assert result.exit_code == 0, result.output
    found = evaluation_of(search)
    assert found.names == {BASELINE: "paper", CHAMPION: "trial-0000"}
    assert (found.scope, found.unit, found.opened_before) == (VOLUMES, "patients", 0)
    units = unit_means(found, CHAMPION, "dice")
    by_seed = [{row.unit: row.dice for row in member.scope(VOLUMES).units} for member in found.models[CHAMPION].members]
    assert len(by_seed) == 2
    rows = {row.unit: row for row in found.models[BASELINE].members[0].scope(VOLUMES).units}
    sick = [unit for unit, row in rows.items() if row.has_lesions]
    assert [unit for unit, mean in units.items() if mean is not None] == sick
    for unit in sick:
        assert units[unit] == pytest.approx(np.mean([its[unit] for its in by_seed]))
    assert found.verdict is not None
    primary = found.verdict.primary
    assert primary.champion == pytest.approx(np.mean([units[unit] for unit in sick]))
    assert (primary.pairs, primary.left_out) == (len(sick), len(rows) - len(sick))
    assert found.verdict.outcome == "not shown: too few patients"
    assert [member.fold for member in found.models[CHAMPION].members] == [0, 0]
    assert found.verdict.models is not None
    assert found.verdict.models.what == "ensembles of 2 networks"
    said = result.stdout.splitlines()
    short = said.index(
        "champion against baseline: (a) the configurations: not shown: too few patients; "
        "(b) the models: not shown: too few patients"
    )
    assert said[short + 1] == f"verdict (a), the configurations: {found.verdict.sentence}", "the outcome comes first"
    kept = search.model(CHAMPION).evaluation_metrics()
    assert kept is not None
    assert kept.metrics["test_dice"] == pytest.approx(primary.champion)
    healthy = {unit for unit in rows if unit not in sick}
    assert kept.metrics.get("test_lesion_free_patients", 0) == len(healthy)
    if healthy:
        rows_of_healthy = [
            row
            for member in found.models[CHAMPION].members
            for row in member.scope(VOLUMES).units
            if row.unit in healthy
        ]
        assert kept.metrics["test_lesion_free_ml"] == pytest.approx(np.mean([row.volume_ml for row in rows_of_healthy]))
        assert kept.metrics["test_lesion_free_lesions"] == np.mean([row.lesions_false for row in rows_of_healthy])
    ensemble = found.models[CHAMPION].ensemble
    assert ensemble is not None
    assert kept.metrics["test_dice_ensemble"] == pytest.approx(
        np.mean([row.dice for row in ensemble.scope(VOLUMES).units if row.has_lesions])
    )
    dices = [member.scope(VOLUMES).pooled.dice or 0.0 for member in found.models[CHAMPION].members]
    assert kept.metrics["test_volumes_dice"] == pytest.approx(np.mean(dices))
    opening = f"opening the sealed test of {data} for s: it has {{}}; each opening is recorded, "
    assert result.output.startswith(opening.format("not been opened before"))
    again = say("evaluate", "s", "--out", search.path.parent)
    assert again.output.startswith(opening.format("been opened 1 time before"))
    assert evaluation_of(search).opened_before == 1
    assert [line.by.run for line in openings(data)] == ["s", "s"]


def test_mlflow_has_the_scores_where_no_report_can_be_written(
    search: SearchDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wmlsearch.report.page.write_report", full)
    result = say("evaluate", "s", "--out", search.path.parent)
    assert (result.exit_code, "No space left" in result.stderr) == (1, True), result.output
    model = search.model(CHAMPION)
    kept = model.evaluation_metrics()
    assert kept is not None
    mirrored = connect(default_uri(search.path.parent)).get_run(model.ledger().run_id)
    assert mirrored.data.metrics["test_dice"] == pytest.approx(kept.metrics["test_dice"])


def test_other_data(search: SearchDir, raw: Path, data: Path, tmp_path: Path) -> None:
    """Another cohort may be cut otherwise: whole volumes are cut as the models want. Seen slices are refused."""
    write_phantom(tmp_path / "raw", patients=4, timepoints=1, shape=(40, 44, 12), seed=7)
    prepare(tmp_path / "raw", tmp_path / "other", PrepareOptions(size=48, jobs=1))
    out = ("--out", search.path.parent)
    result = say("evaluate", "s", "--data", tmp_path / "other", *out)
    assert result.exit_code == 0, result.output
    assert "have the ids of training or validation patients" in result.output
    assert search.evaluation() is None, "that of its own data is still to come"
    fingerprint = Manifest.read(tmp_path / "other").fingerprint
    assert len(evaluation_of(search, fingerprint).models[CHAMPION].members[0].scope(VOLUMES).rows) == 2
    seen = Manifest.read(data).certificate.patients["train"][:2]
    prepare(raw, tmp_path / "swapped", PrepareOptions(size=48, plane="sagittal", test_patients=seen, jobs=1))
    refused = say("evaluate", "s", "--data", tmp_path / "swapped", *out)
    assert refused.exit_code == 2
    assert (
        f"some of its test patients are training or validation patients of {data}, so the test would be meaningless"
        in refused.stderr
    )
    assert f"- patient '{seen[0]}' (sub-{seen[0]}/" in refused.stderr
    assert openings(tmp_path / "swapped") == []


def test_a_single_final_run(search: SearchDir) -> None:
    run = search.judgement_run("trial-0000", 1)
    result = say("evaluate", run.path, "--out", search.path.parent)
    assert result.exit_code == 0, result.output
    assert TrainedModel.from_run(run).threshold == evaluation_of(run).models["model"].members[0].threshold
    assert evaluation_of(run).metrics["test_volumes_dice"] >= 0
