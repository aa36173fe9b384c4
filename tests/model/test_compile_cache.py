"""Files with compiled code: what is loaded, what is ignored with a warning, and that nothing of it stops a training."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wmlsearch.config import TrialConfig
from wmlsearch.model import compile_cache
from wmlsearch.model.compile_cache import CompileCache, CompiledFor

CPU = torch.device("cpu")
CONFIG = TrialConfig()
MADE_FOR = CompiledFor.of(CONFIG, 256, False, CPU)
INFO = SimpleNamespace(artifacts={"inductor": ["key"]})  # as torch describes artifacts


class Files:
    """A store in memory, which may have a fault."""

    def __init__(self) -> None:
        self.content: dict[tuple[str, str], bytes] = {}
        self.fault: Exception | None = None

    def names(self, folder: str) -> list[str]:
        self._answer()
        return [name for of, name in self.content if of == folder]

    def read(self, folder: str, name: str) -> bytes | None:
        self._answer()
        return self.content.get((folder, name))

    def write(self, folder: str, name: str, content: bytes) -> None:
        self._answer()
        self.content[folder, name] = content

    def _answer(self) -> None:
        if self.fault is not None:
            raise self.fault


@pytest.fixture(autouse=True)
def _no_warning_before() -> Iterator[None]:
    compile_cache._warned.clear()
    yield
    compile_cache._warned.clear()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What torch is given to load."""
    given: list[bytes] = []

    def load(content: bytes) -> object | None:
        given.append(content)
        return None if content == b"odd" else INFO

    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"arti\nfacts", INFO))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", load)
    return given


def warned(action: Callable[[], None]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in caught]


def test_what_is_saved_is_loaded(loaded: list[bytes]) -> None:
    files = Files()
    assert warned(CompileCache(files, MADE_FOR).load) == [], "there is nothing yet"
    CompileCache(files, MADE_FOR).save(5, compiled_anew=True)
    CompileCache(files, MADE_FOR).save(16, compiled_anew=True)
    assert sorted(files.content) == [(MADE_FOR.folder, "16-images"), (MADE_FOR.folder, "5-images")]
    assert warned(CompileCache(files, MADE_FOR).load) == []
    assert loaded == [b"arti\nfacts"] * 2
    CompileCache(files, replace(MADE_FOR, bfloat16=True)).load()
    assert len(loaded) == 2, "the code of another network is in another folder"


def cut(content: bytes) -> bytes:
    return content[:-1]


def change_a_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def of_another_version(content: bytes) -> bytes:
    return content.replace(b'"format":1', b'"format":2', 1)


def of_another_machine(content: bytes) -> bytes:
    header, _, artifacts = content.partition(b"\n")
    values = json.loads(header)
    values["made_for"]["device"] = "another"
    return json.dumps(values).encode() + b"\n" + artifacts


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cut, "ValueError: it is damaged"),
        (change_a_bit, "ValueError: it is damaged"),
        (lambda _: b"", "ValueError: it is damaged, or of another version of wmlsearch"),
        (lambda _: b"\x80\x04N.", "ValueError: it is damaged, or of another version of wmlsearch"),
        (of_another_version, "ValueError: it is damaged, or of another version of wmlsearch"),
        (of_another_machine, "ValueError: it was made for another network, machine or version of PyTorch"),
    ],
)
def test_a_file_that_cannot_be_used_is_ignored(
    change: Callable[[bytes], bytes], reason: str, loaded: list[bytes]
) -> None:
    files = Files()
    cache = CompileCache(files, MADE_FOR)
    cache.save(5, compiled_anew=True)
    cache.save(7, compiled_anew=True)
    files.content[cache.folder, "5-images"] = change(files.content[cache.folder, "5-images"])
    assert warned(cache.load) == [f"the compiled network {cache.folder}/5-images is ignored: {reason}"]
    assert loaded == [b"arti\nfacts"], "the other file is used"
    assert warned(cache.load) == [], "said once"


def test_what_torch_cannot_read_is_ignored(loaded: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"odd", INFO))
    cache = CompileCache(Files(), MADE_FOR)
    cache.save(5, compiled_anew=True)
    (text,) = warned(cache.load)
    assert text == f"the compiled network {cache.folder}/5-images is ignored: ValueError: PyTorch cannot read it"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (ValueError("no XML"), "ValueError: no XML"),  # as Arrow's errors are
    ],
    ids=str,
)
def test_a_store_that_is_away_stops_nothing(fault: Exception, reason: str, loaded: list[bytes]) -> None:
    files = Files()
    files.fault = fault
    cache = CompileCache(files, MADE_FOR)
    assert warned(cache.load) == [f"stored compiled networks cannot be read, so networks are compiled again: {reason}"]
    assert warned(lambda: cache.save(5, compiled_anew=True)) == [
        f"a compiled network is not kept for later trainings: {reason}"
    ]
    assert loaded == []


def test_what_only_this_machine_had_is_kept_and_what_a_file_has_is_not_written_again(loaded: list[bytes]) -> None:
    files = Files()
    CompileCache(files, MADE_FOR).save(5, compiled_anew=False)
    assert list(files.content) == [(MADE_FOR.folder, "5-images")], "it was on this machine's disk"
    cache = CompileCache(files, MADE_FOR)
    cache.load()
    cache.save(7, compiled_anew=False)
    assert list(files.content) == [(MADE_FOR.folder, "5-images")]
    cache.save(7, compiled_anew=True)
    assert len(files.content) == 2, "code for another range of sizes may have the same key"


def test_nothing_is_written_where_torch_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    files = Files()
    CompileCache(files, MADE_FOR).save(5, compiled_anew=True)
    assert files.content == {}


@pytest.mark.parametrize(
    "values",
    [
        {"depth": 3},
        {"base_channels": 8},
        {"network": "residual"},
        {"norm": "instance"},
        {"norm_momentum": 0.2},
        {"input_slices": 3},
        {"dropout": 0.0},
        {"dropout_place": "last"},
    ],
    ids=str,
)
def test_another_network_has_another_folder(values: dict[str, Any]) -> None:
    other = CompiledFor.of(CONFIG.model_copy(update=values), 256, False, CPU)
    assert re.fullmatch(r"[0-9a-f]{24}", other.folder)
    assert other.folder != MADE_FOR.folder


@pytest.mark.parametrize("values", [{"batch_size": 16}, {"dropout": 0.3}, {"learning_rate": 0.1}, {"loss": "dice"}])
def test_what_code_does_not_depend_on_shares_a_folder(values: dict[str, Any]) -> None:
    assert CompiledFor.of(CONFIG.model_copy(update=values), 256, False, CPU).folder == MADE_FOR.folder


def test_code_depends_on_size_precision_threads_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {MADE_FOR.folder, CompiledFor.of(CONFIG, 128, False, CPU).folder}
    folders.add(CompiledFor.of(CONFIG, 256, True, CPU).folder)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    folders.add(CompiledFor.of(CONFIG, 256, False, CPU).folder)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    for name in ("NVIDIA H100", "NVIDIA H200"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        on_gpu = CompiledFor.of(CONFIG, 256, False, torch.device("cuda", 0))
        assert on_gpu.device == f"{name}, compute capability 9.0, CUDA {torch.version.cuda}"
        folders.add(on_gpu.folder)
    assert len(folders) == 6


def test_the_reason_of_an_error_is_what_caused_it() -> None:
    error = RuntimeError("backend failed\nwith details")
    assert compile_cache.short_reason(error) == "RuntimeError: backend failed"
    error.__cause__ = FileNotFoundError(2, "No such file", "g++")
    assert compile_cache.short_reason(error) == "FileNotFoundError: [Errno 2] No such file: 'g++'"
    assert compile_cache.short_reason(ValueError("\n one \n two")) == "ValueError: one"
    assert compile_cache.short_reason(ValueError()) == "ValueError: without a text"
    away = OSError("http://user:secret@host/x does not answer")
    assert compile_cache.short_reason(away) == "OSError: http://user:***@host/x does not answer"
