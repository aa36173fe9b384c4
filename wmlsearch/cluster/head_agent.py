"""The far end of `wmlsearch ... --cluster`: `wmlsearch.cluster.remote` calls it on the head, by `ray exec`.

`python -m wmlsearch.cluster.head_agent VERB ...` answers in lines that begin with MARK and hold one JSON object, since
Ray and the shell print lines of their own around them. A search that is started here belongs to the head: it has a
session of its own, and goes on whether or not anyone listens. Modules other than the standard library are imported
only when they are needed.

    ~/wmlsearch-head/ data/FINGERPRINT/   prepared data, sent once
                      runs/NAME/          the searches' own folders (their --out is runs/)
                      jobs/NAME/          job.json, space.yaml, log.txt, lock (held while it runs), exit.json
                      mlflow/             the MLflow server's database and log
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmlsearch import __version__

MARK = "@wmlsearch@ "
HOME = Path("~/wmlsearch-head").expanduser()
NOT_OURS = ("OMP_NUM_THREADS", "PYTHONWARNINGS")  # `ray exec` sets them; a search on the head has its own mind
CHECKPOINT_OF_LAST_EPOCH = "last.pt"
OF_ITS_PROCESS = ("owner", "stop")  # files of a search's folder that mean nothing elsewhere
POLL_S = 0.5


def tell(**message: Any) -> None:
    """One message to the laptop."""
    print(MARK + json.dumps(message), flush=True)


def hello(name: str, fingerprint: str) -> None:
    """What the laptop wants to know before it sends anything."""
    for part in ("data", "runs", "jobs"):
        (HOME / part).mkdir(parents=True, exist_ok=True)
    data = HOME / "data" / fingerprint
    known = {"state": state(name), "names": names(), "run": run(name)}
    tell(version=__version__, home=str(HOME), has_data=data.is_dir(), **known)


def accept(fingerprint: str) -> None:
    """Take what was sent as the prepared data of this fingerprint, if it is whole."""
    from wmlsearch.config import InputError
    from wmlsearch.data.manifest import Manifest

    sent, data = HOME / "data" / f"{fingerprint}.part", HOME / "data" / fingerprint
    try:
        manifest = Manifest.read(sent)
        manifest.verify(sent)
        if manifest.fingerprint != fingerprint:
            raise InputError(f"{sent}: is another data set ({manifest.fingerprint})")
    except InputError as error:
        return tell(error=str(error))
    os.replace(sent, data)
    tell(data=str(data))


def start(name: str, command: list[str]) -> None:
    """Start `wmlsearch COMMAND` as job `name`; it outlives this process and the connection."""
    if state(name)["state"] != "unknown":
        return tell(error=f"{name}: there is a search of this name on the head already ({state(name)['state']})")
    _launch(name, command)


def resume(name: str, options: list[str]) -> None:
    """Go on with a search that has ended, or died: `wmlsearch tune --resume NAME OPTIONS` is its job from now on."""
    if state(name)["state"] not in ("ended", "gone"):
        return tell(error=f"{name}: can't be resumed on the head ({state(name)['state']})")
    _launch(name, ["tune", "--resume", name, "--out", str(HOME / "runs"), *options])


def _launch(name: str, command: list[str]) -> None:
    job = HOME / "jobs" / name
    job.mkdir(parents=True, exist_ok=True)
    _write(job / "job.json", {"name": name, "command": command, "started": time.time(), "version": __version__})
    (job / "exit.json").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in NOT_OURS}
    with open(job / "log.txt", "ab") as log:
        offset = log.tell()
        subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "wmlsearch.cluster.head_agent", "keep", name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=HOME,
            env=environment,
            start_new_session=True,
        )
    for _ in range(100):
        if "pid" in read(job / "job.json") or (job / "exit.json").exists():
            break
        time.sleep(0.1)
    tell(state=state(name), offset=offset)


def keep(name: str) -> None:
    """Run a job and note how it ended (in the session of its own that `start` made)."""
    job = HOME / "jobs" / name
    about = read(job / "job.json")
    with open(job / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever looks at it holds it for a moment
        environment = {"COLUMNS": "140", "PYTHONUNBUFFERED": "1", **os.environ}
        child = subprocess.Popen([sys.executable, "-m", "wmlsearch", *about["command"]], env=environment)  # noqa: S603 - our own interpreter
        _write(job / "job.json", {**about, "pid": child.pid})
        status = child.wait()
        _write(job / "exit.json", {"status": status if status >= 0 else 128 - status, "ended": time.time()})


def state(name: str) -> dict[str, Any]:
    """`state` is unknown, running, ended (with its exit `status`) or gone (its process died with the machine)."""
    job = HOME / "jobs" / name
    if not name or not (job / "job.json").is_file():
        return {"name": name, "state": "unknown"}
    about = {key: value for key, value in read(job / "job.json").items() if key in ("name", "started", "pid")}
    for attempt in range(2):  # the exit status is written just before the lock is released: look again
        if (job / "exit.json").is_file():
            return {**about, "state": "ended", **read(job / "exit.json")}
        if _locked(job / "lock") or (attempt == 0 and time.time() - about["started"] < 10):
            return {**about, "state": "running"}
    return {**about, "state": "gone"}


def names() -> list[str]:
    """All jobs, the latest last."""
    jobs = [path.parent for path in (HOME / "jobs").glob("*/job.json")]
    return [job.name for job in sorted(jobs, key=lambda job: float(read(job / "job.json")["started"]))]


def run(name: str) -> dict[str, Any]:
    """How a search's own folder says that it stands; {} where there is none."""
    from wmlsearch.runs.folders import SearchDir

    return SearchDir(HOME / "runs" / name).summary() if name else {}


def follow(name: str, offset: int) -> None:
    """Tell the log's lines from byte `offset` on as they come, each with the offset after it; at the end the state."""
    log = HOME / "jobs" / name / "log.txt"
    while True:
        now = state(name)  # asked before reading: what an ended job wrote is all there
        with open(log, "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n") and now["state"] == "running":
                    break  # the rest of it is still to come
                offset += len(line)
                tell(line=line.decode(errors="replace").rstrip("\r\n"), offset=offset)
        if now["state"] != "running":
            return tell(state=now)
        time.sleep(POLL_S)


def stop(name: str) -> None:
    """Ask a running search (the latest where no name is given) to end; tell how it stands, then how it has ended."""
    from wmlsearch.runs.folders import SearchDir

    name = name or (names() or [""])[-1]
    now = state(name)
    tell(state=now, names=names())
    search = SearchDir(HOME / "runs" / name)
    while now["state"] == "running":
        if search.is_running():  # else it is still to begin, or about to end
            search.request_stop()
        time.sleep(POLL_S)
        now = state(name)
    tell(state=now, run=run(name))


def show(name: str, columns: str) -> None:
    """How a search (the latest where no name is given) stands: its job and its leaderboard."""
    name = name or (names() or [""])[-1]
    now = state(name)
    tell(state=now, names=names(), run=run(name))
    if now["state"] == "unknown":
        return
    command = [sys.executable, "-m", "wmlsearch", "status", name, "--out", str(HOME / "runs")]
    if (HOME / "runs" / name).is_dir():
        environment = {**os.environ, "COLUMNS": columns}
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
        lines = (shown.stdout + shown.stderr).splitlines()
    else:  # it ended, or still is, before its run folder
        lines = (HOME / "jobs" / name / "log.txt").read_text(errors="replace").splitlines()[-20:]
    for line in lines:
        tell(line=line)


def pack(name: str) -> None:
    """Gather what the laptop gets of a search: all but checkpoints of trials; of final runs their best weights too."""
    folder, packed = HOME / "runs" / name, HOME / "jobs" / name / "result"
    shutil.rmtree(packed, ignore_errors=True)
    size = 0
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        place = path.relative_to(folder)
        checkpoint = path.suffix == ".pt" and (place.parts[0] != "final" or path.name == CHECKPOINT_OF_LAST_EPOCH)
        if not path.is_file() or checkpoint or path.name in OF_ITS_PROCESS:
            continue
        (packed / place).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, packed / place)  # costs nothing; the file may be replaced in the run folder, not changed
        except OSError:
            shutil.copy2(path, packed / place)
        size += path.stat().st_size
    tell(packed=str(packed), bytes=size)


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    """Written aside, then renamed: whoever looks finds the old file or the new one, whole."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(value), encoding="utf-8")
    os.replace(aside, path)


def _locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def main(verb: str, *words: str) -> None:
    if verb in ("start", "resume"):
        {"start": start, "resume": resume}[verb](words[0], list(words[1:]))
    elif verb == "follow":
        follow(words[0], int(words[1]))
    else:
        verbs: dict[str, Callable[..., None]] = {
            "hello": hello,
            "accept": accept,
            "keep": keep,
            "stop": stop,
            "show": show,
            "pack": pack,
        }
        verbs[verb](*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
