"""The command line: help with examples, the exact words about the likeliest mistakes, no traceback, no slow import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from records import epoch_row, run_record, search_record

from wmlsearch.cli import HELP_WIDTH, main
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.space import SearchSpace, shipped

VERBS = [
    "phantom",
    "prepare",
    "describe",
    "train",
    "plan",
    "tune",
    "stop",
    "status",
    "evaluate",
    "report",
    "predict",
    "export",
    "sync",
    "ui",
]
Say = Callable[..., Result]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """`say("tune", "quick")` types `wmlsearch tune quick` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words], prog_name="wmlsearch")

    return run


# ------------------------------------------------------------------------------------------------------------- help


def test_the_verbs_stand_in_the_order_of_use(say: Say) -> None:
    result = say("--help")
    assert result.exit_code == 0
    listed = result.stdout.split("Commands:")[1]
    assert re.findall(r"^  (\w+) ", listed, re.MULTILINE) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(say: Say, verb: str) -> None:
    result = say(verb, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert re.search(rf"\bExample: wmlsearch {verb}\b", text)
    assert say(verb, "-h").stdout == result.stdout
    assert all(len(line) <= HELP_WIDTH for line in result.stdout.splitlines())
    for option in main.commands[verb].params:
        assert not isinstance(option, click.Option) or option.help, f"{verb}: {option.name} has no help"


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_are_valid_command_lines(verb: str) -> None:
    found = re.search(r"Example: wmlsearch (.+)", main.commands[verb].help or "")
    assert found
    words = found[1].split()
    assert words[0] == verb
    main.commands[verb].make_context(verb, words[1:])  # raises for an option that is not there


def test_the_version(say: Say) -> None:
    assert re.fullmatch(r"wmlsearch \d+\.\d+\.\d+\S*\n", say("--version").stdout)


def test_the_command_line_imports_nothing_slow() -> None:
    heavy = ("torch", "ray", "mlflow", "numpy", "optuna", "matplotlib", "pydantic", "rich", "nibabel", "pandas")
    code = (
        "import sys\nfrom wmlsearch.cli import main\n"
        f"try: main(['--help'])\nfinally: print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    assert done.stdout.splitlines()[-1] == "[]"


# --------------------------------------------------------------------------------------------------------- mistakes


def refused(result: Result) -> str:
    """The message of a refusal, whole: nothing but it on standard error, status 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("wmlsearch: ")
    return result.stderr.removeprefix("wmlsearch: ").removesuffix("\n")


def test_no_such_data(say: Say, tmp_path: Path) -> None:
    wanted = "nowhere: no such folder; make it with `wmlsearch prepare RAW nowhere`"
    assert refused(say("tune", "quick", "--data", "nowhere")) == wanted
    assert refused(say("train", "paper", "--data", "nowhere")) == wanted
    (tmp_path / "empty").mkdir()
    assert refused(say("tune", "quick", "--data", "empty")) == (
        "empty: not a prepared data set, manifest.json is missing; make it again with `wmlsearch prepare`"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # no run was begun


def test_no_such_space(say: Say) -> None:
    names = ", ".join(sorted(path.stem for path in shipped().glob("*.yaml")))
    for verb in ("tune", "train"):
        assert refused(say(verb, "unett")) == f"unett: no such file, and not one of the shipped search spaces: {names}"
    assert refused(say("tune", "spaces/u.yaml")).startswith(
        "spaces/u.yaml: no such file, and not one of the shipped search spaces"
    )


def test_faults_in_a_file(say: Say, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "dropuot: 0.1\ndepth: {low: 4, high: 3}\nlearning_rate: true\nschedule: {choices: [plato]}\n"
    )
    for verb in ("tune", "train"):
        assert refused(say(verb, "my.yaml")) == (
            "my.yaml: not a valid search space\n"
            "  - unknown name 'dropuot': did you mean 'dropout'?\n"
            "  - depth: low < high must hold, but got (low=4, high=3)\n"
            "  - learning_rate must be a valid number, but got True\n"
            "  - schedule must be plateau, cosine, poly, step, onecycle or constant, but got 'plato'"
        )


def test_a_point_given_to_tune_and_a_space_to_train(say: Say, tmp_path: Path) -> None:
    assert refused(say("tune", "paper")) == (
        "paper: has only values and no ranges, so there is nothing to search; train it with `wmlsearch train paper`"
    )
    (tmp_path / "s.yaml").write_text("depth: {choices: [2, 3]}\nloss: dice\n")
    assert refused(say("train", "s.yaml")) == (
        "s.yaml: must give each name one value, but depth has several; search them with `wmlsearch tune`"
    )


def test_a_name_that_is_taken_or_none(say: Say, prepared: Path) -> None:
    RunDir.create(Path("runs/mine"), run_record()).set_status("completed")
    wanted = (
        "runs/mine: there is a run of this name already (state: completed), and nothing is overwritten; "
        "choose another --name, or delete the folder"
    )
    assert refused(say("tune", "quick", "--data", prepared, "--name", "mine")) == wanted
    assert refused(say("train", "paper", "--data", prepared, "--name", "mine", "--workers", 0)) == wanted
    assert refused(say("tune", "quick", "--name", "../mine")) == (
        "--name '../mine': letters, digits, '.', '_' and '-' only, at most 100, not starting with a sign"
    )


def test_numbers_out_of_range(say: Say) -> None:
    assert refused(say("tune", "quick", "--trials", -1, "--epochs", 0, "--max-hours", -2)) == (
        "these options cannot be used\n"
        "  - --epochs must be greater than or equal to 1, but got 0\n"
        "  - --trials must be greater than or equal to 1, but got -1\n"
        "  - --max-hours must be greater than 0, but got -2.0"
    )
    assert refused(say("train", "paper", "--workers", -1)) == (
        "--workers must be 0 (in this process) or more, but got -1"
    )
    assert refused(say("train", "paper", "--seed", -1)) == (
        "these options cannot be used\n  - --seed must be greater than or equal to 0, but got -1"
    )


def test_an_image_level_split_has_to_be_allowed(say: Say, raw: Path, tmp_path: Path) -> None:
    assert refused(say("prepare", raw, "out", "--split", "image")) == (
        "the options do not fit together\n"
        "  - --split image puts slices of one patient into train and test, so results look better than they are "
        "(leakage); split by patient, or add --allow-leakage to do it and have it marked everywhere"
    )
    assert list(tmp_path.iterdir()) == []


def test_more_workers_than_there_are_cores(say: Say, prepared: Path, tmp_path: Path) -> None:
    workers = len(os.sched_getaffinity(0)) + 1
    (tmp_path / "big.yaml").write_text("depth: 2\nbatch_size: 48\n")
    message = refused(say("train", "big.yaml", "--data", prepared, "--workers", workers))
    assert str(workers) in message
    assert re.search(r"workers?\b.*\bCPUs?\b", message)
    assert "\n" not in message
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_slices_in_a_batch(say: Say, prepared: Path) -> None:
    assert refused(say("train", "paper", "--data", prepared, "--workers", 6)) == (
        "this configuration cannot be trained on this data\n"
        "  - each worker needs a slice of each batch, but batch_size=5 of 48 slices makes batches of 4 for 6 workers: "
        "raise `batch_size` or use fewer workers"
    )


def test_raw_data_without_images(say: Say, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    kinds = (
        "RAW must be a CSV table (patient,timepoint,image,mask), a folder with images/ and masks/, a BIDS folder "
        "(sub-*/), an nnU-Net folder (imagesTr/, labelsTr/) or a MONAI or Decathlon list (datalist.json)"
    )
    assert refused(say("prepare", "empty", "out")) == f"empty: {kinds}; a table can name files of any other order"
    assert refused(say("prepare", "nowhere", "out")) == f"nowhere: no such file or folder; {kinds}"
    assert not (tmp_path / "out").exists()


def test_a_bad_shape(say: Say, tmp_path: Path) -> None:
    for shape in ("12x12", "64", "64x64x-1", "axbxc"):
        assert refused(say("phantom", "out", "--shape", shape)) == (
            f"--shape {shape!r}: must be three numbers like 128x128x24 (right, anterior, superior)"
        )
    assert refused(say("phantom", "out", "--shape", "8x8x8", "--patients", 0)) == (
        "phantom: nothing was written\n"
        "  - patients: must be a whole number from 1 to 9999, but got 0\n"
        "  - shape: must be from 32x32x8 to 512x512x512 voxels, but got 8x8x8"
    )
    assert list(tmp_path.iterdir()) == []


def test_nothing_there_yet(say: Say) -> None:
    wanted = "runs: has no search or run; start one with `wmlsearch tune`, or give --out"
    assert refused(say("status")) == wanted
    assert refused(say("sync")) == wanted
    assert refused(say("status", "mine")) == (
        "mine: no search or run of this name in runs (it has: none), and not a path to one"
    )
    assert refused(say("ui")).endswith(
        "/runs/mlflow.db: no MLflow store there yet; run `wmlsearch tune` first, or give --out"
    )


@pytest.mark.parametrize(
    "words", [["tune", "--trails", "3"], ["tune", "--trials", "many"], ["train"], ["tuen"], ["prepare", "raw"]]
)
def test_what_click_refuses(say: Say, words: list[str]) -> None:
    result = say(*words)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output


# ------------------------------------------------------------------------------------------------ interrupted, broken


def test_ctrl_c_is_one_line(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wmlsearch.data.phantom.write_phantom", interrupt)
    result = say("phantom", "out")
    assert (result.exit_code, result.stderr) == (130, "wmlsearch: stopped by Ctrl-C\n")


def test_an_error_of_ours_is_one_line_unless_asked(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("oh")

    monkeypatch.setattr("wmlsearch.data.phantom.write_phantom", fail)
    result = say("phantom", "out")
    assert (result.exit_code, result.stderr) == (
        1, "wmlsearch: unexpected RuntimeError: oh; for the traceback, to report it: wmlsearch --debug phantom out\n",
    )  # fmt: skip
    result = say("--debug", "phantom", "out")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr


def test_a_problem_with_a_file_is_one_line(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr("wmlsearch.data.phantom.write_phantom", fail)
    result = say("phantom", "out")
    assert (result.exit_code, result.stderr) == (
        1, "wmlsearch: out: No space left on device; existing files are intact; free some space (see `df`) and run "
        "the command again\n",
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- it goes on


def test_phantom_then_prepare(say: Say, tmp_path: Path) -> None:
    result = say("phantom", "raw", "--patients", 3, "--timepoints", 1, "--shape", "32x32x8", "--seed", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "volumes: 3 of 3\nwrote 3 patients with 1 scan each to raw; next: wmlsearch prepare raw prepared\n"
    )
    result = say(
        "prepare", "raw", "prepared", "--size", 32, "--fit", "resize", "--jobs", 1, "--keep", "all",
        "--train-patients", "sub-01", "--val-patients", "03", "--test-patients", " 02 ",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    head = lines.index(["split", "patients", "scans", "slices", "used", "lesion"])
    rows = lines[head + 1 : head + 4]
    assert [row[:-6] for row in rows] == [["train"], ["val"], ["test", "(sealed)"]]
    assert [row[-6:-2] for row in rows] == [["1", "1", "8", "8"]] * 3
    assert all(re.fullmatch(r"\d+\.\d\d %", " ".join(row[-2:])) for row in rows)
    assert result.stdout.splitlines()[-2:] == [
        "native slices of 32 x 32 pixels are in prepared",
        "check the slices in prepared/contact_sheet.png; next: wmlsearch tune --data prepared",
    ]
    assert (tmp_path / "prepared" / "contact_sheet.png").is_file()
    again = "prepared: exists already and is not an empty folder; name another OUT or remove it"
    assert refused(say("prepare", "raw", "prepared")) == again
    assert refused(say("phantom", "raw")).endswith(
        "raw: exists already and is not an empty folder; name another OUT or remove it"
    )


def about(name: str, kind: str, **more: Any) -> dict[str, Any]:
    data = {"name": "prepared", "fingerprint": "f00d", "split": "patient", "optimistic": False}
    settings = RunSettings(epochs=3, trials=2).model_dump()
    return {"name": name, "kind": kind, "settings": settings, "data": data, **more}


def row(epoch: int, dice: float) -> dict[str, Any]:
    values = {
        "train_loss": 0.5,
        "val_loss": 0.6,
        "val_dice_patients_best": dice,
        "val_dice_best": dice / 2,
        "epoch_s": 1.25,
    }
    return {"epoch": epoch, "time": 1.8e9 + epoch, "ended": None, **values}


def test_status_prints_the_leaderboard(say: Say) -> None:
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 4]}}, "mine.yaml")
    values = {"source": "mine.yaml", "values": space.to_mapping()}
    search = SearchDir.create(Path("runs/mine"), search_record(about("mine", "search", space=values)))
    for number, (depth, dices) in enumerate(((4, [0.1, 0.3, 0.2]), (2, [0.5]))):
        config = TrialConfig(depth=depth).model_dump()
        run = RunDir.create(search.trial(number).path, run_record(about(f"trial-{number:04d}", "trial", config=config)))
        for epoch, dice in enumerate(dices, start=1):
            run.append(epoch_row(row(epoch, dice)))
    search.trial(0).set_status("completed")
    search.set_status("completed")
    result = say("status", "mine")
    assert result.exit_code == 0, result.output
    assert say("status").stdout == say("status", "runs/mine").stdout == result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.stdout.splitlines()[0].rstrip() == "mine: completed, 2 of 2 trials on prepared"
    start = lines.index(["rank", "trial", "val_dice_patients_best", "epochs", "state", "depth"])
    assert lines[start + 1 : start + 3] == [
        ["1", "trial-0001", "0.5000", "1", "running", "2"],
        ["2", "trial-0000", "0.3000", "3", "completed,", "baseline", "4"],
    ]


def test_status_of_a_training(say: Say) -> None:
    run = RunDir.create(Path("runs/one"), run_record(about("one", "train", config=TrialConfig().model_dump())))
    run.append(epoch_row(row(1, 0.25)))
    run.set_status("diverged", "the loss is not finite")
    assert say("status", "one").stdout == (
        "epoch   1 of 3   train_loss 0.5000   val_loss 0.6000   val_dice_patients_best 0.2500   val_dice_best 0.1250   "
        "1.2 s\n"
        "one: diverged the loss is not finite\n"
    )


def test_train_in_this_process(say: Say, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("depth: 2\nbase_channels: 4\n")
    result = say("train", "p.yaml", "--data", prepared, "--workers", 0, "--epochs", 2, "--name", "one")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"training p.yaml on {prepared} for at most 2 epochs, in runs/one"
    assert [line[:14] for line in lines if line.startswith("epoch ")] == ["epoch   1 of 2", "epoch   2 of 2"]
    assert lines[-4:] == [
        "completed",
        "weights of the best epoch: runs/one/best.pt",
        "results: runs/one",
        "compare in MLflow: wmlsearch ui",
    ]
    assert [entry.epoch for entry in RunDir(Path("runs/one")).rows()] == [1, 2]


@pytest.mark.parametrize(("option", "hint"), [("--orientation", ""), ("--test-patient", "'--test-patients'")])
def test_an_option_is_suggested_only_where_it_is_alike(option: str, hint: str) -> None:
    result = CliRunner().invoke(main, ["prepare", "raw", "out", option, "x"], prog_name="wmlsearch")
    assert result.exit_code == 2
    assert f"No such option '{option}'" in result.stderr
    assert hint in result.stderr
    assert ("Did you mean" in result.stderr) == bool(hint)
