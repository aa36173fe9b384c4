"""The benchmarks' table, list and measuring functions. Nothing is timed."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import wait_for

from benchmarks import __main__ as bench
from benchmarks import packing
from benchmarks.processes import Overdue, call, descendants, mapped, memory
from benchmarks.table import HEAD, Row, table
from benchmarks.turnaround import platform_s

MB = 2**20


def test_rows_render_as_a_table() -> None:
    rows = [
        Row("a", "1 s", "b: 3 s", 3.14159, "2x less", True),
        Row("c", "2 s", aim="at most 1 s", met=False),
        Row("d", ""),
    ]
    assert table(rows).splitlines() == [
        *HEAD.splitlines(),
        "| a | 1 s | b: 3 s | 3.14 | 2x less | yes |",
        "| c | 2 s |  |  | at most 1 s | no |",
        "| d |  |  |  |  |  |",
    ]


@pytest.mark.parametrize("name", bench.NAMES)
def test_each_benchmark_has_measure_and_names_its_command(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert callable(module.measure)
    assert f"python -m benchmarks.{name}" in module.__doc__


def test_failed_benchmark_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "NAMES", ("nothing", "nowhere"))  # modules that do not exist
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path / "table.md")])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 1
    output = r"^1/2 nothing ...\n +failed after \d+ s\n2/2 nowhere ...\n +failed after \d+ s\n"
    assert re.search(output, capsys.readouterr().out)
    text = (tmp_path / "table.md").read_text()
    assert re.match(rf"{time.strftime('%Y-%m-%d')}, \d+ cores of .*, ray 2\..*, optuna 5\..*, mlflow 3\.", text)
    assert text.endswith(f"\n\n{HEAD}\n\nfailed: nothing, nowhere\n")


def test_platform_seconds_exclude_training() -> None:
    # Two slots: trials of 3, 4 and 3 s, each with 1 s of training. The third takes the slot that is free first.
    trials = [(0.5, 3.0, 1.0), (3.0, 6.0, 1.0), (0.5, 4.0, 1.0)]
    assert platform_s(trials, 0.0, 2) == [2.0, 3.0, 2.0]


def test_gpu_benchmarks_import_only_the_core() -> None:
    names = ", ".join(f"benchmarks.{name}" for name in ("frameworks", "packing", "peak", "training"))
    code = f"import sys, {names}; print(*sys.modules)"
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in words
    assert not {"ray", "mlflow", "optuna", "click", "sklearn"}.intersection(words)


def test_concurrent_trainings(prepared: Path) -> None:
    """Real processes on this CPU, a process that ended, and a table of given rates."""
    rates = packing.together(prepared, "cpu", max_count=2, seconds=0.1, repeats=1)
    assert len(rates) == 2
    assert all(0 < rate < 1e6 for rate in rates)
    mine, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(RuntimeError, match="a training process has ended with an error"):
        packing._answer(mine)
    *each, best = packing.rows([1000.0, 1900.0, 3100.0, 2900.0])
    assert [row.ratio for row in each] == [1.0, 1.9, 3.1, 2.9]
    assert re.fullmatch(r"baseline, batch 5, GPU, MPS (on|off), 2 at once", each[1].what)
    assert (best.ours, best.ratio, best.met) == ("3 at once", 3.1, True)


def test_call_in_a_subprocess() -> None:
    assert call(math.comb, 5, 2, limit_s=60) == 10
    with pytest.raises(RuntimeError, match=r"sqrt failed:\n(.*\n)*ValueError: "):
        call(math.sqrt, -1, limit_s=60)
    seen: set[int] = set()
    with pytest.raises(Overdue, match="check_call has not ended within 1 s"):
        call(subprocess.check_call, ["sleep", "60"], limit_s=1, watch=lambda pid: seen.update(descendants(pid)))
    assert seen
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in seen), 20)  # a kill takes its time


def test_memory_of_a_mapped_file_counts_once(tmp_path: Path) -> None:
    """Two processes that read the same mapped file: each counts half of it."""
    np.save(tmp_path / "data.npy", np.ones(64 * MB, np.uint8))
    array = np.load(tmp_path / "data.npy", mmap_mode="c")
    assert array.sum() == 64 * MB
    before = mapped(os.getpid(), tmp_path)
    assert before == pytest.approx(64 * MB, rel=0.01)
    assert memory(os.getpid()) > before
    code = "import sys, numpy; a = numpy.load(sys.argv[1], mmap_mode='c'); print(a.sum(), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "data.npy")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == 64 * MB
        assert mapped(os.getpid(), tmp_path) == pytest.approx(32 * MB, rel=0.01)
        assert mapped(other.pid, tmp_path) == pytest.approx(32 * MB, rel=0.01)
        other.communicate("")
