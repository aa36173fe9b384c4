"""`--cluster` with laptop and head on this machine; a fake `ray exec` and `ray rsync-*` replace ssh."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from processes import descendants, listening, wait_for
from records import search_record

from wmlsearch import __version__
from wmlsearch.cli import main
from wmlsearch.cli import remote as cli_remote
from wmlsearch.cluster import remote, ssh
from wmlsearch.cluster.messages import MARK, Hello, JobReport, JobState, SearchSummary, read_message
from wmlsearch.config import InputError
from wmlsearch.runs.folders import SearchDir

# The fake `ray`: runs commands in the head's home, copies files, and prints noise around the answers as ssh does.
RAY = """
import os, shutil, subprocess, sys
verb, *words = [word for word in sys.argv[1:] if word not in ("--log-style", "pretty", "--log-color", "false")]
if verb == "exec":
    print("Fetched IP: 10.0.0.1", flush=True)
    status = subprocess.run(["bash", "-c", words[1]]).returncode
    print("Shared connection to 10.0.0.1 closed.")
    sys.exit(1 if status else 0)
source, target = words[1:]
shutil.copytree(source, target, dirs_exist_ok=True) if os.path.isdir(source) else shutil.copy(source, target)
"""


class Head:
    """A fake head: its home, and the messages shown on the laptop."""

    def __init__(self, folder: Path) -> None:
        self.file, self.home, self.out = folder / "cluster.yaml", folder / "home", folder / "runs"
        self.home.mkdir()
        self.file.write_text("cluster_name: test\nprovider: {type: local}\n")
        self.said: list[str] = []

    @property
    def folder(self) -> Path:
        return self.home / "wmlsearch-head"

    def tune(self, data: Path, *argv: str, space: str = "quick", name: str = "one") -> int:
        return remote.tune(self.file, list(argv), data, space, name, self.out, self.said.append)

    def status(self, name: str | None = None) -> int:
        return remote.status(self.file, name, self.out, self.said.append)

    def resume(self, *argv: str, name: str = "one") -> int:
        return remote.resume(self.file, list(argv), name, self.out, self.said.append)

    def stop(self, name: str | None = None) -> int:
        return remote.stop(self.file, name, self.said.append)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Head:
    made = Head(tmp_path)
    answer_with(RAY, tmp_path, monkeypatch)
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


def answer_with(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = folder / "ray.py"
    script.write_text(program)
    monkeypatch.setattr(ssh, "RAY", (sys.executable, str(script)))


def ended(head: Head, name: str) -> None:
    """Create a search that has ended on the head."""
    job, run = head.folder / "jobs" / name, head.folder / "runs" / name
    SearchDir.create(run, search_record({"name": name})).set_status("completed")
    files = ("trials/0000/best.pt", "trials/0000/metrics.jsonl", "owner", "stop")
    for file in (*files, "final/paper-seed0/best.pt", "final/paper-seed0/last.pt", "report/curves.png"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("x")
    job.mkdir(parents=True)
    (job / "job.json").write_text(json.dumps({"name": name, "command": [], "started": time.time() - 60, "pid": 1}))
    (job / "exit.json").write_text(json.dumps({"status": 0, "ended": time.time()}))


def test_follow_prints_the_job_log_and_returns_its_exit_status(head: Head, prepared: Path, tmp_path: Path) -> None:
    space = tmp_path / "my space.yaml"
    space.write_text("depth: {choices: [2, 3]}\n")
    nasty = 'a\'b "$(touch pwned)" ; c'
    assert head.tune(prepared, "--objective", nasty, space=str(space)) == 2  # wmlsearch on the head refuses it
    text = "\n".join(head.said)
    assert "sending the prepared data set to the head" in text
    assert nasty in text.replace("\\", "")
    assert "one has ended on the head: exit status 2" in text
    command = json.loads((head.folder / "jobs" / "one" / "job.json").read_text())["command"]
    assert command[:2] == ["tune", str(head.folder / "jobs" / "one" / "space.yaml")]
    assert command[-2:] == ["--objective", nasty]
    assert Path(command[1]).read_text() == space.read_text()
    assert not list(tmp_path.rglob("pwned"))


def test_data_is_uploaded_once(head: Head, prepared: Path) -> None:
    assert head.tune(prepared, "--trials", "none", name="one") == 2
    head.said.clear()
    assert head.tune(prepared, "--trials", "none", name="two") == 2
    assert head.said[0].startswith("the head already has the prepared data set (")
    (uploaded,) = (head.folder / "data").iterdir()
    assert (uploaded / "images.npy").read_bytes() == (prepared / "images.npy").read_bytes()


def test_damaged_upload_is_refused(head: Head, prepared: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(prepared, damaged)
    with (damaged / "masks.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"masks.npy: is damaged, its checksum is not the manifest's"):
        head.tune(damaged)
    assert not (head.folder / "jobs" / "one").exists()


def test_finished_search_is_fetched_without_trial_checkpoints(head: Head) -> None:
    ended(head, "one")
    assert head.status("one") == 0
    fetched = {str(path.relative_to(head.out / "one")) for path in (head.out / "one").rglob("*") if path.is_file()}
    assert fetched == {
        "search.json",
        "status.json",
        "trials/0000/metrics.jsonl",
        "final/paper-seed0/best.pt",
        "report/curves.png",
    }
    assert not (head.out / ".one.part").exists()
    head.said.clear()
    assert head.status() == 0  # the latest
    assert head.said[-1] == f"one has ended on the head (exit status 0); {head.out / 'one'} is up to date"


def test_fetch_updates_changed_files_only(head: Head) -> None:
    ended(head, "one")
    assert head.status("one") == 0
    on_head, fetched = SearchDir(head.folder / "runs" / "one"), SearchDir(head.out / "one")
    (fetched.path / "mine.txt").write_text("a note")
    (on_head.path / "trials" / "0001").mkdir()
    (on_head.path / "trials" / "0001" / "metrics.jsonl").write_text("y")
    (on_head.path / "report" / "curves.png").write_text("newer")
    on_head.update_usage(seconds=10.0)
    head.said.clear()
    assert head.status("one") == 0
    assert head.said[-2].startswith(f"fetched from the head into {fetched.path} (")
    assert SearchSummary.read(fetched.path) == SearchSummary.read(on_head.path)
    assert (fetched.path / "report" / "curves.png").read_text() == "newer"
    assert (fetched.path / "trials" / "0001" / "metrics.jsonl").read_text() == "y"
    assert (fetched.path / "mine.txt").read_text() == "a note"
    assert sorted(path.name for path in head.out.iterdir()) == ["one"]
    SearchDir.create(head.out / "two", search_record())
    ended(head, "two")
    for verb in (head.status, lambda name: head.resume(name=name)):
        with pytest.raises(InputError) as error:
            verb("two")
        assert str(error.value) == (
            f"{head.out / 'two'}: holds another run than the one on the head, and nothing is overwritten; give "
            "another --out"
        )


def test_resume_a_search_on_the_head(head: Head) -> None:
    ended(head, "one")
    log = head.folder / "jobs" / "one" / "log.txt"
    log.write_text("earlier output\n")
    assert head.resume("--trials", "none") == 2  # wmlsearch on the head refuses it
    assert head.said[0].startswith("one runs on the head (process ")
    assert "earlier output" not in head.said
    assert any("'none' is not a valid integer" in line for line in head.said)
    assert head.said[-1] == "one has ended on the head: exit status 2"
    command = json.loads((head.folder / "jobs" / "one" / "job.json").read_text())["command"]
    assert command == ["tune", "--resume", "one", "--out", str(head.folder / "runs"), "--trials", "none"]
    assert log.read_text().startswith("earlier output\n")


def running(head: Head, name: str) -> threading.Thread:
    """Return an unstarted thread that acts as a search on the head, which runs until it is asked to stop."""
    ended(head, name)
    job, search = head.folder / "jobs" / name, SearchDir(head.folder / "runs" / name)
    (job / "exit.json").unlink()
    search.set_status("running")

    def run() -> None:
        with open(job / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (job / "held").touch()
            wait_for(lambda: any(line.startswith(f"asked {name} to stop") for line in head.said))  # before it is locked
            with search.locked():
                wait_for(search.stop_requested)
                search.set_status("interrupted", "stopped by `wmlsearch stop`")
            (job / "exit.json").write_text(json.dumps({"status": 130, "ended": time.time()}))

    return threading.Thread(target=run)


def test_stop_a_search_on_the_head(head: Head) -> None:
    thread = running(head, "one")
    thread.start()
    wait_for((head.folder / "jobs" / "one" / "held").exists)
    with pytest.raises(InputError) as refused:
        head.resume()
    assert str(refused.value) == (
        f"one: already runs on the head; see it with `wmlsearch status one --cluster {head.file}`"
    )
    assert head.stop() == 0  # the latest
    thread.join()
    assert head.said == [
        "asked one to stop; its trials end within seconds ...",
        "one: interrupted (stopped by `wmlsearch stop`)",
        f"to fetch its results: wmlsearch status one --cluster {head.file}",
        f"to resume it: wmlsearch tune --resume one --cluster {head.file}",
    ]
    with pytest.raises(InputError) as again:
        head.stop("one")
    assert str(again.value) == "one: has already ended on the head (exit status 130)"


def test_searches_that_cannot_be_resumed_on_the_head(head: Head, prepared: Path) -> None:
    assert head.tune(prepared, "--trials", "none") == 2
    with pytest.raises(InputError) as early:
        head.resume()
    assert str(early.value) == (
        "one: ended on the head before its first trial, so there is nothing to resume; start it again with another "
        "--name"
    )
    for verb in (head.stop, lambda name: head.resume(name=name)):
        with pytest.raises(InputError) as unknown:
            verb("two")
        assert str(unknown.value) == f"two: no search of this name on the head of {head.file} (it has: one)"
    words = ["tune", "--resume", "one", "--cluster", str(head.file), "--data", "prepared"]
    result = CliRunner().invoke(main, words, prog_name="wmlsearch")
    assert result.exit_code == 2
    assert result.stderr == (
        "wmlsearch: --data prepared: cannot be given with --resume and --cluster, since the data are on the head; "
        "leave it out\n"
    )


def test_died_job_process_is_reported(head: Head) -> None:
    ended(head, "one")
    (head.folder / "jobs" / "one" / "exit.json").unlink()
    assert head.status("one") == 0
    assert head.said[-1] == "one has ended on the head: its process died (was the head restarted?)"


def test_search_names_on_the_head(head: Head, prepared: Path) -> None:
    with pytest.raises(InputError) as nothing:
        head.status()
    assert str(nothing.value) == (
        f"{head.file}: no search on this cluster yet; start one with `wmlsearch tune --cluster {head.file}`"
    )
    ended(head, "one")
    with pytest.raises(InputError) as unknown:
        head.status("two")
    assert str(unknown.value) == f"two: no search of this name on the head of {head.file} (it has: one)"
    with pytest.raises(InputError) as existing:
        head.tune(prepared)
    assert str(existing.value) == (
        "one: the head already has a search of this name (state: ended); see it with "
        f"`wmlsearch status one --cluster {head.file}`, or give another --name"
    )


def test_invalid_cluster_files_are_refused(tmp_path: Path) -> None:
    missing, broken, other = tmp_path / "no.yaml", tmp_path / "broken.yaml", tmp_path / "other.yaml"
    broken.write_text("a: [")
    other.write_text("depth: 4\n")
    texts = {}
    for file in (missing, broken, other):
        with pytest.raises(InputError) as error:
            remote.status(file, None, tmp_path, print)
        texts[file] = str(error.value)
    assert texts[missing] == f"{missing}: no such cluster file; start from cluster.yaml or a file in clusters/"
    assert texts[broken].startswith(f"{broken}: cannot be read as a cluster file (while parsing a flow node")
    assert texts[other] == f"{other}: not a cluster file of Ray: `cluster_name` or `provider` is missing"


REFUSED = "ssh: connect to host 10.0.0.1 port 22: Connection refused"
# What Python prints where wmlsearch is older than its package `cluster`, and than a module of it.
NO_PACKAGE = "ModuleNotFoundError: No module named 'wmlsearch.cluster'"
NO_MODULE = "python: No module named wmlsearch.cluster.head_agent"
STEP = "start or update the cluster with `ray up {file}`"


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("print('Head node of cluster (test) not found!')", f"{{file}}: this cluster is not running; {STEP}"),
        (
            f"print('Fetched IP: 10.0.0.1'); print({REFUSED!r})",
            f"{{file}}: the head cannot be reached ({REFUSED}); check it with `ray exec {{file}} uptime`, or {STEP}",
        ),
        (
            "import time; time.sleep(60)",  # a head that does not answer; ended with the command
            "{file}: the head cannot be reached (no answer within 1.5 s); "
            f"check it with `ray exec {{file}} uptime`, or {STEP}",
        ),
        (
            "print('python: No module named wmlsearch')",
            "{file}: wmlsearch is not installed on the head (python: No module named wmlsearch); " + STEP,
        ),
        (
            f"print({NO_PACKAGE!r})",
            f"{{file}}: the head has another version of wmlsearch than this machine, which has {__version__} "
            f"({NO_PACKAGE}); {STEP}",
        ),
        (
            f"print({NO_MODULE!r})",
            f"{{file}}: the head has another version of wmlsearch than this machine, which has {__version__} "
            f"({NO_MODULE}); {STEP}",
        ),
    ],
    ids=["cluster not running", "connection refused", "no answer", "not installed", "no package", "no module"],
)
def test_unreachable_head(head: Head, program: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(f"{program}\nraise SystemExit(1)", tmp_path, monkeypatch)
    if "sleep" in program:
        monkeypatch.setattr(ssh, "ANSWER_S", 1.5)
    began = time.monotonic()
    with pytest.raises(InputError) as error:
        head.status()
    assert str(error.value) == text.format(file=head.file)
    assert time.monotonic() - began < 60


def test_fields_of_a_newer_head_are_ignored() -> None:
    report = JobReport(JobState("one", "running", pid=7), ["one"], SearchSummary("key", {"state": "running"}, {}))
    values = json.loads(report.line().removeprefix(MARK))
    newer = {**values, "newer": 1}
    for name in ("job", "search"):
        newer[name] = {**values[name], "newer": {"a": 1}}
    assert read_message(json.dumps(newer)) == report
    del newer["job"]["name"]
    with pytest.raises(ValueError, match="not a message of this version of wmlsearch"):
        read_message(json.dumps(newer))


def test_version_mismatch_with_the_head(
    head: Head, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Hello("0.0.1", "/", True, JobState("one"), [])
    answer_with(f"print({answer.line()!r})", tmp_path, monkeypatch)
    with pytest.raises(InputError) as error:
        head.tune(prepared)
    assert str(error.value) == (
        f"{head.file}: the head has wmlsearch 0.0.1, but this machine has {__version__}; {STEP.format(file=head.file)}"
    )


def test_ctrl_c_stops_following_but_not_the_job(head: Head, prepared: Path) -> None:
    def stop(text: str) -> None:
        head.said.append(text)
        if len(head.said) == 4:  # the first line of the job itself
            raise KeyboardInterrupt

    status = remote.tune(head.file, ["--trials", "none"], prepared, "quick", "one", head.out, stop)
    assert status == 130
    assert head.said[4] == "stopped following"
    assert head.said[5].startswith(
        f"one continues on the head: see it with `wmlsearch status one --cluster {head.file}`"
    )


def test_ui_opens_a_tunnel(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mlflow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"OK")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mlflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    reachable = set()

    def stop(text: str) -> None:
        head.said.append(text)
        sockets = listening(descendants(os.getpid()))
        reachable.update(address for _, address, socket_port in sockets if socket_port == port)
        raise KeyboardInterrupt

    assert remote.ui(head.file, port, stop) == 0
    assert reachable == {"127.0.0.1"}
    assert head.said == [
        f"the cluster's MLflow: http://127.0.0.1:{port}  (Ctrl-C ends the tunnel)\n"
        f"it asks for a user and a password, which `ray exec {head.file} 'cat ~/.mlflow/credentials'` shows"
    ]
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError) as error:
        remote.ui(head.file, port, print)
    assert str(error.value) == (
        f"{head.file}: no MLflow server answers on the head's 127.0.0.1:{server.server_port}; run `ray up` again"
    )


def test_options_are_passed_on_to_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "from the environment")

    @click.command()
    @click.argument("space")
    @cli_remote.cluster
    @click.option("--name")
    @click.option("--trials", type=int, default=20)
    @click.option("--place", envvar="PLACE")
    @click.option("--no-baseline", is_flag=True)
    def verb(**values: object) -> None:
        click.echo(json.dumps(cli_remote.given()))

    given = CliRunner().invoke(verb, ["unet", "--cluster", "c", "--name", "n", "--trials", "20", "--no-baseline"])
    assert json.loads(given.output) == ["--trials", "20", "--no-baseline"]
