"""Bad options of every command: negative, zero, huge, contradicting, empty. They are refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]
pytestmark = pytest.mark.usefixtures("no_ray")

OPTIONS = "these options cannot be used\n  - "
PHANTOM = "phantom: nothing was written\n  - "
STORES = (
    "give --mlflow-uri (or MLFLOW_TRACKING_URI) a server or a database, such as http://127.0.0.1:5000 or "
    "sqlite:///PATH/mlflow.db"
)
FOLDERS = f"is a folder, and MLflow no longer supports stores in folders; {STORES}"
LONG = "x" * 300

# Command lines (DATA stands for prepared data) and the expected messages.
REFUSED: dict[str, str] = {
    # phantom
    "phantom out --patients -1": f"{PHANTOM}patients: must be a whole number from 1 to 9999, but got -1",
    "phantom out --patients 10000000": f"{PHANTOM}patients: must be a whole number from 1 to 9999, but got 10000000",
    "phantom out --lesion-size 5": f"{PHANTOM}lesion_size: must be a number from 0.5 to 3, but got 5.0",
    "phantom out --lesion-size nan": f"{PHANTOM}lesion_size: must be a number from 0.5 to 3, but got nan",
    "phantom out --timepoints 0": f"{PHANTOM}timepoints: must be a whole number from 1 to 99, but got 0",
    "phantom out --timepoints 100": f"{PHANTOM}timepoints: must be a whole number from 1 to 99, but got 100",
    "phantom out --seed -1": f"{PHANTOM}seed: must be a whole number from 0 to 9223372036854775808, but got -1",
    "phantom out --shape 9999x9999x9999": (
        f"{PHANTOM}shape: must be from 32x32x8 to 512x512x512 voxels, but got 9999x9999x9999"
    ),
    "phantom file": f"{PHANTOM}file: exists already and is not an empty folder; name another OUT or remove it",
    "phantom file/out --patients 1 --shape 32x32x8": "file: File exists; a file is in the way; name another path",
    f"phantom {LONG}": f"{PHANTOM}{LONG}: cannot be used as OUT (File name too long); name another",
    # prepare
    "prepare file out --size 15": (
        "the options do not fit together\n  - --size must be a whole number from 16 to 4096, but got 15"
    ),
    "prepare file out --size 1000000000": (
        "the options do not fit together\n  - --size must be a whole number from 16 to 4096, but got 1000000000"
    ),
    "prepare file out --seed -1": (
        "the options do not fit together\n"
        "  - --seed must be a whole number from 0 to 9223372036854775807, but got -1"
    ),
    "prepare file out --jobs -1": (
        "the options do not fit together\n  - --jobs must be a whole number from 1 to 1024, but got -1"
    ),
    "prepare file out --mask-threshold inf": (
        "the options do not fit together\n  - --mask-threshold must be a finite number, but got inf"
    ),
    "prepare file out --protocol paper --plane axial": (
        "the options do not fit together\n"
        "  - --protocol paper means --plane sagittal, but got --plane axial; drop one"
    ),
    "prepare file out --split image --allow-leakage --val-patients 1": (
        "the options do not fit together\n"
        "  - --train-patients, --val-patients and --test-patients need --split patient; drop them"
    ),
    f"prepare {LONG} out": f"{LONG}: cannot be read (File name too long); check the path and its permissions",
    # train
    "train paper --data DATA --epochs -5": f"{OPTIONS}--epochs must be greater than or equal to 1, but got -5",
    "train paper --data DATA --epochs 100001": (
        f"{OPTIONS}--epochs must be less than or equal to 100000, but got 100001"
    ),
    "train paper --data DATA --seed 4294967296": (
        f"{OPTIONS}--seed must be less than or equal to 4294967295, but got 4294967296"
    ),
    "train paper --data DATA --gpus-per-worker nan": (
        f"{OPTIONS}--gpus-per-worker must be 0 or a positive number, but got nan"
    ),
    "train paper --data DATA --gpus-per-worker -1": (
        f"{OPTIONS}--gpus-per-worker must be 0 or a positive number, but got -1.0"
    ),
    "train paper --data DATA --gpus-per-worker 1.5": (
        f"{OPTIONS}--gpus-per-worker above 1 must be a whole number, but got 1.5"
    ),
    "tune quick --data DATA --workers-per-trial 2 --gpus-per-worker 0.5": (
        f"{OPTIONS}--workers-per-trial 2: cannot be combined with --gpus-per-worker 0.5, since workers of one trial "
        "cannot share a GPU; give --gpus-per-worker 1, or one worker for each trial"
    ),
    "train paper --data DATA --workers 0 --out file": (
        "file/NAME: cannot be created, because CWD/file is not a folder; choose another --out"
    ),
    f"train paper --data DATA --out {LONG}": (
        f"{LONG}: File name too long; choose a shorter name"
    ),
    f"train {LONG} --data DATA": f"{LONG}: File name too long; choose a shorter name",
    f"train paper --data {LONG}": f"{LONG}: File name too long; choose a shorter name",
    "train paper --data file": (
        "file/manifest.json: is damaged ([Errno 20] Not a directory: 'file/manifest.json'); make it again with "
        "`wmlsearch prepare`"
    ),
    # tune and plan
    "tune quick --data DATA --workers-per-trial 0": (
        f"{OPTIONS}--workers-per-trial must be a whole number from 1 to 4096, but got 0"
    ),
    "tune quick --data DATA --workers-per-trial 1000000000000": (
        f"{OPTIONS}--workers-per-trial must be a whole number from 1 to 4096, but got 1000000000000"
    ),
    "plan quick --data DATA --workers-per-trial -1": (
        f"{OPTIONS}--workers-per-trial must be a whole number from 1 to 4096, but got -1"
    ),
    "tune quick --data DATA --trials 1000001": (
        f"{OPTIONS}--trials must be less than or equal to 1000000, but got 1000001"
    ),
    "tune quick --data DATA --max-hours nan": f"{OPTIONS}--max-hours must be a finite number, but got nan",
    "tune quick --data DATA --max-hours inf": f"{OPTIONS}--max-hours must be a finite number, but got inf",
    "tune quick --data DATA --max-gpu-hours 0": f"{OPTIONS}--max-gpu-hours must be greater than 0, but got 0.0",
    "plan quick --data DATA --max-epochs-total 0": (
        f"{OPTIONS}--max-epochs-total must be greater than or equal to 1, but got 0"
    ),
    "tune quick --data DATA --target-dice 1.01": (
        f"{OPTIONS}--target-dice must be less than or equal to 1, but got 1.01"
    ),
    "tune quick --data DATA --max-checkpoint-gb -1": (
        f"{OPTIONS}--max-checkpoint-gb must be greater than 0, but got -1.0"
    ),
    "tune quick --data DATA --confirm-top 101": (
        f"{OPTIONS}--confirm-top must be less than or equal to 100, but got 101"
    ),
    "tune quick --data DATA --confirm-seeds 0": (
        f"{OPTIONS}--confirm-seeds must be greater than or equal to 1, but got 0"
    ),
    "tune quick --data DATA --grace-epochs 0": f"{OPTIONS}--grace-epochs must be greater than or equal to 1, but got 0",
    "tune quick --data DATA --seed 4294967295": (
        "--seed 4294967295: the final runs use the 7 seeds after this one, and each must be below 2^32; give a lower "
        "seed"
    ),
    "tune quick --data DATA --max-epochs-total 5": (
        "--max-epochs-total 5: no epochs are left for trials, since the 18 final runs may take 3600; give more, "
        "or fewer final runs by --final-runs, --confirm-top and --confirm-seeds"
    ),
    "tune quick --data DATA --max-gpu-hours 5 --gpus-per-worker 0": (
        "--max-gpu-hours 5: no GPU is used, so this budget would never end the search; give --max-hours instead"
    ),
    "tune quick --data DATA --name ../../x": (
        "--name '../../x': letters, digits, '.', '_' and '-' only, at most 100, not starting with a sign"
    ),
    "tune quick --data DATA --out file": (
        "file/NAME: cannot be created, because CWD/file is not a folder; choose another --out"
    ),
    "tune quick --data DATA --out file/x": (
        "file/x/NAME: cannot be created, because CWD/file is not a folder; choose another --out"
    ),
    "tune quick --data DATA --warm-start nothing": (
        "nothing: no search or run of this name in runs (it has: none), and not a path to one"
    ),
    "tune --resume nothing": "nothing: no search or run of this name in runs (it has: none), and not a path to one",
    # storage, Ray
    "tune quick --data DATA --storage foo://x": (
        "--storage foo://x: cannot be written (Unrecognized filesystem type in URI: foo://x); name a folder or URI "
        "that all machines of the cluster can write"
    ),
    "tune quick --data DATA --storage file": (
        "--storage CWD/file: cannot be written (File exists); name a folder or URI that all machines of the cluster "
        "can write"
    ),
    "tune quick --data DATA --storage file://": (
        "--storage file://: cannot be written (File URI cannot be relative: 'file://'); name a folder or URI that all "
        "machines of the cluster can write"
    ),
    "tune quick --data DATA --ray-address local": (
        f"{OPTIONS}--ray-address must be HOST:PORT or auto, but got 'local'"
    ),
    "plan quick --data DATA --ray-address http://x:1/y": (
        f"{OPTIONS}--ray-address must be HOST:PORT or auto, but got 'http://x:1/y'"
    ),
    "tune quick --data DATA --ray-address ray://head:10001": (
        f"{OPTIONS}--ray-address ray://head:10001: is an address of Ray Client, which runs single tasks from afar; a "
        "search lives on a machine of the cluster, so run the command there with --ray-address auto, or here with "
        "--cluster FILE"
    ),
    "train paper --data DATA --ray-address :": (
        f"{OPTIONS}--ray-address must be HOST:PORT or auto, but got ':'"
    ),
    "train paper --data DATA --ray-address 127.0.0.1:1": (
        "127.0.0.1:1: no Ray cluster answers there (Connection refused); start it with `ray "
        "up cluster.yaml` (`wmlsearch cluster-file` writes one), or correct the address (--ray-address or RAY_ADDRESS)"
    ),
    # MLflow
    "ui --port 0": "--port must be a whole number from 1 to 65535, but got 0",
    "ui --port -1": "--port must be a whole number from 1 to 65535, but got -1",
    "ui --port 65536": "--port must be a whole number from 1 to 65535, but got 65536",
    "ui --mlflow-uri mlruns": f"mlruns: {FOLDERS}",
    "ui --mlflow-uri file:///x/mlruns": f"file:///x/mlruns: {FOLDERS}",
    "train paper --data DATA --mlflow-uri ./mlruns": f"./mlruns: {FOLDERS}",
    "train paper --data DATA --mlflow-uri http://": (
        f"http://: must name a host, and a port from 1 to 65535; {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri http://x:0": (
        f"http://x:0: must name a host, and a port from 1 to 65535; {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri http://x:99999": (
        f"http://x:99999: is not a valid URL (Port out of range 0-65535); {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri http://x:5000/#/experiments/1": (
        f"http://x:5000/#/experiments/1: is the address of a page; leave out the end, from # or ? on; {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri http://[::1": f"http://[::1: is not a valid URL (Invalid IPv6 URL); {STORES}",
    "tune quick --data DATA --mlflow-uri htp://x": f"htp://x: MLflow has no store of the kind 'htp'; {STORES}",
    "tune quick --data DATA --mlflow-uri s3://b/x": f"s3://b/x: MLflow has no store of the kind 's3'; {STORES}",
    "tune quick --data DATA --mlflow-uri ftp://me:secret@x": (
        f"ftp://me:***@x: MLflow has no store of the kind 'ftp'; {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri sqlite://": (
        f"sqlite://: must name a file (sqlite:///PATH); otherwise nothing would be kept; {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri sqlite:///:memory:": (
        f"sqlite:///:memory:: must name a file (sqlite:///PATH); otherwise nothing would be kept; {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri sqlite:x.db": (
        f"sqlite:x.db: must name a file (sqlite:///PATH); otherwise nothing would be kept; {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri sqlite:///folder": f"sqlite:///folder: folder is a folder; {STORES}",
    "tune quick --data DATA --mlflow-uri sqlite:///file": (
        f"sqlite:///file: file is not a SQLite database; it was left as it is; {STORES}"
    ),
    "tune quick --data DATA --mlflow-uri sqlite:///file/x.db": (
        f"sqlite:///file/x.db: CWD/file is not a folder; {STORES}"
    ),
    "predict models:/m@x file --out o --mlflow-uri x:y": f"x:y: MLflow has no store of the kind 'x'; {STORES}",
    # verbs that use runs
    "predict s file --out o --threshold nan": "--threshold: must be a number above 0 and below 1, but got nan",
    "predict s file --out o --threshold -1": "--threshold: must be a number above 0 and below 1, but got -1.0",
    "predict runs:/abc/model file --out o": (
        "runs:/abc/model: no search or run of this name in runs (it has: none), and not a path to one"
    ),
    "export models://x e": (
        "models://x: must be models:/NAME@ALIAS or models:/NAME/VERSION, such as models:/wml-unet@champion"
    ),
    "status ../../etc/passwd": (
        "../../etc/passwd: no search or run of this name in runs (it has: none), and not a path to one"
    ),
    f"status {LONG}": f"{LONG}/search.json: File name too long; choose a shorter name",
    "status --out file": "file: has no search or run; start one with `wmlsearch tune`, or give --out",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: words[:60])
def test_a_bad_option(words: str, prepared: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmlsearch.runs.names.default_name", lambda _: "NAME")
    Path("file").write_text("no image")
    Path("folder").mkdir()
    message = refused(*(str(prepared) if word == "DATA" else word for word in words.split(" ")))
    assert message.replace(str(Path.cwd()), "CWD") == REFUSED[words]
    assert sorted(path.name for path in Path().iterdir()) == ["file", "folder"], "nothing was made"


def test_empty_option_values(prepared: Path, refused: Refused) -> None:
    for before in ("--name", "--storage", "--ray-address", "--mlflow-uri"):
        assert refused("tune", "quick", "--data", prepared, before, "", "--trials", 3) == (
            f"the argument after `wmlsearch tune quick --data {prepared} {before}` is empty (an unset variable?); "
            "give a value, or leave the argument out"
        )


def test_all_placement_errors_are_reported_at_once(prepared: Path, refused: Refused) -> None:
    where = ("--workers-per-trial", 0, "--gpus-per-worker", "inf", "--ray-address", "local")
    assert refused("plan", "quick", "--data", prepared, *where) == (
        f"{OPTIONS}--workers-per-trial must be a whole number from 1 to 4096, but got 0\n"
        "  - --gpus-per-worker must be 0 or a positive number, but got inf\n"
        "  - --ray-address must be HOST:PORT or auto, but got 'local'"
    )
