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
from wmlsearch.runs.schema import RUNNING, SearchRecord
from wmlsearch.verdict.champion import Candidate, finished_baseline, role_of, select_champion
from wmlsearch.verdict.wording import states_of


@dataclass(frozen=True)
class ChampionView:
    """The champion; the best trial while there is none."""

    name: str
    confirmed: bool  # it has final runs; else it is the best trial
    yaml: str
    commands: list[str]  # that train it, one for each seed
    rate_factors: str  # how population based training changed its learning rate, or ""


def champion_view(
    search: SearchDir, record: SearchRecord, board: Leaderboard, candidates: Sequence[Candidate], champion: str
) -> ChampionView | None:
    """Write `champion.yaml` of the champion or the best trial; return what the page shows, None without both."""
    candidate = next((candidate for candidate in candidates if candidate.name == champion), None)
    path = search.report / "champion.yaml"
    path.unlink(missing_ok=True)
    if candidate is not None:
        run, seeds = candidate.runs[0], [run.record().settings.seed for run in candidate.runs]
    elif board.best is not None:
        run, seeds = RunDir(Path(board.best.path)), [record.settings.seed]
    else:
        return None
    text = config_yaml(run.record().config.model_dump())
    write_text(path, text)
    return ChampionView(
        name=champion or run.record().name,
        confirmed=candidate is not None,
        yaml=text,
        commands=train_commands(record, seeds),
        rate_factors=rate_factors_text(run),
    )


@dataclass(frozen=True)
class FinalRow:
    """A row of the table of final runs: a configuration."""

    name: str
    seeds: int
    mean: float | None
    standard_error: float | None
    score: float | None
    states: str
    role: str  # "baseline", "champion" or ""


def final_rows(candidates: Sequence[Candidate], champion: str) -> list[FinalRow]:
    """Return a row for each configuration with final runs."""
    return [
        FinalRow(
            name=candidate.name,
            seeds=len(candidate.runs),
            mean=candidate.mean,
            standard_error=candidate.standard_error,
            score=candidate.score,
            states=states_of(candidate),
            role=role_of(candidate, champion),
        )
        for candidate in candidates
    ]


def why_no_verdict(settings: RunSettings, state: str, candidates: Sequence[Candidate]) -> str:
    """Return a sentence that says why there is no verdict."""
    if not settings.baseline:
        return "This search was run without final runs and without the sealed test (--no-baseline)."
    if state == RUNNING:
        return "The search is still running. The sealed test is opened at its end."
    if not candidates:
        return f"The search ended before its final runs (state: {state.replace('_', ' ')})."
    if finished_baseline(candidates) is None:
        return "The baseline configuration did not finish with all seeds, so there is nothing to compare with."
    if select_champion(candidates) is None:
        return "No candidate configuration finished with all seeds."
    return "The sealed test has not been opened yet. `wmlsearch tune --resume` or `wmlsearch evaluate` opens it."
