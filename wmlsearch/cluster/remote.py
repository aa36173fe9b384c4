"""`wmlsearch ... --cluster FILE`: the same command on the head of a Ray cluster.

At the far end `wmlsearch.cluster.head_agent` answers. The search belongs to the head: what happens here starts,
follows, stops and fetches it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from wmlsearch import __version__
from wmlsearch.cluster.ssh import ANSWER_S, STEP, Head, Message, Messages, call, until
from wmlsearch.config import InputError
from wmlsearch.data.sealed_test import record_opening
from wmlsearch.runs.files import read_json
from wmlsearch.runs.folders import SearchDir, check_new
from wmlsearch.runs.wording import duration
from wmlsearch.tracking.server import is_healthy

Say = Callable[[str], None]

RETRIES, RETRY_S = 40, 15.0  # following: how often a lost connection is tried again before we stop (10 minutes)
QUIET_S = 3600.0  # nothing said for so long is no fault: ssh itself notices a dead connection within seconds


def tune(cluster: Path, argv: list[str], data: Path, space: str, name: str, out: Path, say: Say) -> int:
    """Run `wmlsearch tune SPACE ARGV` on the head of `cluster`, follow it, fetch its results; its exit status.

    `argv` are the options but --data, --name and --out. The prepared `data` are sent unless the head has them. Raises
    InputError for what can't be; Ctrl-C ends the following only.
    """
    check_new(out / name)
    fingerprint = read_json(data / "manifest.json").get("fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint.isalnum():
        raise InputError(f"{data}: its manifest.json has no fingerprint; make it again with `wmlsearch prepare`")
    head = Head(cluster)
    there = head.ask("hello", name, fingerprint)
    _check_version(cluster, there)
    if there["state"]["state"] != "unknown":
        raise InputError(
            f"{name}: there is a search of this name on the head already (state: {there['state']['state']}); see it "
            f"with `wmlsearch status {name} --cluster {cluster}`, or choose another --name"
        )
    if there["has_data"]:
        say(f"the head has the prepared data already ({fingerprint[:12]})")
    else:
        _send_data(head, data, f"{there['home']}/data/{fingerprint}", fingerprint, say)
    if Path(space).is_file():
        head.run("exec", f"mkdir -p {shlex.quote(there['home'] + '/jobs/' + name)}")
        head.send(Path(space), f"{there['home']}/jobs/{name}/space.yaml")
        space = f"{there['home']}/jobs/{name}/space.yaml"
    if "--no-baseline" not in argv:  # it will be opened there, and the ledger here should know
        record_opening(data, {"run": name, "where": f"the head of {cluster.name}"})
    command = ["tune", space, "--data", f"{there['home']}/data/{fingerprint}", "--name", name]
    command += ["--out", f"{there['home']}/runs", *argv]
    return _watch(head, name, head.ask("start", name, *command), out, say)


def resume(cluster: Path, argv: list[str], name: str, out: Path, say: Say) -> int:
    """Go on with the search `name` on the head of `cluster`, as `tune` runs one; its exit status.

    `argv` are the options but --resume and --out. Raises InputError for what can't be.
    """
    head = Head(cluster)
    there = head.ask("hello", name, "")
    _check_version(cluster, there)
    _check_known(cluster, name, there)
    if there["state"]["state"] == "running":
        raise InputError(
            f"{name}: is running on the head already; see it with `wmlsearch status {name} --cluster {cluster}`"
        )
    if not there["run"]:
        raise InputError(
            f"{name}: ended on the head before its first trial, so there is nothing to go on with; begin it anew, with "
            "another --name"
        )
    _is_here(out / name, there["run"])
    return _watch(head, name, head.ask("resume", name, *argv), out, say)


def stop(cluster: Path, name: str | None, say: Say) -> int:
    """End the search `name` (default: the latest) on the head cleanly, and say how it ended. Raises InputError."""
    head = Head(cluster)
    with head.stream("exec", call("stop", name or "")) as messages:
        answer = messages.next(ANSWER_S)
        if answer is None:
            raise head.silent(messages)
        _check_known(cluster, name, answer)
        now, name = answer["state"], str(answer["state"]["name"])
        if now["state"] != "running":
            raise InputError(f"{name}: has ended on the head ({_how(now)}), nothing to stop")
        say(f"{name} is asked to stop; its trials end after seconds ...")
        ended = messages.next(QUIET_S)
    if ended is None:
        raise InputError(
            f"{name}: was asked to stop, but the connection to the head is lost; see how it stands with "
            f"`wmlsearch status {name} --cluster {cluster}`"
        )
    run = ended["run"].get("status", {})
    say(f"{name}: {run.get('state')} ({run.get('reason') or 'it had ended by itself'})")
    say(f"to fetch what it has found: wmlsearch status {name} --cluster {cluster}")
    say(f"to go on with it: wmlsearch tune --resume {name} --cluster {cluster}")
    return 0


def status(cluster: Path, name: str | None, out: Path, say: Say) -> int:
    """Say how the search `name` (default: the latest) stands on the head; fetch it into `out` when it has ended."""
    head = Head(cluster)
    columns = str(shutil.get_terminal_size((120, 40)).columns)
    answer, *lines = head.all("show", name or "", columns)
    _check_known(cluster, name, answer)
    for message in lines:
        say(message["line"])
    now = answer["state"]
    if now["state"] == "running":
        say(f"{now['name']} runs on the head, for {duration(time.time() - now['started'])} (process {now.get('pid')})")
    elif _is_here(out / now["name"], answer["run"]):
        say(f"{now['name']} has ended on the head ({_how(now)}); {out / now['name']} is here already")
    else:
        _finish(head, now["name"], now, out, say)
    return 0


def ui(cluster: Path, port: int, say: Say) -> int:
    """Join 127.0.0.1:PORT with the head's MLflow server until Ctrl-C. Raises InputError when it can't be reached."""
    head = Head(cluster)
    with head.stream("exec", call("tunnel", str(port), module="head_mlflow"), "--port-forward", str(port)) as messages:
        try:
            for message in until(messages, ANSWER_S):
                if "error" in message:
                    raise InputError(f"{cluster}: {message['error']}; {STEP.format(file=cluster)}")
                if "open" in message:
                    break
            else:
                raise head.silent(messages)
            _wait_for_mlflow(cluster, port, messages)
            say(
                f"the cluster's MLflow: http://127.0.0.1:{port}  (Ctrl-C ends the tunnel)\nit asks for user and "
                f"password: `ray exec {shlex.quote(str(cluster))} 'cat ~/.mlflow/credentials'` shows them"
            )
            while messages.next(3600) is not None or messages.alive:
                pass
            say("the tunnel has ended: the connection to the head is gone")
            return 1
        except KeyboardInterrupt:
            return 0


def _check_version(cluster: Path, there: Message) -> None:
    if there["version"] != __version__:
        raise InputError(
            f"{cluster}: the head has wmlsearch {there['version']}, and here is {__version__}; "
            f"{STEP.format(file=cluster)}"
        )


def _check_known(cluster: Path, name: str | None, answer: Message) -> None:
    """Refuse a name that the head does not know. Raises InputError."""
    if answer["state"]["state"] == "unknown" and name is None:
        raise InputError(
            f"{cluster}: no search on this cluster yet; start one with `wmlsearch tune --cluster {cluster}`"
        )
    if answer["state"]["state"] == "unknown":
        raise InputError(
            f"{name}: no search of this name on the head of {cluster} (there: {', '.join(answer['names']) or 'none'})"
        )


def _is_here(path: Path, run: Message) -> bool:
    """Whether `path` holds the search as it stands on the head (`run`). Raises InputError where it holds another."""
    if not path.exists() or not run:
        return False
    here = SearchDir(path)
    if not here.exists() or here.record().key != run["key"]:
        raise InputError(
            f"{path}: is another run than the one on the head, and nothing is overwritten; choose another --out"
        )
    return here.summary() == run


def _send_data(head: Head, data: Path, target: str, fingerprint: str, say: Say) -> None:
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    say(f"sending the prepared data to the head, this once ({size / 2**20:.1f} MB) ...")
    began = time.monotonic()
    head.send(data, f"{target}.part")
    head.ask("accept", fingerprint)
    say(f"sent in {duration(time.monotonic() - began)}")


def _watch(head: Head, name: str, began: Message, out: Path, say: Say) -> int:
    """Follow a search that has begun on the head, from where its log stood then; fetch its results; its exit status."""
    say(f"{name} runs on the head (process {began['state'].get('pid')}); Ctrl-C ends only the following of it")
    ended = _follow(head, name, began["offset"], say)
    if ended is None:
        say(
            f"{name} goes on on the head: see it with `wmlsearch status {name} --cluster {head.cluster}`, which also "
            "fetches what it has found once it has ended; stop it with "
            f"`wmlsearch stop {name} --cluster {head.cluster}`"
        )
        return 130
    return _finish(head, name, ended, out, say)


def _follow(head: Head, name: str, offset: int, say: Say) -> Message | None:
    """Say what the search writes, until it has ended: its state then, or None if we were stopped or shut out."""
    failures = 0
    try:
        while failures < RETRIES:
            with head.stream("exec", call("follow", name, str(offset))) as messages:
                for message in until(messages, QUIET_S):
                    failures = 0
                    if "state" in message:
                        return dict(message["state"])
                    say(message["line"])
                    offset = message["offset"]
            failures += 1
            if failures == 1:
                say("the connection to the head is lost; trying again ...")
            time.sleep(RETRY_S if failures > 1 else 1.0)
        say("the head can't be reached any more")
    except KeyboardInterrupt:
        say("stopped following")
    return None


def _finish(head: Head, name: str, ended: Message, out: Path, say: Say) -> int:
    """Fetch what an ended search has found into `out`, in place of an older copy of it; its exit status."""
    packed = head.ask("pack", name)
    if packed["bytes"]:
        out.mkdir(parents=True, exist_ok=True)
        aside = out / f".{name}.part"
        aside.mkdir(exist_ok=True)
        head.fetch(packed["packed"], aside)
        if (out / name).exists():
            SearchDir(out / name).replace_with(aside)
        else:
            os.replace(aside, out / name)
        say(
            f"fetched from the head into {out / name} ({packed['bytes'] / 2**20:.1f} MB; "
            "the trials' checkpoints stay there)"
        )
    say(f"{name} has ended on the head: {_how(ended)}")
    return int(ended.get("status", 1))


def _how(state: Message) -> str:
    return f"exit status {state['status']}" if "status" in state else "its process died (was the head restarted?)"


def _wait_for_mlflow(cluster: Path, port: int, messages: Messages) -> None:
    """Wait until the head's MLflow answers through the tunnel. Raises InputError after half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and messages.alive:
        if is_healthy(port):
            return
        time.sleep(0.3)
    raise InputError(f"{cluster}: the head's MLflow does not answer on 127.0.0.1:{port}; give another --port")
