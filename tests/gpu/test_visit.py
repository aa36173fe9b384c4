"""The script of a visit to a machine with a GPU, without a GPU: parts of wheels, stages that do nothing, the table."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import visit_commands
import visit_stages
import visit_wheels
from packaging.requirements import Requirement
from paths import REPOSITORY
from visit_parts import VisitError, install, installed_site, join, read_contents, split
from visit_stages import Machine, Result, Stage, note, results, run_stages
from visit_table import summary, tables
from visit_wheels import Distribution, Target, choose, read_installed, roots

from benchmarks import frameworks
from wmlsearch.runs.folders import SearchDir

SCRIPT = REPOSITORY / "tests" / "gpu" / "visit"
MACHINE = Machine("NVIDIA H100", {"Python": "3.12.3", "torch": "2.11.0"})
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """Files of 1, 40 and 250 bytes."""
    paths = [tmp_path / f"{name}-1.0-py3-none-any.whl" for name in ("small", "middle", "large")]
    for path, size in zip(paths, (1, 40, 250), strict=True):
        path.write_bytes(os.urandom(size))
    return paths


def shell(name: str, script: str, limit_s: float = 60) -> Stage:
    return Stage(name, f"the stage {name}", ("sh", "-c", script), limit_s)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def overdue(ready: Path) -> Callable[[], float]:
    """Return a clock by which an hour passes at once when a file exists."""
    return lambda: time.monotonic() + 3600 * ready.exists()


def test_wheels_are_split_into_parts_and_joined(wheels: list[Path], tmp_path: Path) -> None:
    contents = split(tmp_path / "parts", wheels, HERE, 100)
    assert [len(wheel.pieces) for wheel in contents.wheels] == [1, 1, 3]
    assert contents.parts == 3
    for part in (tmp_path / "parts").iterdir():
        assert 0 < sum(path.stat().st_size for path in part.iterdir() if path.name != "contents.json") <= 100
    joined = join(tmp_path / "parts", tmp_path / "joined")
    assert [path.name for path in joined] == [path.name for path in wheels]
    assert [path.read_bytes() for path in joined] == [path.read_bytes() for path in wheels]


def test_a_wheel_of_exactly_a_part_is_not_cut(wheels: list[Path], tmp_path: Path) -> None:
    contents = split(tmp_path / "parts", wheels, HERE, 250)
    assert [[piece.file for piece in wheel.pieces] for wheel in contents.wheels] == [[path.name] for path in wheels]
    assert contents.parts == 2


def test_parts_that_cannot_be_joined_are_named(wheels: list[Path], tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    with pytest.raises(VisitError, match="has no part-1"):
        read_contents(parts)
    first = split(parts, wheels, HERE, 100)
    damaged = parts / f"part-{first.wheels[2].pieces[1].part}" / first.wheels[2].pieces[1].file
    content = damaged.read_bytes()
    damaged.write_bytes(bytes(len(content)))
    with pytest.raises(VisitError, match=rf"{damaged.name}: is damaged; carry this part again"):
        join(parts, tmp_path / "joined")
    damaged.unlink()
    with pytest.raises(VisitError, match=rf"{damaged.name}: is missing"):
        join(parts, tmp_path / "joined")
    damaged.write_bytes(content)
    wheels[0].write_bytes(b"x")
    other = split(tmp_path / "others", wheels, HERE, 100)
    assert other.digest != first.digest
    other.write(parts / "part-2")
    with pytest.raises(VisitError, match="part-2: is of other wheels than part-1; carry all parts again"):
        read_contents(parts)
    (parts / "part-2").rename(tmp_path / "elsewhere")
    with pytest.raises(VisitError, match="part-2 of 3 parts is missing; carry it here too"):
        read_contents(parts)


@pytest.fixture
def tiny_parts(tmp_path: Path) -> Path:
    """The parts of one installable wheel, which is in pieces."""
    wheel, about = tmp_path / "tinywheel-1.0-py3-none-any.whl", "tinywheel-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinywheel.py", "VALUE = 7\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tinywheel\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    assert split(tmp_path / "parts", [wheel], HERE, 300).parts > 1
    return tmp_path / "parts"


def test_wheels_are_installed_into_a_folder_of_their_own(tiny_parts: Path) -> None:
    site = install(tiny_parts)
    assert (site / "tinywheel.py").read_text() == "VALUE = 7\n"
    assert installed_site(tiny_parts) == site
    (site / "tinywheel.py").unlink()
    assert not (install(tiny_parts) / "tinywheel.py").exists()  # the folder is there already


def test_wheels_for_another_python_are_refused(wheels: list[Path], tmp_path: Path) -> None:
    split(tmp_path / "parts", wheels, "3.1", 300)
    with pytest.raises(VisitError, match=rf"for Python 3.1, and this is {HERE}; make them with --python {HERE}"):
        install(tmp_path / "parts")


def test_what_is_still_missing_is_in_the_result_of_the_installation(
    tiny_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(visit_commands, "missing", lambda _: ["scipy>=1.15 (it has 1.14.0)"])
    visit_commands.install_stage(tiny_parts, tmp_path / "out", "NVIDIA H100", "13.0")
    result = results(tmp_path / "out")["install"]
    assert (result.state, result.error) == ("failed", "missing: scipy>=1.15 (it has 1.14.0)")
    monkeypatch.undo()
    site = visit_commands.install_stage(tiny_parts, tmp_path / "out", "NVIDIA H100", "13.0")
    result = results(tmp_path / "out")["install"]
    assert (result.state, result.numbers, result.versions["CUDA"]) == ("passed", {"wheels": 1}, "13.0")
    assert visit_commands.install_stage(tiny_parts, tmp_path / "out", "another", None) == site
    assert results(tmp_path / "out")["install"] == result


def test_what_the_machine_lacks_is_chosen() -> None:
    resolved = {
        name: Distribution(name, version, tuple(map(Requirement, needs)))
        for name, version, needs in [
            ("ray", "2.60.0", ["click>=7", 'opencensus; extra == "default"', 'virtualenv; extra == "other"']),
            ("click", "8.5.1", ["colorama; sys_platform == 'win32'"]),
            ("opencensus", "0.11.4", ["protobuf>=5", "importlib-resources; python_version < '3.12'"]),
            ("protobuf", "7.36.2", []),
            ("importlib-resources", "7.1.0", []),
            ("scipy", "1.17.1", ["numpy>=2"]),
            ("numpy", "2.4.6", []),
        ]
    }
    needed = [Requirement("ray[default]"), Requirement("scipy>=1.15"), Requirement("torch>=2.6")]
    installed = {"torch": "2.11.0+cu130", "numpy": "", "click": "8.1.0", "protobuf": "4.25.0"}
    chosen, unresolved = choose(needed, resolved, installed, Target("3.12").environment)
    assert [one.name for one in chosen] == ["opencensus", "protobuf", "ray", "scipy"]
    assert unresolved == []
    chosen, _ = choose(needed, resolved, {**installed, "protobuf": "6.33.0"}, Target("3.11").environment)
    assert [one.name for one in chosen] == ["importlib-resources", "opencensus", "ray", "scipy"]


def test_what_pip_left_out_because_of_its_own_python_is_named() -> None:
    resolved = {"ray": Distribution("ray", "2.60.0", (Requirement("setuptools; python_version >= '3.12'"),))}
    chosen, unresolved = choose([Requirement("ray")], resolved, {}, Target("3.12").environment)
    assert [one.name for one in chosen] == ["ray"]
    assert [one.name for one in unresolved] == ["setuptools"]
    assert choose([Requirement("ray")], resolved, {}, Target("3.11").environment)[1] == []


def write_wheel(folder: Path, name: str, needs: list[str], tag: str = "py3-none-any") -> None:
    """Write a wheel that has its requirements only."""
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        lines = [f"Name: {name}", *(f"Requires-Dist: {one}" for one in needs)]
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n\n# about\nRequires-Dist: no\n")


def test_nnunet_is_carried_without_torch_and_what_it_does_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {
        "nnunetv2": ["torch>=2", "acvl-utils<0.3", "scipy", "imagecodecs", 'pre-commit; extra == "dev"'],
        "acvl-utils": ["nnunetv2", "SimpleITK>=2", "backport; python_version < '3.12'"],
    }
    made: list[str] = []

    def pip(verb: str, *words: str) -> None:
        assert (verb, words[:2]) == ("wheel", ("--no-deps", "--wheel-dir"))
        made.append(words[-1])
        name = Requirement(words[-1]).name
        write_wheel(Path(words[2]), name.replace("-", "_"), needs[name])

    monkeypatch.setattr(visit_wheels, "_pip", pip)
    others = visit_wheels.nnunet_wheels(tmp_path, Target("3.12").environment)
    assert made == [str(Requirement(visit_wheels.NNUNET)), "acvl-utils<0.3"]
    assert sorted(map(str, others)) == ["SimpleITK>=2", "scipy"]
    monkeypatch.setattr(
        visit_wheels, "_pip", lambda *words: write_wheel(Path(words[3]), "nnunetv2", [], "cp312-cp312-linux_x86_64")
    )
    (tmp_path / "another").mkdir()
    with pytest.raises(VisitError, match=r"nnunetv2-1.0-cp312-cp312-linux_x86_64.whl: runs on machines like this one"):
        visit_wheels.nnunet_wheels(tmp_path / "another", Target("3.12").environment)


def test_where_nnunet_cannot_be_carried_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot(folder: Path, environment: dict[str, str]) -> list[Requirement]:
        (folder / "nnunetv2-1.0-py3-none-any.whl").touch()
        raise VisitError("pip wheel ended with status 1")

    downloads: list[str] = []
    monkeypatch.setattr(visit_wheels, "nnunet_wheels", cannot)
    monkeypatch.setattr(visit_wheels, "select", lambda *_: [Distribution("ray", "2.60.0", ())])
    monkeypatch.setattr(visit_wheels, "_pip", lambda *words: downloads.extend(words[-2:]))
    assert visit_wheels.download(tmp_path, Target(), {}) == []
    assert downloads == ["ray==2.60.0", "monai"]
    assert capsys.readouterr().out == (
        "note: nnU-Net is left out (pip wheel ended with status 1); "
        "the stage `nnunet` will say that it isn't installed\n"
    )
    visit_wheels.download(tmp_path, Target(), {}, nnunet=False)
    assert capsys.readouterr().out == ""


def test_the_list_of_what_a_machine_has(tmp_path: Path) -> None:
    (tmp_path / "freeze").write_text("# pip freeze\nSciPy==1.17.1\nfoo_bar @ file:///wheels/foo.whl\n\nclick\n-e .\n")
    assert read_installed(tmp_path / "freeze") == {
        "torch": "", "triton": "", "numpy": "", "scipy": "1.17.1", "foo-bar": "", "click": "",
    }  # fmt: skip
    assert "torch" not in {requirement.name for requirement in roots()}
    assert {"ray", "optuna", "mlflow", "nibabel", "pydantic", "pytest"} <= {requirement.name for requirement in roots()}


def test_platforms_of_a_machine() -> None:
    assert Target(glibc="2.17").platforms[:3] == [
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
        "manylinux_2_16_x86_64",
    ]
    assert Target(glibc="2.35", arch="aarch64").platforms[0] == "manylinux_2_35_aarch64"
    with pytest.raises(VisitError, match=r"--python must be a version such as 3.12, but got 3.12.1"):
        Target(python="3.12.1")


def test_stages_write_their_results_at_once_and_go_on_after_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stages = [
        shell("good", "echo one; echo two"),
        shell("bad", f"test -s {out}/good.json && echo broken >&2; exit 3"),
        shell("last", f"test -s {out}/bad.json"),
    ]
    said: list[str] = []
    ended = run_stages(stages, out, MACHINE, say=said.append)
    assert [(one.stage, one.state, one.error) for one in ended] == [
        ("good", "passed", ""), ("bad", "failed", "ended with status 3"), ("last", "passed", ""),
    ]  # fmt: skip
    assert [one.lines for one in ended] == [["one", "two"], ["broken"], []]
    assert list(results(out).values()) == sorted(ended, key=lambda one: one.stage)
    assert said[0] == "1/3 good (at most 60 s) ..."
    assert (ended[0].card, ended[0].versions) == (MACHINE.card, MACHINE.versions)


def test_stages_with_a_result_are_not_run_again(tmp_path: Path) -> None:
    stages = [shell(name, f"echo run >> {tmp_path}/{name}; test {name} = good") for name in ("good", "bad")]

    def runs() -> list[int]:
        return [len((tmp_path / name).read_text().splitlines()) for name in ("good", "bad")]

    first = run_stages(stages, tmp_path / "out", MACHINE)
    assert run_stages(stages, tmp_path / "out", MACHINE) == first
    assert runs() == [1, 1]
    run_stages(stages, tmp_path / "out", MACHINE, again=["bad"])
    assert runs() == [1, 2]
    (tmp_path / "out" / "good.json").unlink()  # as if the visit had been cut short before
    run_stages(stages, tmp_path / "out", MACHINE)
    assert runs() == [2, 2]


def test_a_stage_at_its_limit_is_ended_with_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that ignore SIGTERM too, and those in a session of their own. What it noted is kept."""
    monkeypatch.setattr(visit_stages, "GRACE_S", 0.5)
    line = json.dumps({"numbers": {"trials": 4}, "rows": [], "error": ""})
    script = f"""
    trap '' TERM
    echo '{line}' >> "$VISIT_NOTES"; printf '{{"num' >> "$VISIT_NOTES"
    setsid sh -c 'sleep 600 & echo $! > {tmp_path}/other; wait' &
    while [ ! -s {tmp_path}/other ]; do sleep 0.02; done
    sleep 600 & echo $! > {tmp_path}/child
    echo $$ > {tmp_path}/stage
    wait; sleep 600
    """
    (result,) = run_stages([shell("hangs", script)], tmp_path / "out", MACHINE, clock=overdue(tmp_path / "stage"))
    assert (result.state, result.error) == ("timed out", "not done after 60 s")
    assert (result.numbers, result.left_behind) == ({"trials": 4}, [])
    for name in ("stage", "child", "other"):
        assert not is_alive(int((tmp_path / name).read_text())), name


def test_a_stage_at_its_limit_may_end_itself(tmp_path: Path) -> None:
    script = f"trap 'echo ended > {tmp_path}/trace; exit 1' TERM; touch {tmp_path}/ready; sleep 600 & wait"
    (result,) = run_stages([shell("ends", script)], tmp_path / "out", MACHINE, clock=overdue(tmp_path / "ready"))
    assert result.state == "timed out"
    assert (tmp_path / "trace").read_text() == "ended\n"


def test_what_a_stage_leaves_running_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit_stages, "GRACE_S", 0.5)
    with subprocess.Popen(["sleep", "600"]) as ours:  # a process of the caller that is not the stage's
        script = f"setsid sleep 599 & echo $! > {tmp_path}/left"
        (result,) = run_stages([shell("leaves", script)], tmp_path / "out", MACHINE)
        assert (result.state, result.left_behind) == ("passed", ["sleep 599"])
        assert not is_alive(int((tmp_path / "left").read_text()))
        assert ours.poll() is None
        ours.kill()


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """The event that SIGTERM to this process sets."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield visit_stages.stop_on_signals()
    for number, handler in before:
        signal.signal(number, handler)


def test_a_stopped_visit_goes_on_with_the_interrupted_stage(tmp_path: Path, stop: threading.Event) -> None:
    out = tmp_path / "out"
    stages = [shell("first", "true"), shell("second", f"echo $$ > {tmp_path}/pid; kill -TERM $PPID; sleep 600")]
    ended = run_stages([*stages, shell("third", "true")], out, MACHINE, stop=stop)
    assert [(one.stage, one.state) for one in ended] == [("first", "passed"), ("second", "interrupted")]
    assert list(results(out)) == ["first", "second"]
    assert not is_alive(int((tmp_path / "pid").read_text()))
    said: list[str] = []
    run_stages([stages[0], shell("second", "true")], out, MACHINE, say=said.append)
    assert said[0].startswith("1/2 first: passed on 20")
    assert results(out)["second"].state == "passed"


def test_stages_are_at_most_five_minutes() -> None:
    with pytest.raises(ValueError, match=r"0 < limit_s <= 300 must hold, but got 301 for long"):
        shell("long", "true", 301)


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text('{"stage": "search"}')
    with pytest.raises(ValueError, match=r"search.json: is no result of a stage .*delete it, and run the stage again"):
        results(tmp_path)


def test_table_has_one_part_for_each_machine() -> None:
    row = {"what": "batch 5", "ours": "1580 images/s", "reference": "464", "ratio": 3.41, "aim": "5", "met": False}
    search = Result(
        stage="search",
        what="a search",
        state="passed",
        began="2026-11-29 18:02:11",
        seconds=101.4,
        limit_s=300,
        card=MACHINE.card,
        versions=MACHINE.versions,
        numbers={"trials": {"completed": 3, "stopped": 5}, "epochs": 92, "rate": 1.23456, "refused": True},
    )
    benchmark = replace(search, stage="training", what="benchmark", numbers={}, rows=[row], began="2026-11-29 18:05:00")
    failed = replace(
        search,
        stage="peak",
        what="a|b",
        state="failed",
        error="no memory",
        card="2 x A100",
        began="2026-11-30 09:00:00",
    )
    assert tables([failed, benchmark, search]) == (
        "2026-11-29, NVIDIA H100, Python 3.12.3, torch 2.11.0. 2 passed.\n\n"
        "| stage | result | seconds | numbers |\n|---|---|---:|---|\n"
        "| a search | passed | 101 | trials 3 completed, 5 stopped; epochs 92; rate 1.235; refused yes |\n"
        "| benchmark | passed | 101 | rows below: 1 |\n\n"
        "| what | wmlsearch | reference | ratio | aim | met |\n|---|---|---|---:|---|---|\n"
        "| batch 5 | 1580 images/s | 464 | 3.41 | 5 | no |\n\n"
        "2026-11-30, 2 x A100, Python 3.12.3, torch 2.11.0. 1 failed.\n\n"
        "| stage | result | seconds | numbers |\n|---|---|---:|---|\n"
        "| a\\|b | failed | 101 | **no memory**; trials 3 completed, 5 stopped; epochs 92; rate 1.235; refused yes |\n"
    )
    assert summary([]) == "nothing was run"


def test_each_stage_has_its_job_and_is_documented() -> None:
    import visit_jobs

    names = [one.name for one in visit_commands.PLAN]
    assert list(visit_jobs.JOBS) == names
    rows = re.findall(r"^   \| (`[^|]*) \|", (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"`([a-z-]+)`", " ".join(rows)) == names


def test_a_job_notes_its_numbers_and_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(folder: Path, small: bool) -> None:
        assert list(folder.iterdir()) == []
        note({"trials": 8})
        lost = 2
        assert lost == 0

    monkeypatch.setitem(sys.modules, "visit_jobs", types.SimpleNamespace(JOBS={"search": job}))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("VISIT_NOTES", str(tmp_path / "notes"))
    with pytest.raises(SystemExit) as ended:
        visit_commands.main(["stage", "search", "--cpu"])
    first, last = map(json.loads, (tmp_path / "notes").read_text().splitlines())
    assert (ended.value.code, first["numbers"]) == (1, {"trials": 8})
    assert last["error"].startswith("AssertionError: ")


def test_frameworks_are_compared_in_the_time_of_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import visit_jobs

    commands: list[tuple[str, ...]] = []

    def run(*words: str) -> None:
        commands.append(words[1:])
        Path(words[words.index("--json") + 1]).write_text('[{"what": "monai", "ours": ""}]')

    monkeypatch.setattr(visit_jobs, "_command", run)
    monkeypatch.setenv("VISIT_NOTES", str(tmp_path / "notes"))
    for stage in ("frameworks", "nnunet"):
        visit_jobs.JOBS[stage](tmp_path, True)
    given = ["-m", "benchmarks.frameworks", "--json", str(tmp_path / "rows.json"), "--limit-s", "280", "--only"]
    names = [command[len(given) :] for command in commands]
    assert [list(command[: len(given)]) for command in commands] == [given, given]
    assert sorted(sum(names, ())) == sorted(frameworks.NAMES)
    assert json.loads((tmp_path / "notes").read_text().splitlines()[0])["rows"] == [{"what": "monai", "ours": ""}]


def test_the_numbers_of_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import visit_jobs

    monkeypatch.setenv("VISIT_NOTES", str(tmp_path / "notes"))
    visit_jobs.note_search(SearchDir(REPOSITORY / "tests" / "old_files" / "finished"))
    first, numbers = (json.loads(line)["numbers"] for line in (tmp_path / "notes").read_text().splitlines())
    assert first == {"trials": {"completed": 4}, "final runs": 4}
    assert numbers == {
        "epochs": 32,
        "seconds to the first epoch": 57.4,
        "seconds in all": 159.8,
        "GPU seconds": 0.0,
        "images/s (median)": 191,
        "peak memory, MiB": 588,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seach"], "no such stage: seach; there are tests, search, search-auto"),
        (
            ["--cpu", "peak"],
            "--cpu: peak needs a GPU; these do not: search, killed-worker, cuda-error, broken-gpu, frameworks, nnunet",
        ),
        (["peak", "--again", "tests"], "--again: tests is not among the stages to run: peak"),
    ],
)
def test_wrong_stages_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        visit_commands.main(["run", *words, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    words = [sys.executable, SCRIPT, "run", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: no GPU here (torch {torch.__version__}), so nothing was run; --cpu tries the script without one\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_script_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """`-S`: without installed packages, as on a machine before anything is installed."""
    row = {"what": "batch 5", "ours": "1580 images/s"}
    machine = {"card": MACHINE.card, "versions": MACHINE.versions}
    Result("peak", "peak", "passed", "2026-11-29 18:02:11", 1.0, 300, rows=[row], **machine).write(tmp_path)
    for words, shown in (
        (["--help"], "wheels"),
        (["run", "--help"], "two-workers"),
        (["table", tmp_path], "1580 images/s"),
    ):
        done = subprocess.run([sys.executable, "-S", SCRIPT, *words], check=True, capture_output=True, text=True)
        assert shown in done.stdout
