"""`--cluster`, laptop and head on this machine: a real Ray with its dashboard; a fake `ray` command replaces ssh."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from processes import wait_for
from records import search_record

from wmlsearch.cli import main
from wmlsearch.cli import remote as cli_remote
from wmlsearch.cluster import dashboard, jobs, ray_up, remote
from wmlsearch.cluster.dashboard import Dashboard
from wmlsearch.cluster.head_job import HeadRequest, SearchState
from wmlsearch.cluster.ray_patches import RAY_COMMAND
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir

TOKEN = "a" * 64
# The fake `ray`: `dashboard` joins a port with the real dashboard, `rsync-*` copies from and to the head's home.
RAY = """
import asyncio, os, shutil, sys
verb, *words = [word for word in sys.argv[1:] if word not in ("--log-style", "pretty", "--log-color", "false")]
if verb == "dashboard":
    host, port = os.environ["FAKE_DASHBOARD"].split(":")
    async def copy(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()
    async def join(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
    async def serve():
        async with await asyncio.start_server(join, "127.0.0.1", int(words[2])) as server:
            await server.serve_forever()
    asyncio.run(serve())
source, target = (word.replace("~", os.environ["FAKE_HOME"]) for word in words[1:])
if not os.path.exists(source):
    sys.exit("Error: SSH command failed.")
shutil.copytree(source, target, dirs_exist_ok=True) if os.path.isdir(source) else shutil.copy(source, target)
"""
QUICK = ("--trials", "1", "--epochs", "1", "--no-baseline", "--no-forecast")


class Head:
    """A Ray with a dashboard, its home, and a laptop that drives it."""

    def __init__(self, address: str, home: Path) -> None:
        self.address, self.home = address, home
        self.file = self.out = self.storage = Path()
        self.said: list[str] = []

    @property
    def folder(self) -> Path:
        return self.home / "wmlsearch-head"

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def on_laptop(self, folder: Path) -> None:
        """Begin with a laptop that knows nothing."""
        self.file, self.out, self.storage = folder / "cluster.yaml", folder / "runs", folder / "storage"
        self.file.write_text("cluster_name: test\nprovider: {type: local}\n")
        self.storage.mkdir()
        self.said = []

    def client(self) -> Any:
        return Dashboard(self.address).client()


@pytest.fixture(scope="module")
def running_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("head")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "WMLSEARCH"))},
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    ports = [dashboard.free_port() for _ in range(3)]
    names = ("port", "dashboard-port", "dashboard-agent-listen-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    folder = Path(tempfile.mkdtemp(prefix="wml-", dir="/tmp"))
    with (home / "log.txt").open("w") as log:
        options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        process = subprocess.Popen(
            [*RAY_COMMAND, "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        wait_for(lambda: "ray job submit" in (home / "log.txt").read_text() or process.poll() is not None, 120)
        assert process.poll() is None, (home / "log.txt").read_text()
        yield Head(f"127.0.0.1:{ports[1]}", home)
        process.terminate()
        process.wait(60)
    wait_for(lambda: _is_removed(folder), 60, "Ray's last processes still write")


def _is_removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


@pytest.fixture
def head(running_head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    running_head.on_laptop(tmp_path)
    answer_with(RAY, tmp_path, monkeypatch)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("FAKE_DASHBOARD", running_head.address)
    monkeypatch.setenv("FAKE_HOME", str(running_head.home))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of another Ray, which is not meant
    monkeypatch.delenv("WMLSEARCH_STORAGE", raising=False)
    return running_head


def answer_with(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = folder / "ray.py"
    script.write_text(program)
    monkeypatch.setattr(ray_up, "RAY", (sys.executable, str(script)))


def test_search_by_the_address_of_a_dashboard(head: Head, prepared: Path, tmp_path: Path) -> None:
    space = tmp_path / "my space.yaml"
    space.write_text("depth: 2\nbase_channels: 4\nbatch_size: 4\nlearning_rate: {low: 1e-3, high: 1e-2, log: true}\n")
    began = time.monotonic()
    uri = "http://user:open-sesame@127.0.0.1:1"
    status = remote.tune(
        head.address, [*QUICK, "--mlflow-uri", uri], prepared, str(space), "one", head.out, str(head.storage),
        head.said.append,
    )  # fmt: skip
    print(head.text, f"{time.monotonic() - began:.0f} s")
    assert status == 0
    assert "one: completed, 1 of 1 trial" in head.text
    assert head.said[-2:] == [
        f"fetched from the storage into {head.out / 'one'}, without the trials' checkpoints",
        "one has ended on the head: exit status 0",
    ]
    search = SearchDir(head.out / "one")
    assert search.record().space.source.endswith("my space.yaml")
    assert SearchState.read(search.path) == SearchState.read(head.folder / "runs" / "one")
    assert not list(search.path.glob("trials/*/*.pt"))
    assert "open-sesame" not in str([vars(job) for job in head.client().list_jobs()])
    assert "open-sesame" not in head.client().get_job_logs("one")
    shutil.rmtree(head.out)  # a laptop that has lost everything
    head.said.clear()
    assert remote.status(head.address, None, head.out, str(head.storage), head.said.append) == 0
    assert search.state == "completed"
    assert "trial-0000" in head.text


def test_search_by_a_cluster_file(head: Head, prepared: Path) -> None:
    """Two terminals: one follows the search until Ctrl-C, the other looks at it and stops it."""
    trials = ["--trials", "4", "--epochs", "400", "--no-baseline", "--no-forecast", "--scheduler", "none"]

    def interrupt(text: str) -> None:
        head.said.append(text)
        if "trials run" in text:
            raise KeyboardInterrupt

    shutil.rmtree(head.folder / "data", ignore_errors=True)  # the head does not have the data set of another test
    assert remote.tune(str(head.file), trials, prepared, "quick", "two", head.out, None, interrupt) == 130
    assert "sending the prepared data set to the head" in head.text
    assert "two runs on the cluster (job two); Ctrl-C stops following it, not the search" in head.said
    assert head.said[-2] == "stopped following"
    assert head.said[-1].startswith(
        f"two continues on the cluster: see it with `wmlsearch status two --cluster {head.file}`"
    )
    with pytest.raises(InputError) as taken:
        remote.tune(str(head.file), trials, prepared, "quick", "two", head.out, None, print)
    assert str(taken.value) == (
        "two: the cluster already has a search of this name (state: running); see it with "
        f"`wmlsearch status two --cluster {head.file}`, or give another --name"
    )
    with pytest.raises(InputError, match="two: already runs; see it with"):
        remote.resume(str(head.file), [], None, "two", head.out, None, print)
    head.said.clear()
    assert remote.status(str(head.file), None, head.out, None, head.said.append) == 0
    assert head.said[-1].startswith("two has run on the head for")
    head.said.clear()
    assert remote.stop(str(head.file), None, head.said.append) == 0
    assert [text for text in head.said if not text.startswith("the process of two is still at work")] == [
        "asked two to stop; its trials end within seconds ...",
        "two: interrupted (stopped by `wmlsearch stop`)",
        f"to fetch its results: wmlsearch status two --cluster {head.file}",
        f"to resume it: wmlsearch tune --resume two --cluster {head.file}",
    ]
    with pytest.raises(InputError) as again:
        remote.stop(str(head.file), "two", head.said.append)
    assert str(again.value) == "two: has already ended on the head (exit status 130)"
    head.said.clear()
    fewer = ["--max-epochs-total", "1"]
    assert remote.resume(str(head.file), fewer, None, "two", head.out, None, head.said.append) in (0, 130)
    assert "two runs on the cluster (job two@2); Ctrl-C stops following it, not the search" in head.said
    assert f"fetched from the head into {head.out / 'two'}, without the trials' checkpoints" in head.said
    head.said.clear()
    assert remote.status(str(head.file), "two", head.out, None, head.said.append) == 0
    assert head.said[-1].endswith(f"{head.out / 'two'} is up to date")


def test_ray_waits_for_the_clean_end_of_a_job_that_the_dashboard_stops(head: Head, prepared: Path) -> None:
    trials = ["--trials", "4", "--epochs", "400", "--no-baseline", "--no-forecast", "--scheduler", "none"]
    folder = SearchDir(head.folder / "runs" / "three")

    def stop(text: str) -> None:
        head.said.append(text)
        if "trials run" in text:
            assert head.client().stop_job("three")

    remote.tune(str(head.file), trials, prepared, "quick", "three", head.out, None, stop)
    status = folder.status()
    assert (status.state, status.reason) == ("interrupted", "stopped by SIGTERM")
    assert SearchState.read(head.out / "three") == SearchState.read(folder.path)


def test_search_whose_driver_died_with_the_head(head: Head) -> None:
    """Ray forgets the jobs of a head that is started again; the folders of the searches are still there."""
    SearchDir.create(head.folder / "runs" / "lost", search_record({"name": "lost"}))
    assert remote.status(str(head.file), "lost", head.out, None, head.said.append) == 0
    assert head.said[-1] == "lost has ended on the head: its process died (was the head restarted?)"
    assert SearchDir(head.out / "lost").exists()
    with pytest.raises(InputError, match=r"lost: has already ended on the head \(its process died"):
        remote.stop(str(head.file), "lost", print)


class Proxy:
    """A connection to the dashboard that can be cut: what is connected breaks, and nothing connects meanwhile."""

    def __init__(self, target: str) -> None:
        self.host, _, self.port = target.partition(":")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.open: list[socket.socket] = []
        self.is_cut = False
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.getsockname()[1]}"

    def cut(self) -> None:
        self.is_cut = True
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            near = self.server.accept()[0]
            if self.is_cut:
                near.close()
                continue
            far = socket.create_connection((self.host, int(self.port)))
            self.open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_no_line_is_lost_or_doubled_when_the_network_is_cut(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_S", 0.5)
    proxy, lines = Proxy(head.address), 60
    cuts = ["line 10 ", "line 30 "]
    # a line each 0.1 s, so that some come while the network is cut
    program = f"import time; [(print('line', n, '\\u00e9', flush=True), time.sleep(0.1)) for n in range({lines})]"
    head.client().submit_job(entrypoint=f'python -c "{program}"', submission_id="lines")

    def say(text: str) -> None:
        head.said.append(text)
        if cuts and text.startswith(cuts[0]):
            cuts.pop(0)
            proxy.cut()
        if text.startswith("the connection"):
            proxy.is_cut = False

    with Dashboard(proxy.address) as cut:
        job = jobs.follow(cut, "lines", say)
    assert job is not None
    assert job.exit_status == 0
    said = [text for text in head.said if not text.startswith("the connection to the cluster is lost")]
    assert said == [f"line {n} é" for n in range(lines)]
    assert len(head.said) == len(said) + 2, "each of the two losses is told"


def test_silent_connection_is_replaced(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SILENCE_S", 1.0)
    head.client().submit_job(entrypoint="echo begin; sleep 5; echo end", submission_id="silent")
    with Dashboard(head.address) as here:
        jobs.follow(here, "silent", head.said.append)
    assert head.said == ["begin", "end"]


@pytest.mark.parametrize(
    ("token", "words"),
    [("b" * 64, "refuses the token of this machine"), ("", "wants a token")],
    ids=["another token", "no token"],
)
def test_refused_tokens(head: Head, token: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError) as refused:
        remote.status(head.address, None, head.out, None, print)
    assert str(refused.value) == (
        f"{head.address}: the cluster {words}; copy ~/.ray/auth_token of the cluster's head here (on Kubernetes: the "
        "Secret of the cluster), or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    )
    with pytest.raises(InputError):
        remote.status(str(head.file), None, head.out, None, print)
    file = head.home / ".ray" / "auth_token"  # with a cluster file, the token of the head is asked for
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{TOKEN}\n")
    with Dashboard(str(head.file)) as here:
        assert here.call(lambda client: client.list_jobs()) is not None
    file.unlink()


def test_missing_dependencies_are_named(head: Head, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_requirements", lambda: ["numpy>=999", "no-such-package>=1", "click", 'x; extra == "y"'])
    with pytest.raises(InputError) as error:
        remote.tune(str(head.file), [], prepared, "quick", "none", head.out, None, print)
    assert (
        "the cluster lacks what wmlsearch depends on: numpy>=999 (installed: "  # and its version
    ) in str(error.value)
    assert "no-such-package>=1 (not installed); install that on all of its machines" in str(error.value)


def test_damaged_data_are_refused(head: Head, prepared: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(prepared, damaged)
    manifest = json.loads((damaged / "manifest.json").read_text())
    (damaged / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "0" * 64}))
    with (damaged / "masks.npy").open("ab") as file:
        file.write(b"x")
    assert remote.tune(str(head.file), [], damaged, "quick", "damaged", head.out, None, head.said.append) == 2
    assert "masks.npy: is damaged, its checksum is not the manifest's" in head.text
    assert not (head.folder / "data" / ("0" * 64)).exists()


def test_names_of_searches(head: Head, tmp_path: Path) -> None:
    with pytest.raises(InputError) as unknown:
        remote.status(str(head.file), "nobody", head.out, None, print)
    assert str(unknown.value).startswith(f"nobody: no search of this name on the head of {head.file} (it has: ")
    with pytest.raises(InputError, match="nobody: no search of this name on the head"):
        remote.resume(str(head.file), [], None, "nobody", head.out, None, print)


def test_storage_is_needed_without_ssh(head: Head, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as missing:
        remote.tune(head.address, [], prepared, "quick", "four", head.out, None, print)
    assert str(missing.value) == (
        f"--cluster {head.address}: with the address of a dashboard, data and results go through a storage that this "
        "machine and the cluster reach; give --storage (such as s3://bucket/path) or set WMLSEARCH_STORAGE"
    )
    with pytest.raises(InputError, match=r"--storage shared: .* a folder must be given with its whole path"):
        remote.tune(head.address, [], prepared, "quick", "four", head.out, "shared", print)
    elsewhere = tmp_path / "none" / "storage"
    with pytest.raises(InputError, match=r"the data cannot be copied there from this machine \(No such file"):
        remote.tune(head.address, [], prepared, "quick", "four", head.out, str(elsewhere), print)
    with pytest.raises(InputError, match="MLflow is not reached through the dashboard"):
        remote.ui(head.address, 5000, print)


def test_what_is_no_cluster_is_refused(tmp_path: Path) -> None:
    missing, broken, other = tmp_path / "no.yaml", tmp_path / "broken.yaml", tmp_path / "other.yaml"
    broken.write_text("a: [")
    other.write_text("depth: 4\n")
    texts = {}
    for cluster in (str(missing), str(broken), str(other), "ray://head:10001", "127.0.0.1:1"):
        with pytest.raises(InputError) as error:
            remote.status(cluster, None, tmp_path, None, print)
        texts[cluster] = str(error.value)
    assert texts[str(missing)] == (
        f"{missing}: no such cluster file; write one by `wmlsearch cluster-file`, or give the address of a "
        "dashboard, such as http://127.0.0.1:8265"
    )
    assert texts[str(broken)].startswith(f"{broken}: cannot be read as a cluster file (while parsing a flow node")
    assert texts[str(other)] == f"{other}: not a cluster file of Ray: `cluster_name` or `provider` is missing"
    assert texts["ray://head:10001"] == (
        "--cluster ray://head:10001: ray:// is not a dashboard address; give a cluster file of `ray up`, or the "
        "dashboard's address, such as http://HOST:8265"
    )
    assert texts["127.0.0.1:1"].startswith("127.0.0.1:1: no dashboard answers there (")


REFUSED = "ssh: connect to host 10.0.0.1 port 22: Connection refused"
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
    ],
    ids=["cluster not running", "connection refused", "no answer"],
)
def test_unreachable_head(program: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster_name: test\nprovider: {type: local}\n")
    answer_with(f"{program}\nraise SystemExit(1)", tmp_path, monkeypatch)
    if "sleep" in program:
        monkeypatch.setattr(ray_up, "CONNECT_S", 1.5)
    with pytest.raises(InputError) as error:
        remote.status(str(file), None, tmp_path, None, print)
    assert str(error.value) == text.format(file=file)


def test_silent_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=r"no dashboard answers there \(no answer within 1 s\)"):
            remote.status(address, None, tmp_path, None, print)


class Mlflow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"OK")


def test_another_server_than_a_dashboard(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mlflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(InputError, match="something else than a Ray dashboard answers there"):
        remote.status(f"http://127.0.0.1:{server.server_port}/", None, tmp_path, None, print)
    server.shutdown()
    server.server_close()


def test_ui_opens_a_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mlflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file, said = tmp_path / "cluster.yaml", []
    file.write_text("cluster_name: test\nprovider: {type: local}\n")
    answer_with(RAY, tmp_path, monkeypatch)
    monkeypatch.setenv("FAKE_DASHBOARD", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("FAKE_HOME", str(tmp_path))
    port = dashboard.free_port()

    def stop(text: str) -> None:
        said.append(text)
        raise KeyboardInterrupt

    assert remote.ui(str(file), port, stop) == 0
    assert said == [
        f"the cluster's MLflow: http://127.0.0.1:{port}  (Ctrl-C ends the tunnel)\n"
        f"it asks for a user and a password, which `ray exec {file} 'cat ~/.mlflow/credentials'` shows"
    ]
    server.shutdown()
    server.server_close()


def test_requests_of_other_versions_are_read() -> None:
    request = HeadRequest(verb="find", name="one")
    assert HeadRequest.model_validate_json(json.dumps({**request.model_dump(), "newer": 1})) == request


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


def test_address_without_storage_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WMLSEARCH_STORAGE", raising=False)
    words = ["tune", "quick", "--cluster", "127.0.0.1:8265", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, words, prog_name="wmlsearch")
    assert result.exit_code == 2
    assert "give --storage (such as s3://bucket/path)" in result.stderr
    assert not list(tmp_path.iterdir()), "no phantom was made"
