"""The report: what it says of finished, unfinished and odd searches, from their folders alone."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from records import epoch_row, run_record, search_record
from rich.console import Console

from wmlsearch.cli import main
from wmlsearch.cli.verdict_tables import show_evaluation
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
from wmlsearch.runs.files import write_json
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.runs.schema import ForecastRecord, SelectionRecord
from wmlsearch.space import SearchSpace
from wmlsearch.verdict.comparison import judge
from wmlsearch.verdict.scores import pooled, score

CHROMIUM = Path("/usr/bin/chromium")
SPACE = {"batch_size": {"choices": [4, 8]}, "schedule": {"choices": ["plateau", "cosine"]},
         "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
         "warmup_fraction": {"low": 0.0, "high": 0.2, "when": {"schedule": "cosine"}}}  # fmt: skip
FOLDS = 5
SELECTION = SelectionRecord(
    champion="trial-0001",
    sentence="trial-0001 is the champion: it was best.",
    seeds=[1, 2],
    means={"paper": 0.5, "trial-0001": 0.6},
)
EVIL = "<script>alert(\"$x$\")</script> & 'so'"
Make = Callable[..., SearchDir]


@pytest.fixture(autouse=True)
def _small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_style, "DPI", 50)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(trials=8, finals=True)`: a search with as many trials, every third stopped early; settings by name.

    With `finals` it has two selection runs of the baseline and of trial-0001 (seeds 1 and 2, folds 0 and 1), and
    judgement runs of both on the next seeds. `old`: it has the final runs of an older version instead.
    """

    def made(
        trials: int = 8, optimistic: bool = False, runs: int = 2, finals: bool = False, old: bool = False, **given: Any
    ) -> SearchDir:
        settings = RunSettings.from_mapping(
            {
                "trials": max(trials, 5),
                "epochs": 6,
                "final_runs": runs,
                **({"objective": "val_dice_best"} if old else {}),
                **given,
            }
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
        configs = {"paper": TrialConfig(), "trial-0001": search.trial(1).record().config} if finals else {}
        for name, config in configs.items():
            for number in range(2):
                seed = number if old else number + 1
                more = {} if old else {"purpose": "selection", "fold": number}
                final = {**settings, "seed": seed}
                _train(
                    search.final(name, seed),
                    f"{name}-seed{seed}",
                    config,
                    final,
                    data,
                    rng,
                    6,
                    model=name,
                    old=old,
                    **more,
                )
            for number in range(0 if old else runs):
                final = {**settings, "seed": number + 3}
                more = {"purpose": "judgement", "fold": number % FOLDS, "model": name}
                _train(search.judgement_run(name, number), f"{name}-run{number}", config, final, data, rng, 6, **more)
        if finals and not old:
            search.set_selection(SELECTION)
        search.set_status("completed")
        return search

    return made


def _train(
    run: RunDir, name: str, config: TrialConfig, settings: Mapping[str, Any], data: object, rng: np.random.Generator,
    epochs: int, old: bool = False, **more: Any,
) -> None:  # fmt: skip
    about = {"name": name, "kind": "trial", "settings": settings, "data": data, "config": config.model_dump(), **more}
    RunDir.create(run.path, run_record(about))
    for epoch in range(1, epochs + 1):
        dice = float(rng.uniform(0.1, 0.15) * epoch)
        row = {"epoch": epoch, "time": 0.0, "ended": None, "val_dice_best": dice, "val_dice": dice / 2, "epoch_s": 1.0}
        if not old:
            row["val_dice_patients_best"] = dice
        run.append(
            epoch_row(
                {**row, "images_per_s": float(rng.uniform(10, 90)), "learning_rate": config.learning_rate / epoch}
            )
        )
    run.set_status("completed")


def open_test(
    search: SearchDir,
    lead: float,
    units: int = 8,
    volumes: bool = True,
    names: str = "0{}",
    lesion_free: int = 0,
    unit: Any = "patients",
) -> None:
    """Open the sealed test: masks of small volumes or pictures, of which the champion finds `lead` more.

    The last `lesion_free` patients have no lesions.
    """
    rng, runs = np.random.default_rng(1), search.record().settings.final_runs
    experts = {
        names.format(n): rng.uniform(size=(4, 12, 12)) < (0.1 if n < units else 0) for n in range(units + lesion_free)
    }
    images = {name: rng.integers(0, 255, (12, 12), np.uint8) for name in experts}
    models: dict[str, ModelScores] = {}
    for role, name, finds in ((BASELINE, "paper", 0.5), (CHAMPION, "trial-0001", 0.5 + lead)):
        members = []
        for run in range(runs + 1):  # the last one is the ensemble
            detected = {
                one: (mask & (rng.uniform(size=mask.shape) < finds)) | (rng.uniform(size=mask.shape) < 0.001)
                for one, mask in experts.items()
            }
            scopes = {}
            for scope in (VOLUMES, SLICES) if volumes else (SLICES,):
                mm = (1.0, 1.0, 3.0) if scope == VOLUMES else None
                scores = {one: score(detected[one], mask, mm) for one, mask in experts.items()}
                origin = {"timepoint": "1", "source": "a.nii"}
                scopes[scope] = ScopeScores(
                    pooled=pooled(list(scores.values())),
                    pooled_half=pooled(list(scores.values())),
                    units=[UnitScores.model_validate({"unit": u, **its.as_json()}) for u, its in scores.items()],
                    rows=[RowScores(patient=u, **origin, **its.as_json()) for u, its in scores.items()],
                )
            about = {"name": f"{name}-run{run}", "seed": run + 3, "threshold": 0.4, "fold": run % FOLDS}
            members.append(NetworkScores.model_validate({**about, **scopes}))
        ensemble = members.pop().model_copy(update={"name": f"{role} ensemble", "seed": None, "fold": None})
        models[role] = ModelScores(members=members, ensemble=ensemble if runs > 1 else None)
    evaluation = Evaluation(
        opened=1.0,
        opened_before=2,
        data=EvaluatedData(path="p", fingerprint="f", optimistic=False),
        unit=unit,
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
    assert verdict.configuration is not None
    assert verdict.models is not None
    assert f"(a) The configurations: better {verdict.configuration.sentence}" in text
    assert f"(b) The models: better {verdict.models.sentence}" in text
    assert f"difference of {verdict.configuration.detectable:.3f} would have been found with 80 %" in text
    assert text.count(SELECTION.sentence) == 2, "with the verdict and with the champion"
    assert "had been opened 2 times before" in text
    assert f"{verdict.primary.champion:.4f}" in text
    assert f"{verdict.secondary[1].p_holm:.3f}" in text
    assert figures_of(page) == [
        "forest", "history", "curves", "parallel", "importances", "folds", "paired", "volumes", "gallery",
    ]  # fmt: skip
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


def test_nothing_of_a_withdrawn_verdict_stays(make: Make) -> None:
    """As after `--resume`, if another configuration is the champion then."""
    search = make(finals=True)
    open_test(search, 0.3)
    write_report(search)
    search.set_aside_evaluation(evaluation_of(search))
    write_report(search)
    assert {path.name for path in search.report.iterdir()} == {
        "index.html", "space.yaml", "champion.yaml", "leaderboard.csv", "confirmation.csv",
        "history.png", "curves.png", "parallel.png", "importances.png", "folds.png",
    }  # fmt: skip


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
            name: "" if value is None else str(value) for name, value in run.record().config.model_dump().items()
        }
    finals = [(row["run"], row["purpose"], row["fold"]) for row in rows_of(search.report / "confirmation.csv")]
    assert finals == [
        (f"{name}{run}", purpose, fold)
        for name in ("paper", "trial-0001")
        for run, purpose, fold in (
            ("-seed1", "selection", "0"), ("-seed2", "selection", "1"),
            ("-run0", "judgement", "0"), ("-run1", "judgement", "1"),
        )
    ]  # fmt: skip
    models = evaluation_of(search).models
    wanted = [
        (role, member.name, scope, unit.unit, str(unit.dice))
        for role in models for member in models[role].networks for scope in member.scopes
        for unit in member.scope(scope).units
    ]  # fmt: skip
    units = rows_of(search.report / "test_patients.csv")
    assert [(it["role"], it["network"], it["scope"], it["unit"], it["dice"]) for it in units] == wanted
    table = rows_of(search.report / "test_table.csv")
    assert len(table) == 2 * 3 * 2 * 2 + 1, "two models of two networks and an ensemble, two scopes, two thresholds"
    assert table[0]["tp"] == str(models[BASELINE].members[0].scope(VOLUMES).pooled.tp)


def test_scores_without_postprocessing_are_named_so(make: Make) -> None:
    search = make(finals=True)
    open_test(search, 0.3)
    evaluation = evaluation_of(search)
    champion = evaluation.models[CHAMPION]
    members = [one.model_copy(update={"smallest_lesion_mm3": 7.0}) for one in champion.members]
    models = {**evaluation.models, CHAMPION: champion.model_copy(update={"members": members})}
    search.set_evaluation(evaluation.model_copy(update={"models": models}))
    text = text_of(write_report(search))
    assert "baseline: nothing; champion: lesions below 7 mm3 removed. Rows at the threshold 0.5 are scored" in text
    assert "baseline (paper) 0.5, no postprocessing" in text
    assert "champion (trial-0001) 0.5, no postprocessing" in text
    assert "the paper's Table I (other data) 0.5 0.9963" in text
    table = [row for row in rows_of(search.report / "test_table.csv") if row["network"] == "trial-0001-run0"]
    assert [(row["threshold"], row["smallest_lesion_mm3"]) for row in table] == [("0.4", "7.0"), ("0.5", "0.0")] * 2
    shown = StringIO()
    show_evaluation(Console(file=shown, width=200), evaluation_of(search))
    assert "0.5, no postprocessing" in shown.getvalue()


def test_yaml_and_commands_give_the_same_again(make: Make) -> None:
    search = make(finals=True, sampler="tpe", max_hours=1.5)
    text = text_of(write_report(search))
    config = SearchSpace.read(str(search.report / "champion.yaml")).single_configuration()
    assert config == search.trial(1).record().config
    space = SearchSpace.read(str(search.report / "space.yaml"))
    assert space.to_mapping() == SearchSpace.from_mapping(SPACE).to_mapping()
    command = (
        "wmlsearch tune space.yaml --data prepared --trials 8 --epochs 6 --sampler tpe --final-runs 2 --max-hours 1.5"
    )
    about = search.record()
    assert tune_command(about) == command
    assert command in text
    few = about.model_copy(update={"settings": about.settings.model_copy(update={"portfolio": 1})})
    assert tune_command(few) == f"{command} --portfolio 1"
    none = about.model_copy(update={"settings": about.settings.model_copy(update={"experience": False})})
    assert tune_command(none) == f"{command} --no-experience"
    commands = [f"wmlsearch train champion.yaml --data prepared --epochs 6 --seed {run}" for run in ("3", "4 --fold 1")]
    assert " ".join(commands) in text
    assert "seed 0; selection runs 1, 2; judgement runs 3, 4" in text


def test_a_search_from_before_a_default_and_a_shipped_space_changed(make: Make) -> None:
    """Its baseline is that of then, and the name of the shipped space means another one now."""
    search = make(finals=True)
    for run in (*search.trials(), *search.finals()):
        record = run.record()
        config = record.config.model_copy(update={"norm_momentum": 0.1})
        write_json(run.file("record"), record.model_copy(update={"config": config}).as_json())
    about = search.record()
    defaults = {**about.space.defaults, "norm_momentum": 0.1}
    of_then = about.space.model_copy(update={"source": "quick", "defaults": defaults})
    write_json(search.file("record"), about.model_copy(update={"space": of_then}).as_json())
    assert tune_command(search.record()).startswith("wmlsearch tune space.yaml ")
    assert [entry.name for entry in leaderboard(search).trials if entry.is_baseline] == ["trial-0000"]
    write_report(search)
    (line,) = [row for row in (search.report / "champion.yaml").read_text().splitlines() if "norm_momentum" in row]
    assert line.split() == ["norm_momentum:", "0.1"], "no note: it is the baseline's"
    shipped = about.space.model_copy(update={"source": "quick", "values": SearchSpace.read("quick").to_mapping()})
    assert tune_command(about.model_copy(update={"space": shipped})).startswith("wmlsearch tune quick ")


def test_commands_train_with_the_objective_of_the_search(make: Make) -> None:
    search = make(finals=True, objective="val_dice_best")
    assert "--data prepared --epochs 6 --objective val_dice_best --seed 3" in text_of(write_report(search))


def test_champion_and_baseline_without_a_common_judgement_run(make: Make) -> None:
    """Each side's only runs have failed, so there is no model, and `evaluate` would refuse."""
    search = make(finals=True)
    search.evaluation_file().unlink(missing_ok=True)
    search.model(CHAMPION).remove()
    text = text_of(write_report(search))
    assert "have finished no judgement run of the same fold" in text
    assert "wmlsearch evaluate" not in text


def test_commands_of_several_objectives(make: Make) -> None:
    search = make(objectives=["val_dice_patients_best", "images_per_s"], baseline=False)
    assert tune_command(search.record()).endswith(
        "--objectives val_dice_patients_best,images_per_s --trials 8 --epochs 6 --final-runs 2 --no-baseline"
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
    ("runs", "lead", "units", "word", "kind"),
    [
        (2, 0.3, 8, "better", "good"),
        (2, -0.3, 8, "worse", "bad"),
        (2, 0.0, 8, "not shown", "open"),
        (2, 0.3, 4, "not shown: too few patients", "open"),
        (1, 0.3, 8, "not shown: too few runs", "open"),
    ],
)
def test_each_verdict(runs: int, lead: float, units: int, word: str, kind: str, make: Make) -> None:
    search = make(trials=5, runs=runs, finals=True)
    open_test(search, lead, units)
    page = write_report(search)
    assert f'<div class="verdict {kind}"><b><i>(a) The configurations:</i> {word}</b>' in page.read_text()
    assert "forest" in figures_of(page), "the differences are shown also where there is no interval"
    if runs == 1:
        assert "±" not in text_of(page).split("Whole volumes, pooled")[1].split("Counts")[0]
        assert "(b) The models: better The models that you would use (single networks)" in text_of(page)


def test_patients_without_lesions_have_a_sentence_and_rows_of_their_own(make: Make) -> None:
    search = make(trials=5, finals=True)
    open_test(search, 0.3, units=8, lesion_free=7)
    page = write_report(search)
    verdict = evaluation_of(search).verdict
    assert verdict is not None
    assert verdict.lesion_free is not None
    text, false_lesions = text_of(page), verdict.lesion_free.endpoints[1]
    assert "7 test patients have no lesions, and are in neither claim. Found in them, as a mean: false volume" in text
    assert "this is not tested" not in text
    row = text.split("patients without lesions false volume (ml)")[1].split("The sealed test")[0]
    assert f"false lesions 7 {false_lesions.baseline:.4f} {false_lesions.champion:.4f}" in row
    assert text.split("(a) configurations (primary) ")[1].startswith("8 "), "patients with lesions"


def test_images_without_patients_have_numbers_and_a_picture_but_no_verdict(make: Make) -> None:
    search = make(finals=True, optimistic=True)
    open_test(search, 0.3, volumes=False, unit="images")
    page = write_report(search)
    text, figures = text_of(page), figures_of(page)
    assert "No verdict There is no verdict, because the patients of the test images are not known" in text
    assert figures[0] == "paired"
    assert figures.count("paired") == 1
    assert "forest" not in figures
    assert "(a)" not in text
    row = text.split("Dice (primary) ")[1].split("precision")[0]
    assert re.fullmatch(r"8 [\d.]+ [\d.]+ \+[\d.]+ \S \S ", row), "no interval and no p"


def test_a_search_whose_champion_is_the_baseline(make: Make) -> None:
    search = make(finals=True)
    reason = "Nothing better than the baseline configuration was found."
    search.set_selection(SelectionRecord(champion="paper", sentence=reason, seeds=[1, 2], means={"paper": 0.6}))
    page = write_report(search)
    assert f'<div class="verdict open"><b>Nothing better than the baseline</b><p>{reason}</p>' in page.read_text()
    assert "baseline and champion" in text_of(page)
    assert "folds" in figures_of(page)
    assert SearchSpace.read(str(search.report / "champion.yaml")).single_configuration() == TrialConfig()


def test_a_search_of_an_older_version_is_reported_as_it_was(make: Make) -> None:
    """Its verdict has no claims, and its final runs have no purpose."""
    search = make(finals=True, old=True)
    open_test(search, 0.3)
    evaluation = evaluation_of(search)
    assert evaluation.verdict is not None
    claims = dict.fromkeys(("configuration", "models", "lesion_free"))
    old = evaluation.verdict.model_copy(update={**claims, "sentence": "The champion is better."})
    search.set_evaluation(evaluation.model_copy(update={"verdict": old}))
    page = write_report(search)
    text = text_of(page)
    assert '<div class="verdict good"><b>Better</b><p>The champion is better.</p></div>' in page.read_text()
    assert "The verdict answers one question: does the mean Dice per patient differ?" in text
    assert "(a)" not in text
    assert figures_of(page) == ["history", "curves", "parallel", "importances", "paired", "volumes", "gallery"]
    assert "seed 0; final runs 0, 1" in text


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
    search.set_forecast(
        ForecastRecord(
            rungs=[], ends_by="", start_s=1, search_s=1, final_runs=0, final_epochs=0, final_s=0,
            gpu_hours=0, disk_bytes=1, peak_memory_mb=1, epochs=1, total_s=2,
        )
    )  # fmt: skip
    with search.locked():
        text = text_of(write_report(search))
    assert "The search was running when this page was written." in text
    assert "No verdict The search is still running. The sealed test is opened at its end." in text
    assert "the best trial so far. It was not confirmed in other runs" in text
    text = text_of(write_report(search))
    assert "segmentation on prepared : gone Verdict" in text
    assert "page was written, and no process held its folder: it died, or the folder is a copy of a search" in text
    assert "Forecast and actual use forecast so far" in text
    assert "No verdict The search had not finished when its process died, or when this folder was copied." in text
    assert "running when" not in text
    search.set_status("interrupted", "stopped by Ctrl-C")
    assert "interrupted (stopped by Ctrl-C)" in text_of(write_report(search))


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
            assert len(images) == 9
            assert all(wide > 0 and alt for wide, alt in images)
            outside = """[...document.querySelectorAll('main *')].filter(it => !it.closest('.wide, pre') &&
                it.getBoundingClientRect().right > innerWidth + 1).map(it => it.outerHTML.slice(0, 80))"""
            assert sheet.evaluate(outside) == []
