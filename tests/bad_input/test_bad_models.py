"""Bad checkpoints, exported models and images to predict: damaged, foreign, or with a pickle that runs code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from records import run_record

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.model.training import epochs
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search.checkpoints import Checkpoints
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.preflight import check_checkpoints

Refused = Callable[..., str]
Change = Callable[[Path], object]
RESTORE_HINT = "restore it from a copy, or delete it and train again"
TRIAL, BEST = "runs/s/trials/0000", "runs/s/trials/0000/best.pt"
CONFIG = TrialConfig(depth=2, base_channels=4)
SHAPE = {"workers_per_trial": 1, "gpus_per_worker": None}


class Trap:
    """An object that creates the folder "made" when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("made",)


@pytest.fixture
def search(searched: SearchDir, prepared: Path, tmp_path: Path, refused: Refused) -> SearchDir:
    """A copy of the search, in the working folder, whose only trial was interrupted."""
    copy = SearchDir(Path(shutil.copytree(searched.path, tmp_path / "runs" / "s")))
    about = {**copy.record().as_json(), "shape": SHAPE, "data_path": str(prepared)}
    copy.file("record").write_text(json.dumps(about))
    copy.trial(0).set_status("interrupted", "stopped by Ctrl-C")
    return copy


def state(**changes: Any) -> Change:
    """Return a change that replaces values in a checkpoint; `...` removes one."""

    def apply(path: Path) -> None:
        content = {**torch.load(path, weights_only=True), **changes}
        torch.save({name: value for name, value in content.items() if value is not ...}, path)

    return apply


def report(**changes: Any) -> Change:
    """Return a change of the report, in a checkpoint of an older version, whose threshold is the report's."""

    def apply(path: Path) -> None:
        state(report={**torch.load(path, weights_only=True)["report"], **changes}, threshold=...)(path)

    return apply


def weights(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(path: Path) -> None:
        tensors = torch.load(path, weights_only=True)["model"]
        change(tensors)
        state(model=tensors)(path)

    return apply


def pickled(protocol: int) -> Change:
    return lambda path: path.write_bytes(pickle.dumps(Trap(), protocol))


def unreadable(kind: str) -> str:
    return f"{BEST}: not a readable checkpoint ({kind}); {RESTORE_HINT}"


def foreign(why: str) -> str:
    return f"{BEST}: not a checkpoint of wmlsearch ({why}); restore it from a copy"


OTHER = f"{BEST}: not a checkpoint of wmlsearch (format 1); {RESTORE_HINT}"
UNFIT = f"{BEST}: the weights do not fit the configuration\n  - "
THRESHOLD = "must be a number above 0 and below 1, but got"

CHECKPOINTS: dict[str, tuple[Change, str]] = {
    "empty": (lambda path: path.write_bytes(b""), unreadable("EOFError")),
    "text": (lambda path: path.write_text("hello"), unreadable("KeyError")),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), unreadable("OSError")),
    **{
        f"a pickle that runs something, protocol {protocol}": (
            pickled(protocol),
            unreadable("UnpicklingError"),
        )
        for protocol in (0, 2, 5)
    },
    "one that runs something within": (state(model={"head.weight": Trap()}), unreadable("UnpicklingError")),
    "a list": (lambda path: torch.save([1], path), OTHER),
    "weights only": (lambda path: torch.save(torch.load(path, weights_only=True)["model"], path), OTHER),
    "another format": (state(format=2), OTHER),
    "no configuration": (state(config=...), foreign("KeyError: 'config'")),
    "a configuration with a typo": (
        state(config={"detph": 3}),
        f"{BEST}: not a valid configuration\n  - unknown name 'detph': did you mean 'depth'?",
    ),
    "no report": (state(report=None, threshold=...), foreign("TypeError: 'NoneType' object is not subscriptable")),
    "no threshold": (state(threshold=None), foreign(
        "TypeError: float() argument must be a string or a real number, not 'NoneType'"
    )),
    "a threshold that is none": (state(threshold=float("nan")), f"{BEST}: threshold: {THRESHOLD} nan"),
    "a threshold above all": (state(threshold=2.0), f"{BEST}: threshold: {THRESHOLD} 2.0"),
    "an old threshold that is none": (
        report(val_threshold=float("nan")), f"{BEST}: val_threshold: {THRESHOLD} nan"
    ),
    "a seed that is none": (
        state(seed=float("inf")),
        foreign("OverflowError: cannot convert float infinity to integer"),
    ),
    "a tensor less": (weights(lambda model: model.pop("head.bias")), f"{UNFIT}head.bias is missing"),
    "a tensor more": (
        weights(lambda model: model.update(tail=torch.zeros(1))),
        f"{UNFIT}tail is not part of the network",
    ),
    "a tensor of another shape": (
        weights(lambda model: model.update({"head.bias": torch.zeros(2)})),
        f"{UNFIT}head.bias must be [1] float32, but is [2] float32",
    ),
    "weights that are no numbers": (
        weights(lambda model: model.update({"head.bias": torch.full((1,), torch.nan)})),
        f"{UNFIT}head.bias has values that are not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint(name: str, search: SearchDir, refused: Refused, prepared: Path) -> None:
    change, message = CHECKPOINTS[name]
    change(Path(BEST))
    ledger = (prepared / "sealed/seal.jsonl").read_bytes()
    for verb in (("predict", TRIAL, "x.nii.gz", "--out", "o"), ("export", TRIAL, "e")):
        assert refused(*verb) == message
    assert refused("evaluate", TRIAL, "--data", prepared) == message
    assert (prepared / "sealed/seal.jsonl").read_bytes() == ledger, "the sealed test was not opened for it"
    assert sorted(path.name for path in Path().iterdir()) == ["runs"], "nothing was run or made"


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a readable checkpoint (EOFError)"),
        (b"PK\x03\x04", "not a readable checkpoint (RuntimeError)"),
        (pickle.dumps(Trap()), "not a readable checkpoint (UnpicklingError)"),
    ],
    ids=["empty", "cut", "a pickle that runs something"],
)
def test_search_does_not_resume_from_a_bad_checkpoint(
    content: bytes, why: str, search: SearchDir, refused: Refused
) -> None:
    search.trial(0).last.write_bytes(content)
    assert refused("tune", "--resume", "s") == (
        f"s: cannot be resumed from its checkpoints\n  - {TRIAL}/last.pt: {why}; {RESTORE_HINT}"
    )
    assert not Path("made").exists()
    assert search.status().state == "completed", "it was not begun again"


@pytest.fixture
def killed(search: SearchDir) -> SearchDir:
    """The same search, killed when its trial had five epochs of six."""
    run = search.trial(0)
    run.reconcile(run.rows()[:5])
    run.set_status("running")
    return search


LOST = (
    f"s: cannot be resumed from its checkpoints\n  - {TRIAL}: its checkpoint after epoch 5 is not in PLACE; give "
    "--storage (or WMLSEARCH_STORAGE) as before, or delete this folder to train it again"
)


@pytest.mark.usefixtures("no_ray")
def test_search_does_not_resume_without_its_checkpoint(killed: SearchDir, refused: Refused) -> None:
    """Without the check, the trial would restart at its first epoch, and its rows would be deleted."""
    rows = killed.trial(0).rows()
    assert refused("tune", "--resume", "s") == LOST.replace("PLACE", str(Path(TRIAL).absolute()))
    killed.change_settings(killed.record().settings, storage=str(Path("kept").absolute()))
    kept = Path("kept/s/trials/0000").absolute()
    assert refused("tune", "--resume", "s") == LOST.replace("PLACE", str(kept)), (
        "a search is resumed from its first storage"
    )
    other_folder = Path("elsewhere/s/trials/0000").absolute()
    assert refused("tune", "--resume", "s", "--storage", "elsewhere") == LOST.replace("PLACE", str(other_folder))
    assert killed.trial(0).rows() == rows
    killed.change_settings(killed.record().settings, storage="s3://me:***@bucket/x")
    assert refused("tune", "--resume", "s") == (
        "s: its checkpoints are in s3://me:***@bucket/x, and the password is not stored; give --storage (or "
        "WMLSEARCH_STORAGE) with the password"
    )


def test_search_can_be_resumed_after_a_crash_at_any_write(killed: SearchDir) -> None:
    """A run writes its checkpoint first, then the epoch's row, and its final state last."""
    run, placement = killed.trial(0), Placement(storage=str(Path("kept").absolute()))
    with pytest.raises(InputError, match="after epoch 5 is not in"):
        check_checkpoints(killed, placement)
    Path(placement.checkpoint_location(run)).mkdir(parents=True)
    Checkpoints(placement.checkpoint_location(run)).last.touch()
    check_checkpoints(killed, placement)
    run.reconcile([])
    Checkpoints(placement.checkpoint_location(run)).last.unlink()
    check_checkpoints(killed, placement)  # before its first epoch
    final = killed.judgement_run("trial-0000", 0)
    final.set_status("running")
    check_checkpoints(killed, placement)  # its last row has the final state
    final.reconcile(final.rows()[:5])
    with pytest.raises(InputError, match="trial-0000-run0: its checkpoint after epoch 5"):
        check_checkpoints(killed, placement)
    final.set_status("completed")
    check_checkpoints(killed, placement)
    parent = {"parent": 3, "parent_epoch": 2}  # a child's checkpoint is stored before its folder exists
    RunDir.create(killed.trial(1).path, run_record({**run.record().as_json(), **parent}))
    with pytest.raises(InputError, match=r"trials/0001: its checkpoint after epoch 2"):
        check_checkpoints(killed, placement)


# Damaged checkpoints of a resumed training: the changes, and the expected reason.
DAMAGED = {
    "no optimizer": ({"optimizer": ...}, "KeyError: 'optimizer'"),
    "an optimizer of text": ({"optimizer": "adam"}, "AttributeError: 'str' object has no attribute 'copy'"),
    "no weights": ({"model": {}}, "RuntimeError: Error(s) in loading state_dict for UNet: "),
    "reports of nothing": ({"reports": 5}, "TypeError: object of type 'int' has no len()"),
    "reports of text": (
        {"reports": ["x"]},
        "ValueError: dictionary update sequence element #0 has length 1; 2 is required",
    ),
    "a report less": (
        {"reports": [{"epoch": 2, "time": 0.0, "ended": None}]},
        "ValueError: its reports are not those of consecutive epochs",
    ),
    "threads of text": ({"threads": "all"}, "TypeError: '<' not supported between instances of 'int' and 'str'"),
    "threads below nothing": ({"threads": -1}, "RuntimeError: "),
}


@pytest.fixture(scope="module")
def checkpoint(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    next(epochs(CONFIG, data, max_epochs=3, last=path))
    return path


@pytest.mark.parametrize("name", DAMAGED)
def test_training_does_not_resume_from_a_damaged_checkpoint(
    name: str, data: PreparedData, checkpoint: Path, tmp_path: Path
) -> None:
    changes, why = DAMAGED[name]
    path = Path(shutil.copy(checkpoint, tmp_path))
    state(**changes)(path)
    with pytest.raises(InputError) as error:
        next(epochs(CONFIG, data, max_epochs=3, last=path))
    assert str(error.value).startswith(f"{path}: is damaged ({why}")
    assert str(error.value).endswith(f"); {RESTORE_HINT}")


def test_checkpoint_with_tensors_in_place_of_text(data: PreparedData, checkpoint: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(checkpoint, tmp_path))
    state(seed=torch.zeros(3), data="x" * 2000)(path)
    with pytest.raises(InputError) as error:
        next(epochs(CONFIG, data, max_epochs=3, last=path))
    assert len(str(error.value)) < 1000


EXPORT = "runs/s/models/champion/export"


def safetensors(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        pickle.dumps(Trap()),
        safetensors(b"{}", 2**63),
        safetensors(b"[" * 9999),
        safetensors(b"\xff{}"),
    ],
    ids=["empty", "a checkpoint", "a pickle", "a huge header", "depths", "no text"],
)
def test_invalid_safetensors_are_refused(content: bytes, search: SearchDir, refused: Refused) -> None:
    Path(EXPORT, "member-0.safetensors").write_bytes(content)
    for verb in (("predict", "s", "x.nii.gz", "--out", "o"), ("export", EXPORT, "e")):
        message = refused(*verb)
        assert message.startswith(f"{EXPORT}/member-0.safetensors: not a readable safetensors file (")
        assert message.endswith("); export the model again")
    assert sorted(path.name for path in Path().iterdir()) == ["runs"], "nothing was run or made"


def test_model_cannot_reference_files_outside_its_folder(search: SearchDir, refused: Refused) -> None:
    path = Path(EXPORT, "model.json")
    about = json.loads(path.read_text())
    about["members"][0]["file"] = about["members"][0]["name"] = "../../../secret"
    path.write_text(json.dumps(about))
    Path(EXPORT, "member-0.safetensors").unlink()
    assert refused("predict", "s", "x.nii.gz", "--out", "o") == (
        f"{EXPORT}/member-0.safetensors: is missing; copy the whole folder, or export the model again"
    )


# ---------------------------------------------------------------------------------------------------- images to predict


def link(target: str) -> Change:
    return lambda path: path.symlink_to(target)


IMAGES: dict[str, tuple[str, Change, str]] = {
    "a loop of links": ("x.nii.gz", link("x.nii.gz"), "x.nii.gz: no such file or folder; check the path"),
    "a folder without images": (
        "x",
        lambda path: path.mkdir(),
        "x: no image in this folder; .nii, .nii.gz, .png, .tif, .tiff, .jpg, .jpeg, or BIDS "
        "(sub-*/[ses-*/]anat/*_FLAIR.nii.gz)",
    ),
    "an empty volume": (
        "x.nii",
        lambda path: path.touch(),
        "x.nii: cannot be read (Empty file: 'x.nii'); replace the file",
    ),
    "a picture for a model of volumes": (
        "x.png",
        lambda path: path.touch(),
        "x.png: is a picture, but the model was trained on volumes; choose another model",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_to_predict(name: str, search: SearchDir, refused: Refused) -> None:
    given, make, fault = IMAGES[name]
    make(Path(given))
    assert refused("predict", "s", given, "--out", "o") == f"1 fault, nothing was written\n  - {fault}"
    assert not Path("o").exists()


def test_unusable_prediction_folders_are_refused(search: SearchDir, raw: Path, refused: Refused) -> None:
    image = next(raw.glob("sub-01/**/*_FLAIR.nii.gz"))
    Path("file").touch()
    assert refused("predict", "s", image, "--out", "file") == "--out file: is a file; name a folder"
    assert refused("predict", "s", image, "--out", "file/o") == (
        f"--out file/o: {Path.cwd() / 'file'} is a file; name a folder"
    )
    assert refused("predict", "s", image, "--out", "x" * 300) == (
        f"{'x' * 300}: File name too long; choose a shorter name"
    )
    assert refused("export", "s", "file/e") == "file/e: cannot be written (File exists); nothing was left there"
