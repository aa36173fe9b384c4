"""Recordings with sealed patients: an interrupted recording goes on, and other files are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.search_quality import sealed_record as recorder
from benchmarks.search_quality.sealed_record import HERE, NEAR, SPACE, Key, Training, draw, keys, read, record
from benchmarks.search_quality.sealed_tasks import SEALED_TASKS, Division, SealedTask
from benchmarks.search_quality.surrogate import division_configurations
from wmlsearch.config import TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.model.steps import Diverged
from wmlsearch.space import SearchSpace

DIVISIONS = (Division(("01",), ("02",), ("03", "04")), Division(("03",), ("04",), ("02",)))
TINY = SealedTask(DIVISIONS, size=16, epochs=2, cohort="easy", shape=(32, 32, 8))
WIDE = SearchSpace.read(HERE / SPACE)
SMALL = SearchSpace.from_mapping(
    {
        "depth": 1,
        "base_channels": 2,
        "input_slices": {"choices": [1, 3]},
        "intensity": {"choices": ["range", "zscore"]},
    }
)


def record_tiny(path: Path, space: SearchSpace = SMALL, until: int = 2) -> list[str]:
    messages: list[str] = []
    record("tiny", path, TINY, space, until=until, tell=messages.append)
    return messages


def facts(path: Path) -> list[Training]:
    return [replace(training, seconds=0.0) for training in read("tiny", path)]


@pytest.fixture(scope="module", autouse=True)
def _data_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folders = TINY.prepare(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SealedTask, "prepare", lambda *_: folders)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "tiny.jsonl"
    record_tiny(path)
    return path


def test_each_training_has_whole_curves_and_sealed_patients(whole: Path) -> None:
    trainings = facts(whole)
    assert [training.key for training in trainings] == [Key(0, 0, 0), Key(0, 0, 1), Key(0, 1, 0), Key(0, 1, 1),
                                                        Key(1, 0, 0), Key(1, 0, 1)]  # fmt: skip
    assert all(len(training.objective) == len(training.sealed) == 2 for training in trainings)
    assert [len(training.sealed[0]) for training in trainings[:2]] == [2, 1]
    assert trainings[0].values == SMALL.active_values(TrialConfig()), "the first is the baseline"
    assert trainings[0].objective != trainings[2].objective, "another seed is another training"


@pytest.mark.parametrize("torn", [0, 1, 30, 0.5])
def test_recording_goes_on_where_it_was_cut(whole: Path, tmp_path: Path, torn: float) -> None:
    text = whole.read_text()
    lines = text.splitlines(keepends=True)
    cut = {0: "", 1: text[:40], 30: "".join(lines[:3]) + lines[3][:30], 0.5: "".join(lines[:4])}[torn]
    path = tmp_path / "tiny.jsonl"
    path.write_text(cut)
    messages = record_tiny(path)
    assert facts(path) == facts(whole)
    assert len(messages) == 6 - max(0, cut.count("\n") - 1)
    before = path.read_bytes()
    assert record_tiny(path) == []
    assert path.read_bytes() == before


def test_file_of_another_space_is_refused(whole: Path) -> None:
    other = SearchSpace.from_mapping({**SMALL.to_mapping(), "depth": {"choices": [1, 2]}}, "other")
    with pytest.raises(InputError, match="was not recorded from other for tiny"):
        record_tiny(whole, other)


def test_training_that_diverges_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverging(recorder.Trainer):
        def validate(self) -> object:  # type: ignore[override]
            if self.rows:
                raise Diverged("the validation loss is not finite")
            return super().validate()

    monkeypatch.setattr(recorder, "Trainer", Diverging)
    record_tiny(tmp_path / "tiny.jsonl", until=1)
    trainings = facts(tmp_path / "tiny.jsonl")
    assert all(training.diverged and len(training.objective) == 1 for training in trainings)
    assert len(record_tiny(tmp_path / "tiny.jsonl", until=1)) == 0


def test_curve_of_a_training_that_diverged_ends_with_zeros(tmp_path: Path) -> None:
    task = SEALED_TASKS["ms-flair"]
    trainings = [
        Training(Key(0, 0, 1), {}, (0.3, 0.2), ((0.1,), (0.2,)), 1.0, diverged=True),
        Training(Key(0, 1, 1), {}, (0.5,) * task.epochs, ((0.4,),) * task.epochs, 1.0),
        Training(Key(0, 0, 0), {}, (0.5,) * task.epochs, ((0.4,),) * task.epochs, 1.0),
    ]
    path = tmp_path / "ms-flair.jsonl"
    path.write_text(json.dumps({"format": 1}) + "\n" + "".join(training.as_line() for training in trainings))
    (recorded,) = division_configurations("ms-flair", 1, path)
    assert recorded.objective[0].tolist() == [0.3, 0.2] + [0.0] * (task.epochs - 2)
    assert recorded.sealed is not None
    assert recorded.sealed.shape == (2, task.epochs)


def test_space_of_the_recordings_has_the_baseline_and_trainable_configurations() -> None:
    assert WIDE.mismatches(TrialConfig()) == []
    assert draw(WIDE, 0) == WIDE.active_values(TrialConfig())
    for number in range(1, 40):
        WIDE.config(draw(WIDE, number))


def test_each_real_patient_is_sealed_once() -> None:
    divisions = SEALED_TASKS["ms-flair"].divisions
    assert sorted(division.sealed for division in divisions) == [("07",), ("19",), ("26",)]
    assert all({*each.train, *each.val, *each.sealed} == {"07", "19", "26"} for each in divisions)
    assert len(list(keys(SEALED_TASKS["ms-flair"], 4, 3))) == 3 * (6 + 4)


def test_real_volumes_are_thinned_out(tmp_path: Path) -> None:
    from benchmarks.search_quality.sealed_tasks import thin_out

    affine = np.diag([2.0, 2.0, 1.0, 1.0])
    (tmp_path / "raw").mkdir()
    voxels = np.arange(2 * 2 * 7, dtype=np.int16).reshape(2, 2, 7)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "raw" / "a.nii.gz")
    volume = nib.load(thin_out(tmp_path / "raw", tmp_path / "out", 3) / "a.nii.gz")
    assert np.asanyarray(volume.dataobj).tolist() == voxels[:, :, ::3].tolist()
    assert volume.header.get_zooms()[2] == 3


def test_near_configurations_change_some_hyperparameters_of_the_baseline() -> None:
    baseline = TrialConfig().model_dump()
    shares = []
    for number in range(NEAR, NEAR + 200):
        values = draw(WIDE, number)
        assert values == WIDE.active_values(WIDE.config(values))
        shares.append(np.mean([values[name] == baseline[name] for name in values]))
    assert 0.6 < np.mean(shares) < 0.85  # a part of what is drawn has the baseline's value, too
    assert draw(WIDE, NEAR) != draw(WIDE, NEAR + 1)
    assert draw(WIDE, NEAR) == draw(WIDE, NEAR)
