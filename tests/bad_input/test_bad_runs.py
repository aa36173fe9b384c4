"""Damaged run folders: empty, torn, of another form, in another encoding. Each command names the damaged file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir

Refused = Callable[..., str]
Change = Callable[[Path], object]
RESTORE = "restore it from a copy, or move the run away"
TRIAL = "runs/s/trials/0000"


@pytest.fixture
def search(searched: SearchDir, tmp_path: Path, refused: Refused) -> Path:
    """A copy of the search, in the working folder."""
    shutil.copytree(searched.path, tmp_path / "runs" / "s")
    return tmp_path / "runs" / "s"


def content(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda search: (search / name).write_bytes(change((search / name).read_bytes()))


def changed(file: str, **values: Any) -> Change:
    """Return a change that sets values in a JSON file of the search; `...` removes a name; `a__b` is b in a."""

    def apply(search: Path) -> None:
        record = json.loads((search / file).read_text()) if (search / file).exists() else {}
        for key, value in values.items():
            place, *path = key.split("__")
            inner = record
            for step in path:
                inner, place = inner[place], step
            if value is ...:
                del inner[place]
            else:
                inner[place] = value
        (search / file).write_text(json.dumps(record))

    return apply


def line(number: int, text: str | None = None, **values: Any) -> Change:
    """Return a change of a line (from 1) of the first trial's metrics, to `text` or to other values."""

    def apply(search: Path) -> None:
        path = search / "trials/0000/metrics.jsonl"
        lines = path.read_text().splitlines()
        new = json.dumps({k: v for k, v in {**json.loads(lines[number - 1]), **values}.items() if v is not ...})
        lines[number - 1] = new if text is None else text
        path.write_text("".join(f"{text}\n" for text in lines))

    return apply


def damaged(name: str, *faults: str, remedy: str = RESTORE, what: str = "is damaged") -> str:
    return "\n  - ".join([f"runs/s/{name}: {what}; {remedy}", *faults])


def unreadable(name: str, why: str) -> str:
    return f"runs/s/{name}: cannot be read ({why}); restore it from a copy"


def in_line(number: int, fault: str) -> str:
    return f"{TRIAL}/metrics.jsonl: line {number} is damaged; {RESTORE}\n  - {fault}"


NOTHING = "Expecting value: line 1 column 1 (char 0)"
CONFIG, METRICS, STATUS = "trials/0000/config.json", "trials/0000/metrics.jsonl", "trials/0000/status.json"
STATES = (
    "match pattern '^(running|completed|early_stopped|stopped|diverged|out_of_memory|lost|failed|interrupted)$'"
).replace("'", "")
FORECAST = (
    "epochs", "start_s", "search_s", "total_s", "final_s", "final_runs", "final_epochs", "gpu_hours", "disk_bytes",
    "peak_memory_mb",
)  # fmt: skip

TESTED = {
    "opened": 1.0,
    "data": {"path": "prepared", "fingerprint": "f", "optimistic": False},
    "unit": "patients",
    "scope": "whole volumes",
}

FAULTS: dict[str, tuple[Change, str]] = {
    # search.json
    "search empty": (content("search.json", lambda _: b""), unreadable("search.json", NOTHING)),
    "search cut": (
        content("search.json", lambda _: b'{"key": "a'),
        unreadable("search.json", "Unterminated string starting at: line 1 column 9 (char 8)"),
    ),
    "search a list": (
        content("search.json", lambda _: b"[]"),
        "runs/s/search.json: must hold a JSON object, but holds a list",
    ),
    "search in UTF-16": (
        content("search.json", lambda text: text.decode().encode("utf-16")),
        unreadable("search.json", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ),
    "search of depths": (
        content("search.json", lambda _: b'{"a":' * 100_000),
        unreadable("search.json", "nested too deeply"),
    ),
    "no key": (changed("search.json", key=...), damaged("search.json", "key is missing")),
    "created in words": (
        changed("search.json", created="today"),
        damaged("search.json", "created must be a valid number, but got 'today'"),
    ),
    "no settings": (changed("search.json", settings=...), damaged("search.json", "settings is missing")),
    "settings a list": (
        changed("search.json", settings=[]),
        damaged("search.json", "settings must be an object, but got []"),
    ),
    "settings without objective": (
        changed("search.json", settings__objective=...),
        damaged("search.json", "settings.objective is missing"),
    ),
    "settings of another version": (
        changed("search.json", settings__colour=1, settings__trials=0),
        "runs/s/search.json: the settings are not valid\n  - trials must be greater than or equal to 1, but got 0\n"
        "  - unknown name 'colour': valid names are ",
    ),
    "data null": (changed("search.json", data=None), damaged("search.json", "data must be an object, but got None")),
    "no fingerprint": (
        changed("search.json", data__fingerprint=...),
        damaged("search.json", "data.fingerprint is missing"),
    ),
    "space text": (changed("search.json", space="x"), damaged("search.json", "space must be an object, but got 'x'")),
    "space with a range turned round": (
        changed("search.json", space__values={"depth": {"low": 4, "high": 2}}),
        "runs/s/search.json: space: not a valid search space\n"
        "  - depth: low < high must hold, but got (low=4, high=2)",
    ),
    "certificate of another form": (
        changed("search.json", certificate__duplicates={"train": {}}),
        damaged(
            "search.json",
            "certificate.duplicates.train.[key] must match pattern ^[a-z]+/[a-z]+$, but got 'train'",
        ),
    ),
    "shape of nobody": (
        changed("search.json", shape={"workers_per_trial": 0, "gpus_per_worker": None}),
        damaged("search.json", "shape.workers_per_trial must be greater than or equal to 1, but got 0"),
    ),
    "a share for nobody": (
        changed("search.json", shape={"workers_per_trial": 1, "gpus_per_worker": None, "trials_per_gpu": 0}),
        damaged("search.json", "shape.trials_per_gpu must be greater than or equal to 1, but got 0"),
    ),
    # config.json of a trial
    "trial empty": (content(CONFIG, lambda _: b""), unreadable(CONFIG, NOTHING)),
    "trial null": (
        content(CONFIG, lambda _: b"null"),
        f"runs/s/{CONFIG}: must hold a JSON object, but holds a NoneType",
    ),
    "no configuration": (changed(CONFIG, config=...), damaged(CONFIG, "config is missing")),
    "a configuration with a typo": (
        changed(CONFIG, config={"detph": 3}),
        f"runs/s/{CONFIG}: config: not a valid configuration\n  - unknown name 'detph': did you mean 'depth'?",
    ),
    "a child of nobody": (
        changed(CONFIG, parent=0),
        damaged(CONFIG, "parent_epoch is missing, though parent is there"),
    ),
    "a rate factor in words": (
        changed(CONFIG, rate_factors={"2": "more"}),
        damaged(CONFIG, "rate_factors.2 must be a valid number, but got 'more'"),
    ),
    "a name that is a number": (changed(CONFIG, name=7), damaged(CONFIG, "name must be a valid string, but got 7")),
    # status.json
    "status cut": (
        content(STATUS, lambda content: content[:5]),
        unreadable(STATUS, "Unterminated string starting at: line 2 column 2 (char 3)"),
    ),
    "a state that isn't one": (changed(STATUS, state="fine"), damaged(STATUS, f"state must {STATES}, but got 'fine'")),
    "ended in words": (changed(STATUS, ended="late"), damaged(STATUS, "ended must be a valid number, but got 'late'")),
    # metrics.jsonl
    "a line torn in the middle": (
        line(2, '{"epoch": 2, "val'),
        f"{TRIAL}/metrics.jsonl: line 2 is damaged (Unterminated string starting at: line 1 column 14 (char 13)); "
        "restore the file from a copy",
    ),
    "a line of zeros": (
        line(3, "\0" * 20),
        f"{TRIAL}/metrics.jsonl: line 3 is damaged ({NOTHING}); restore the file from a copy",
    ),
    "a line that is a list": (
        line(1, "[1]"),
        f"{TRIAL}/metrics.jsonl: line 1 is damaged (it holds a list instead of a JSON object); restore the file from a "
        "copy",
    ),
    "an empty line": (
        line(1, ""),
        f"{TRIAL}/metrics.jsonl: line 1 is damaged ({NOTHING}); restore the file from a copy",
    ),
    "a line without epoch": (line(2, epoch=...), in_line(2, "epoch is missing")),
    "an epoch beyond all epochs": (
        line(2, epoch=10**400),
        in_line(2, f"epoch must be less than or equal to 100000, but got {10**400}"),
    ),
    "a metric in words": (
        line(2, val_dice_best="good"),
        in_line(2, "val_dice_best must be a valid number, but got 'good'"),
    ),
    "a metric that is no number": (
        line(2, '{"epoch": 2, "time": 1, "ended": null, "val_dice_best": NaN}'),
        in_line(2, "val_dice_best must be a finite number, but got nan"),
    ),
    "metrics in UTF-16": (
        content(METRICS, lambda text: text.decode().encode("utf-16")),
        f"{TRIAL}/metrics.jsonl: line 1 is damaged ('utf-8' codec can't decode byte 0xff in position 0: invalid start "
        "byte); restore the file from a copy",
    ),
    "metrics that are a folder": (
        lambda search: ((search / METRICS).unlink(), (search / METRICS).mkdir()),
        f"{TRIAL}/metrics.jsonl: cannot be read (Is a directory); restore it from a copy",
    ),
    # the others
    "time used in words": (
        changed("used.json", seconds="long"),
        damaged("used.json", "seconds must be a valid number, but got 'long'"),
    ),
    "time used beyond all time": (
        changed("used.json", seconds=1e308),
        damaged("used.json", "seconds must be less than or equal to 1000000000000000000, but got 1e+308"),
    ),
    "time used below nothing": (
        changed("used.json", seconds=-1),
        damaged("used.json", "seconds must be greater than or equal to 0, but got -1"),
    ),
    "a forecast of nothing": (
        changed("forecast.json", rungs=3, **dict.fromkeys(FORECAST, 1), ends_by=""),
        damaged(
            "forecast.json",
            "rungs must be a valid list, but got 3",
            remedy="delete it, it is for looking at only",
        ),
    ),
    "a selection of nothing": (
        changed("selection.json", champion=3, seeds=[1], means={"paper": "high"}),
        damaged(
            "selection.json",
            "champion must be a valid string, but got 3",
            "means.paper must be a valid number, but got 'high'",
            remedy="delete it; `wmlsearch tune --resume` writes it again",
        ),
    ),
    "an earlier trial of nothing": (
        lambda search: (search / "earlier.jsonl").write_text('{"config": {}}\n'),
        f"runs/s/earlier.jsonl: line 1 is damaged; {RESTORE}\n  - state is missing\n  - values is missing",
    ),
    "a ledger of another form": (
        changed("trials/0000/mlflow.json", uri="x", rows=-1),
        damaged(
            "trials/0000/mlflow.json",
            "rows must be greater than or equal to 0, but got -1",
            remedy="delete it; `wmlsearch sync` writes it again",
        ),
    ),
    "a test of nobody": (
        changed("test.json", **TESTED, models={"baseline": {"members": []}}),
        damaged(
            "test.json",
            "models.baseline.members must have at least 1 item after validation, not 0, but got []",
            "models.baseline.ensemble is missing",
            what="was written by an earlier version or is damaged",
        ),
    ),
    "a trial without a number": (
        lambda search: shutil.copytree(search / "trials/0000", search / "trials/0000 copy"),
        "runs/s/trials/0000 copy: a trial's folder is named by its number (0000, 0001, ...); move it away",
    ),
    "a model without members": (
        changed("models/champion/config.json", members=...),
        damaged("models/champion/config.json", "members is missing"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_search(name: str, search: Path, refused: Refused) -> None:
    change, message = FAULTS[name]
    change(search)
    shown = refused("status", "s")
    if message.endswith("valid names are "):
        assert shown.startswith(message)
    else:
        assert shown == message
    for verb in (("report", "s"), ("sync", "s"), ("tune", "--resume", "s"), ("predict", "s", "x.nii", "--out", "o")):
        assert refused(*verb) == shown
    assert sorted(path.name for path in Path().iterdir()) == ["runs"], "nothing was made"


def test_damaged_run_does_not_block_another(search: Path, refused: Refused) -> None:
    shutil.copytree(search, search.with_name("t"))
    (search / "search.json").write_text("[]")
    assert refused("stop", "t") == "t: the search is not running (state: completed), so there is nothing to stop"
    assert refused("status", "u") == "u: no search or run of this name in runs (it has: t, s), and not a path to one"


def test_files_required_to_resume(search: Path, refused: Refused, no_ray: None) -> None:
    assert refused("tune", "--resume", "s") == (
        "runs/s/search.json: lacks shape, so this search cannot be resumed; start a new search"
    )
    changed("search.json", shape={"workers_per_trial": 1, "gpus_per_worker": None}, data_path="nowhere")(search)
    assert refused("tune", "--resume", "s") == (
        "nowhere: the prepared data of s are not there (any more, or on this machine); name their folder with --data"
    )


@pytest.mark.parametrize("word", ["[/x]", ":fire:", "[red]"])
def test_display_markup_is_shown_literally(word: str, search: Path) -> None:
    changed("search.json", data__name=word)(search)
    changed("status.json", state="failed", reason=f"KeyError: '{word}'")(search)
    result = CliRunner().invoke(main, ["status", "s"])
    assert result.exit_code == 0, result.output
    assert result.output.count(word) == 2


def test_invalid_gallery(search: Path) -> None:
    for wrong in (b"", b"PK\x03\x04", b"\x80\x04.", b"\x93NUMPY"):
        (search / "test-gallery.npz").write_bytes(wrong)
        with pytest.raises(
            InputError, match=r"test-gallery.npz: cannot be read \(.*\); `wmlsearch evaluate` writes it again"
        ):
            SearchDir(search).gallery()
