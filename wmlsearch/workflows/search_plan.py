"""What a search is asked to do (`SearchRequest`), and what preflight makes of it (`SearchPlan`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import EXPERIMENT
from wmlsearch.runs.schema import DataRecord, SearchRecord
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.placement import LOCAL, Placement
from wmlsearch.workflows.stored_search import NO_STORAGE, StoredSearch

if TYPE_CHECKING:
    from wmlsearch.cluster.resources import Reserved, Slots
    from wmlsearch.forecast.gpu_sharing import Packing


@dataclass(frozen=True)
class SearchRequest:
    """What `tune` or `plan` asks for, before anything of it is checked."""

    space: SearchSpace
    settings: RunSettings
    data: Path  # folder of the prepared data set
    placement: Placement = LOCAL
    warm_start: Sequence[SearchDir] = ()  # earlier searches whose trials the study learns from
    experiment: str = EXPERIMENT  # of MLflow; a resumed search keeps its own
    on_end: str | None = None  # a shell command that is run when the search has ended


@dataclass(frozen=True, kw_only=True)
class ResumeRequest(SearchRequest):
    """What `tune --resume` asks for."""

    recorded_data: DataRecord  # the data set that the search began with
    stored: StoredSearch = NO_STORAGE  # the lease that this process holds of the search

    @classmethod
    def of(
        cls,
        search: SearchDir,
        record: SearchRecord,
        settings: RunSettings,
        data: Path | None = None,
        placement: Placement = LOCAL,
        stored: StoredSearch = NO_STORAGE,
    ) -> ResumeRequest:
        """Return the request to resume a search. Raises InputError if it cannot be resumed.

        Args:
            search: The search.
            record: The content of `search.json`.
            settings: The settings of the record, perhaps with changed budgets.
            data: Folder of the prepared data set, if it was moved.
            placement: The Ray, and the storage if it was moved. The shape of the trials stays as recorded.
            stored: The lease that this process holds, if the search has a storage.
        """
        lacking = [name for name in ("shape", "data_path") if not getattr(record, name)]
        if record.shape is None or lacking:
            raise InputError(
                f"{search.file('record')}: lacks {' and '.join(lacking)}, so this search cannot be resumed; "
                "start a new search"
            )
        placement = placement.of_resumed(record.name, record.shape, record.storage)
        if data is None:
            data = Path(record.data_path)
            if not data.exists():
                data = stored.fetch_data(record, search.path.parent)
        return cls(record.space.space(), settings, data, placement, recorded_data=record.data, stored=stored)


@dataclass(frozen=True)
class CheckedData:
    """The prepared data set of a request, compared with its checksums and with the search space."""

    manifest: Manifest  # of the training and validation patients; the sealed test has one of its own
    record: DataRecord  # what each run folder records of the data set


@dataclass(frozen=True)
class SearchPlan:
    """What a search is going to do: what preflight has read, checked and decided.

    The forecast and the trials take these facts from here. The steps after the trials also run alone, for an older
    search, so they read the manifest or `search.json` themselves.
    """

    space: SearchSpace
    settings: RunSettings
    data: Path  # folder of the prepared data set
    manifest: Manifest  # of the training and validation patients
    data_record: DataRecord  # what each run folder records of the data set
    placement: Placement  # its `trials_per_gpu` is a number
    slots: Slots  # how many trials run at once, and the resources of each
    # The same for the final runs, for the forecast only: before they begin, machines may have joined or left a cluster.
    forecast_final_slots: Slots
    reserved: Reserved = field(default_factory=dict)  # what others had of the cluster when the search began
    packing: Packing | None = None  # the measurement behind `--trials-per-gpu auto`
