"""A long search under random kills: `python tests/faults/soak.py --trials 300`. Nothing may be lost or leak.

A trial process is killed about every 20 seconds. The MLflow server is killed and restarted every minute. At the end
every trial has an outcome, MLflow equals the run folders, and memory, open files, processes and placement groups have
not grown since the first trial.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from processes import descendants, kill, slots
from proxy import Server
from search import Running, differences, sync, tune_arguments

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.runs.schema import ENDED


@dataclass(frozen=True)
class Use:
    """Resources of a running search."""

    memory_mb: float  # resident memory of the driver, MiB
    files: int  # open files of the driver
    processes: int  # descendants of the driver
    placement_groups: int

    @classmethod
    def of(cls, running: Running) -> Use:
        pid = running.process.pid
        status = Path(f"/proc/{pid}/status").read_text()
        memory = re.search(r"VmRSS:\s+(\d+)", status)
        alive = [child for child in descendants(pid) if "Z" not in state(child)]
        return cls(
            int(memory[1]) / 1024 if memory else 0.0,
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
            len(alive),
            groups(pid),
        )


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def groups(driver: int) -> int:
    """Return how many placement groups of the search's Ray are not removed, asked in a subprocess."""
    gcs = next(pid for pid in descendants(driver) if "gcs_server" in command(pid))
    (port,) = Path(re.search(r"--session-dir=(\S+)", command(gcs))[1]).glob("gcs_server_port_*")
    words = Path(f"/proc/{gcs}/environ").read_bytes().decode().split("\0")
    settings = dict(word.split("=", 1) for word in words if word.startswith("RAY_"))
    code = (
        "import ray; from ray.util.placement_group import placement_group_table as t\n"
        f"ray.init(address='127.0.0.1:{port.read_text().strip()}', log_to_driver=False, logging_level=50)\n"
        "print(sum(g['state'] != 'REMOVED' for g in t().values()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, **settings},
    )
    return int(done.stdout.split()[-1])


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=20, help="seconds, on average, between kills of a trial")
    parser.add_argument("--restart-every", type=float, default=60, help="seconds between restarts of MLflow")
    parser.add_argument(
        "--max-minutes", type=float, default=60, help="time limit: the search is stopped and the test fails"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="wmlsearch-soak-") as folder:
        return soak(Path(folder), options, random.Random(options.seed))  # noqa: S311 - seeded on purpose


def soak(folder: Path, options: argparse.Namespace, chance: random.Random) -> int:
    raw = write_phantom(folder / "raw", patients=8, timepoints=1, shape=(48, 48, 12))
    prepare(raw, folder / "prepared", PrepareOptions(size=32, fit="resize", val_patients=("04",), jobs=1))
    server = Server(folder)
    try:
        return under_kills(folder, server, options, chance)
    finally:
        server.kill()


def under_kills(folder: Path, server: Server, options: argparse.Namespace, chance: random.Random) -> int:
    out = folder / "runs"
    out.mkdir()
    server.up()
    uri = f"http://127.0.0.1:{server.port}"
    words = tune_arguments(out, folder / "prepared", "--mlflow-uri", uri, trials=options.trials, epochs=options.epochs)
    killed, restarted, begun = 0, 0, time.monotonic()
    with Running(out, *words) as running:
        try:
            running.until(lambda: any(run.state in ENDED for run in running.search.trials()), 600)
            first = last = Use.of(running)
            print(f"at the beginning: {first}", flush=True)
            now = time.monotonic()
            next_kill, next_restart, next_look = now + chance.expovariate(1 / options.kill_every), now, now
            while not running.ended and time.monotonic() - begun < 60 * options.max_minutes:
                now = time.monotonic()
                if now > next_kill and (workers := slots(running.process.pid)):
                    kill(chance.choice(workers))
                    killed += 1
                    next_kill = now + chance.expovariate(1 / options.kill_every)
                if now > next_restart + options.restart_every:
                    server.kill()
                    server.start()
                    restarted, next_restart = restarted + 1, now
                unfinished = options.trials - sum(run.state in ENDED for run in running.search.trials())
                # Measured while trials run: the report's libraries that are loaded at the end are not a leak.
                if unfinished and (now > next_look or unfinished <= 2):
                    next_look = now + 30
                    try:
                        last = Use.of(running)
                    except (OSError, StopIteration, subprocess.CalledProcessError):  # the search is just ending
                        running.end(120)
                time.sleep(0.5)  # between two looks at the clock and the run folders
            in_time = running.ended
            if not in_time:
                kill(running.process.pid, signal.SIGTERM)  # the search stops and reports that to MLflow
                running.end(120)
        finally:
            ended = running.process.poll()
        print(f"shortly before the end: {last}", flush=True)
        server.kill()
        server.up()
        synced = sync(out, uri)
    missing, doubled, faults = (
        differences(running.search, server.store) if synced.returncode == 0 else (-1, -1, [synced.stderr])
    )
    states: dict[str, int] = {}
    for run in running.search.trials():
        states[run.state] = states.get(run.state, 0) + 1
    print(f"{killed} kills, {restarted} restarts of MLflow, {time.monotonic() - begun:.0f} s; trials: {states}")
    print(f"metric rows missing in MLflow: {missing}, doubled: {doubled}; other differences: {len(faults)}")
    checks = {
        "the search ended by itself": bool(in_time and ended == 0),
        "every trial has an outcome": sum(states.values()) == options.trials and set(states) <= set(ENDED),
        "MLflow equals the run folders": (missing, doubled, faults) == (0, 0, []),
        "no more processes than at the beginning": last.processes <= first.processes + 2,
        "no more open files": last.files <= first.files + 10,
        "no more placement groups": last.placement_groups <= first.placement_groups + 1,
        "memory within 150 MB": last.memory_mb <= first.memory_mb + 150,
    }
    for name, holds in checks.items():
        print(f"{'ok    ' if holds else 'FAILED'} {name}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
