"""What the report says of the champion: its configuration, the final runs, and why there is no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.config import RunSettings
from wmlsearch.report.commands import config_yaml, train_commands
from wmlsearch.report.search_section import rate_factors_text
from wmlsearch.runs.files import write_text
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import Leaderboard
from wmlsearch.runs.liveness import GONE
from wmlsearch.runs.names import PAPER
from wmlsearch.runs.schema import RUNNING, SearchRecord, SelectionRecord
from wmlsearch.verdict.champion import Candidate, baseline_config, role_of
from wmlsearch.verdict.wording import states_of


@dataclass(frozen=True)
class ChampionView:
    """The champion; the best trial while there is none."""

    name: str
    has_final_runs: bool  # it has final runs; else it is the best trial
    yaml: str
    commands: list[str]  # that train it, one for each run
    rate_factors: str  # how population based training changed its learning rate, or ""


def champion_view(
    search: SearchDir, record: SearchRecord, board: Leaderboard, candidates: Sequence[Candidate], champion: str
) -> ChampionView | None:
    """Write `champion.yaml` of the champion or the best trial; return what the page shows, None without both."""
    candidate = next((candidate for candidate in candidates if candidate.name == champion), None)
    path = search.report / "champion.yaml"
    path.unlink(missing_ok=True)
    if candidate is not None:
        run = candidate.runs[0].run
        trainings = [(one.seed, one.fold) for one in candidate.judgement or candidate.selection]
    elif board.best is not None:
        run, trainings = RunDir(Path(board.best.path)), [(record.settings.seed, 0)]
    else:
        return None
    text = config_yaml(run.record().config, baseline_config(search))
    write_text(path, text)
    return ChampionView(
        name=champion or run.record().name,
        has_final_runs=candidate is not None,
        yaml=text,
        commands=train_commands(record, trainings),
        rate_factors=rate_factors_text(run),
    )


@dataclass(frozen=True)
class FinalRow:
    """A row of the table of final runs: a configuration."""

    name: str
    selection_runs: int
    judgement_runs: int
    mean: float | None  # over selection runs
    standard_error: float | None
    states: str
    role: str  # "baseline", "champion", "baseline and champion" or ""


def final_rows(candidates: Sequence[Candidate], champion: str) -> list[FinalRow]:
    """Return a row for each configuration with final runs."""
    return [
        FinalRow(
            name=candidate.name,
            selection_runs=len(candidate.selection),
            judgement_runs=len(candidate.judgement),
            mean=candidate.mean,
            standard_error=candidate.standard_error,
            states=states_of(candidate),
            role=role_of(candidate, champion),
        )
        for candidate in candidates
    ]


def seeds_of(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """Return the seeds of the final runs by their kind, such as "selection runs"; those of an old search have none."""
    seeds: dict[str, set[int]] = {}
    for candidate in candidates:
        for run in candidate.runs:
            seeds.setdefault(f"{run.record.purpose or 'final'} runs", set()).add(run.seed)
    return {kind: sorted(numbers) for kind, numbers in seeds.items()}


def why_no_verdict(
    settings: RunSettings,
    state: str,
    candidates: Sequence[Candidate],
    selection: SelectionRecord | None,
    comparable: bool,
) -> str:
    """Return a sentence that says why there is no verdict. `comparable`: both final models are there."""
    if not settings.baseline:
        return "This search was run without final runs and without the sealed test (--no-baseline)."
    if state == RUNNING:
        return "The search is still running. The sealed test is opened at its end."
    if state == GONE:
        return (
            "The search had not finished when its process died, or when this folder was copied. If it does not run "
            "elsewhere, `wmlsearch tune --resume` continues it."
        )
    if not candidates:
        return f"The search ended before its final runs (state: {state.replace('_', ' ')})."
    if not settings.confirm_top:
        return "This search was run without candidates (--confirm-top 0), so there is nothing to compare."
    if selection is not None and selection.champion == PAPER:
        return selection.sentence
    if not comparable:
        return (
            "Baseline and champion have finished no judgement run of the same fold, so there is nothing to compare. "
            "`wmlsearch tune --resume` tries again what failed."
        )
    return "The sealed test has not been opened yet. `wmlsearch tune --resume` or `wmlsearch evaluate` opens it."
