"""The report: what it says of finished, unfinished and odd searches, from their folders alone."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from records import epoch_row, run_record, search_record

from wmlsearch.cli import main
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.report import figure_style
from wmlsearch.report.commands import tune_command
from wmlsearch.report.importances import importances
from wmlsearch.report.page import write_report
from wmlsearch.runs.evaluation import (
    SLICES,
    VOLUMES,
    EvaluatedData,
    Evaluation,
    Gallery,
    ModelScores,
    NetworkScores,
    RowScores,
    ScopeScores,
    UnitScores,
)
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.runs.schema import RunStatus, SelectionRecord
from wmlsearch.space import SearchSpace
from wmlsearch.verdict.comparison import judge
from wmlsearch.verdict.scores import pooled, score

CHROMIUM = Path("/usr/bin/chromium")
SPACE = {"batch_size": {"choices": [4, 8]}, "schedule": {"choices": ["plateau", "cosine"]},
         "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
         "warmup_fraction": {"low": 0.0, "high": 0.2, "when": {"schedule": "cosine"}}}  # fmt: skip
EVIL = "<script>alert(\"$x$\")</script> & 'so'"
Make = Callable[..., SearchDir]


@pytest.fixture(autouse=True)
def _small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_style, "DPI", 50)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(trials=8, finals=True)`: a search with as many trials, every third stopped early; settings by name."""

    def made(
        trials: int = 8, optimistic: bool = False, seeds: int = 2, finals: bool = False, **given: Any
    ) -> SearchDir:
        settings = RunSettings.from_mapping(
            {"trials": max(trials, 5), "epochs": 6, "confirm_seeds": seeds, **given}
        ).model_dump()
        data = {"name": "prepared", "fingerprint": "f00d", "optimistic": optimistic}
        about = {"kind": "search", "settings": settings, "data": data, "data_path": "some where/prepared"}
        search = SearchDir.create(
            tmp_path / "s", search_record({"name": "s", **about, "space": {"source": "mine", "values": SPACE}})
        )
        rng = np.random.default_rng(0)
        for n in range(trials):
            values: dict[str, Any] = {"batch_size": (4, 8)[n % 2], "learning_rate": float(10 ** rng.uniform(-4, -2))}
            if n % 3 == 1:
                values |= {"schedule": "cosine", "warmup_fraction": float(rng.uniform(0, 0.2))}
            _train(
                search.trial(n),
                f"trial-{n:04d}",
                TrialConfig.from_mapping(values),
                settings,
                data,
                rng,
                2 if n % 3 == 0 else 6,
            )
            if n % 3 == 0:
                search.trial(n).set_status("stopped", "behind the best of its rung at epoch 2")
        for seed in range(seeds if finals else 0):
            for name, config in (("paper", TrialConfig()), ("trial-0001", search.trial(1).record().config)):
                run, own = search.final(name, seed), {**settings, "seed": seed}
                _train(run, f"{name}-seed{seed}", config, own, data, rng, 6, model=name, purpose="selection")
        if finals:
            sentence = "trial-0001 is the champion: its mean is 0.600 over 2 selection runs, the baseline's 0.500."
            search.set_selection(SelectionRecord(champion="trial-0001", sentence=sentence, seeds=[1, 2], means={}))
        search.set_status("completed")
        return search

    return made


def _train(
    run: RunDir, name: str, config: TrialConfig, settings: Mapping[str, Any], data: object, rng: np.random.Generator,
    epochs: int, **more: Any,
) -> None:  # fmt: skip
    about = {"name": name, "kind": "trial", "settings": settings, "data": data, "config": config.model_dump(), **more}
    RunDir.create(run.path, run_record(about))
    for epoch in range(1, epochs + 1):
        dice = float(rng.uniform(0.1, 0.15) * epoch)
        row = {
            "epoch": epoch,
            "time": 0.0,
            "ended": None,
            "val_dice_patients_best": dice,
            "val_dice": dice / 2,
            "epoch_s": 1.0,
        }
        run.append(
            epoch_row(
                {**row, "images_per_s": float(rng.uniform(10, 90)), "learning_rate": config.learning_rate / epoch}
            )
        )
    run.set_status("completed")


def open_test(search: SearchDir, lead: float, units: int = 8, volumes: bool = True, names: str = "0{}") -> None:
    """Open the sealed test: masks of small volumes or pictures, of which the champion finds `lead` more."""
    rng, seeds = np.random.default_rng(1), range(search.record().settings.confirm_seeds)
    experts = {names.format(n): rng.uniform(size=(4, 12, 12)) < 0.1 for n in range(units)}
    images = {name: rng.integers(0, 255, (12, 12), np.uint8) for name in experts}
    models: dict[str, ModelScores] = {}
    for role, name, finds in ((BASELINE, "paper", 0.5), (CHAMPION, "trial-0001", 0.5 + lead)):
        members = []
        for seed in seeds:
            found = {unit: mask & (rng.uniform(size=mask.shape) < finds) for unit, mask in experts.items()}
            scopes = {}
            for scope in (VOLUMES, SLICES) if volumes else (SLICES,):
                mm = (1.0, 1.0, 3.0) if scope == VOLUMES else None
                scores = {unit: score(found[unit], mask, mm) for unit, mask in experts.items()}
                origin = {"timepoint": "1", "source": "a.nii"}
                scopes[scope] = ScopeScores(
                    pooled=pooled(list(scores.values())),
                    pooled_half=pooled(list(scores.values())),
                    units=[UnitScores.model_validate({"unit": u, **its.as_json()}) for u, its in scores.items()],
                    rows=[RowScores(patient=u, **origin, **its.as_json()) for u, its in scores.items()],
                )
            about = {"name": f"{name}-seed{seed}", "seed": seed, "threshold": 0.4}
            members.append(NetworkScores.model_validate({**about, **scopes}))
        models[role] = ModelScores(members=members, ensemble=None)
    evaluation = Evaluation(
        opened=1.0,
        opened_before=2,
        data=EvaluatedData(path="p", fingerprint="f", optimistic=False),
        unit="patients",
        scope=VOLUMES if volumes else SLICES,
        models=models,
    )
    verdict = judge(evaluation, BASELINE, CHAMPION, "trial-0001", 0)
    search.set_evaluation(evaluation.with_verdict({BASELINE: "paper", CHAMPION: "trial-0001"}, [], verdict))
    masks = np.stack([mask[0] for mask in experts.values()]).astype(np.uint8)
    predictions = {BASELINE: masks, CHAMPION: np.zeros_like(masks)}
    search.set_gallery(Gallery(tuple(experts), np.stack(list(images.values())), masks, predictions))


def evaluation_of(search: SearchDir) -> Evaluation:
    evaluation = search.evaluation()
    assert evaluation is not None
    return evaluation


def text_of(page: Path) -> str:
    """What stands on the page, without marks and with single spaces."""
    body = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def figures_of(page: Path) -> list[str]:
    return re.findall(r'id="figure-(\w+)"', page.read_text())


def test_the_whole(make: Make) -> None:
    search = make(finals=True)
    open_test(search, 0.3)
    page = write_report(search)
    text, verdict = text_of(page), evaluation_of(search).verdict
    assert verdict is not None
    assert text.index(verdict.sentence) < text.index("Parallel") if "Parallel" in text else verdict.sentence in text
    assert verdict.outcome == "better"
    assert "had been opened 2 times before" in text
    assert f"{verdict.primary.champion:.4f}" in text
    assert f"{verdict.secondary[1].p_holm:.3f}" in text
    assert figures_of(page) == ["history", "curves", "parallel", "importances", "paired", "volumes", "gallery"]
    assert all(board.name in text for board in leaderboard(search).trials)
    assert "the paper's Table I (other data) 0.5 0.9963 ± 0.0004 0.5739 ± 0.0100 0.7292 ± 0.0080" in text
    assert "Valverde 0.56" in text
    assert "behind the best of its rung at epoch 2" in text


def test_the_page_is_whole_and_the_same_each_time(make: Make) -> None:
    search = make(finals=True)
    open_test(search, 0.3)
    page = write_report(search)
    first = {path.name: path.read_bytes() for path in search.report.iterdir()}
    write_report(search)
    assert {path.name: path.read_bytes() for path in search.report.iterdir()} == first
    html = page.read_text()
    assert set(re.findall(r'src="(\w+:[\w/]+)', html)) == {"data:image/png"}
    links = set(re.findall(r'href="([^"]*)"', html))
    assert all(link.startswith("#") or link == "data:," or (search.report / link).is_file() for link in links), links
    assert not re.search(r"<script|<link rel=.stylesheet|@import|url\(|https?://", html)
    for name in re.findall(r'href="#(\w+)"', html):
        assert f'id="{name}"' in html


def test_tables_hold_what_the_folder_holds(make: Make) -> None:
    search = make(finals=True)
    open_test(search, 0.3)
    write_report(search)
    board = rows_of(search.report / "leaderboard.csv")
    assert [row["trial"] for row in board] == [entry.name for entry in leaderboard(search).trials]
    for row in board:
        run = search.trial(int(row["trial"][-4:]))
        best = max(run.rows(), key=lambda it: it.metrics["val_dice_patients_best"])
        assert float(row["val_dice_patients_best"]) == best.metrics["val_dice_patients_best"]
        assert (row["state"], row["epochs"]) == (run.state, str(len(run.rows())))
        assert {name: row[name] for name in TrialConfig.model_fields} == {
            name: str(value) for name, value in run.record().config.model_dump().items()
        }
    assert [row["run"] for row in rows_of(search.report / "confirmation.csv")] == [
        "paper-seed0", "paper-seed1", "trial-0001-seed0", "trial-0001-seed1",
    ]  # fmt: skip
    models = evaluation_of(search).models
    wanted = [
        (role, member.name, scope, unit.unit, str(unit.dice))
        for role in models for member in models[role].members for scope in member.scopes
        for unit in member.scope(scope).units
    ]  # fmt: skip
    units = rows_of(search.report / "test_patients.csv")
    assert [(it["role"], it["network"], it["scope"], it["unit"], it["dice"]) for it in units] == wanted
    table = rows_of(search.report / "test_table.csv")
    assert len(table) == 2 * 2 * 2 * 2 + 1
    assert table[0]["tp"] == str(models[BASELINE].members[0].scope(VOLUMES).pooled.tp)


def test_yaml_and_commands_give_the_same_again(make: Make) -> None:
    search = make(finals=True, sampler="tpe", max_hours=1.5)
    text = text_of(write_report(search))
    config = SearchSpace.read(str(search.report / "champion.yaml")).single_configuration()
    assert config == search.trial(1).record().config
    space = SearchSpace.read(str(search.report / "space.yaml"))
    assert space.to_mapping() == SearchSpace.from_mapping(SPACE).to_mapping()
    command = "wmlsearch tune space.yaml --data prepared --trials 8 --epochs 6 --sampler tpe --max-hours 1.5"
    assert tune_command(search.record()) == command
    assert command in text
    assert "wmlsearch train champion.yaml --data prepared --epochs 6 --seed 1" in text


def test_commands_of_several_objectives(make: Make) -> None:
    search = make(objectives=["val_dice_patients_best", "images_per_s"], baseline=False)
    assert tune_command(search.record()).endswith(
        "--objectives val_dice_patients_best,images_per_s --trials 8 --epochs 6 --no-baseline"
    )
    page = write_report(search)
    assert figures_of(page)[:2] == ["front", "history"]
    assert f"on the Pareto front {len(leaderboard(search).front)} trials" in text_of(page)
    assert "without the sealed test (--no-baseline)" in text_of(page)


def test_what_users_and_errors_write_is_escaped(make: Make) -> None:
    search = make(finals=True)
    open_test(search, 0.3, names=EVIL.replace("{", "") + "{}")
    search.trial(2).set_status("failed", EVIL, traceback=f"Traceback\n  {EVIL}")
    search.set_status("interrupted", EVIL)
    html = write_report(search).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#34;$x$&#34;)") > 10


@pytest.mark.parametrize(
    ("lead", "units", "seeds", "word", "kind"),
    [
        (0.3, 8, 2, "Better", "good"),
        (-0.3, 8, 2, "Worse", "bad"),
        (0.0, 8, 2, "Not shown", "open"),
        (0.3, 4, 2, "Not shown: too few patients", "open"),
        (0.3, 8, 1, "Not shown: too few runs", "open"),
    ],
)
def test_each_verdict(lead: float, units: int, seeds: int, word: str, kind: str, make: Make) -> None:
    search = make(trials=5, seeds=seeds, finals=True)
    open_test(search, lead, units)
    page = write_report(search)
    assert f'<div class="verdict {kind}"><b>{word}</b>' in page.read_text()
    if seeds > 1:
        return
    assert "one seed each, so the effect of chance in training is unknown" in text_of(page)
    assert "±" not in text_of(page).split("Kept slices, pooled")[0].split("Whole volumes, pooled")[1].split("Counts")[0]


def test_pictures_are_measured_in_pixels(make: Make) -> None:
    search = make(finals=True, optimistic=True)
    open_test(search, 0.3, volumes=False)
    text = text_of(write_report(search))
    assert text.index("image-level split: optimistic") < text.index("Verdict", text.index("Reproduce"))
    assert "lesion sizes and distances are in pixels instead of ml and mm" in text
    assert "lesion (pixels), expert" in text
    assert "Hausdorff distance (pixels)" in text
    assert "(ml)" not in text


def test_a_search_that_runs_has_no_verdict_yet(make: Make) -> None:
    search = make()
    search.set_status("running")
    search.trial(7).set_status("running")
    text = text_of(write_report(search))
    assert "No verdict The search is still running. The sealed test is opened at its end." in text
    assert "the best trial so far. It was not confirmed with other seeds" in text
    assert text_of(write_report(search, RunStatus(state="interrupted", reason="stopped by Ctrl-C"))).count(
        "interrupted (stopped by Ctrl-C)"
    ), "how it stands may be known before the folder says so"


@pytest.mark.parametrize("trials", [0, 1])
def test_hardly_any_trial(trials: int, make: Make) -> None:
    page = write_report(make(trials=trials))
    wanted = "No trial has started yet." if not trials else "No importances: at least 4 trials"
    assert wanted in text_of(page)
    assert figures_of(page) == (["history", "curves", "parallel"] if trials else [])


def test_when_all_fail_it_says_why_once(make: Make) -> None:
    search = make(trials=6)
    for run in search.trials():
        run.reconcile([])
        run.set_status("failed", "ValueError: no luck", traceback="Traceback\nValueError: no luck")
    page = write_report(search)
    assert figures_of(page) == []
    assert page.read_text().count('<details class="failure">') == 1
    assert "trial-0000, trial-0001, trial-0002, trial-0003 and 2 more: failed, ValueError: no luck" in text_of(page)
    assert "There is none: no trial has a value." in text_of(page)
    assert not (search.report / "champion.yaml").exists()


def test_children_of_a_population(make: Make) -> None:
    search = make(scheduler="pbt", trials=8)
    config = search.trial(7).path / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "parent": 4, "parent_epoch": 2, "rate_factors": {"3": 0.8}})
    )
    page = write_report(search)
    assert "rates" in figures_of(page)
    assert "trial-0007 trial-0004 2 \N{MULTIPLICATION SIGN} 0.8 from epoch 3" in text_of(page)


def test_a_large_search_stays_readable(make: Make) -> None:
    search = make(trials=500)
    page = write_report(search)
    assert page.stat().st_size < 5e6
    assert "480 more trials" in text_of(page)


def test_importances_know_what_matters_and_leave_out_what_lies_outside(make: Make) -> None:
    search = make(trials=60)
    for n, run in enumerate(search.trials()):
        config = run.record().config
        value = 0.9 - abs(np.log10(config.learning_rate) + 3) / 4  # one hyperparameter decides
        run.reconcile([epoch_row({"epoch": 1, "val_dice_patients_best": value})])
        if n == 0:
            path = run.path / "config.json"
            path.write_text(json.dumps({**run.record().as_json(), "config": TrialConfig(batch_size=5).model_dump()}))
    board, space = leaderboard(search), SearchSpace.from_mapping(SPACE)
    shares, note = importances(board, space)
    assert note == "from 59 trials (1 outside the space left out)"
    assert next(iter(shares)) == "learning_rate"
    assert set(shares) == set(SPACE)
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(board, space) == (shares, note)


def test_the_verb_says_where_the_page_is(make: Make) -> None:
    search = make(trials=1)
    result = CliRunner().invoke(main, ["report", "--out", str(search.path.parent)], prog_name="wmlsearch")
    assert result.exit_code == 0
    page = search.report / "index.html"
    assert result.stdout == f"report: {page}\nopen it: {page.as_uri()}\n"


# ---------------------------------------------------------------------------------------------------- in a browser


@contextmanager
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield opened
        opened.close()


def test_a_browser_shows_all_of_it(make: Make) -> None:
    search = make(finals=True, optimistic=True)
    open_test(search, 0.3, names="a-rather-long-name-of-a-patient-{}")
    search.trial(2).set_status("failed", "ValueError: " + "long" * 60, traceback="Traceback\n" + "x" * 400)
    page = write_report(search)
    with browser() as opened:
        for width in (1400, 400):
            sheet = opened.new_page(viewport={"width": width, "height": 900})
            said: list[str] = []
            sheet.on("console", lambda message, said=said: said.append(message.text))
            sheet.on("pageerror", lambda error, said=said: said.append(str(error)))
            sheet.on("requestfailed", lambda request, said=said: said.append(request.url))
            sheet.goto(page.as_uri())
            sheet.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
            assert said == []
            assert sheet.evaluate("document.documentElement.scrollWidth") <= width
            images = sheet.evaluate("[...document.images].map(it => [it.naturalWidth, it.alt])")
            assert len(images) == 7
            assert all(wide > 0 and alt for wide, alt in images)
            outside = """[...document.querySelectorAll('main *')].filter(it => !it.closest('.wide, pre') &&
                it.getBoundingClientRect().right > innerWidth + 1).map(it => it.outerHTML.slice(0, 80))"""
            assert sheet.evaluate(outside) == []
