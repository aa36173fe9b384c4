"""A Ray on the machines of a Slurm job, and a command that runs on it.

    python -m wmlsearch.cluster.slurm COMMAND ...

This is the last line of a batch script, see `clusters/slurm.sbatch`. It starts Ray on each machine of the job with
`srun`, waits until all have joined, and runs COMMAND on the first. The ports, the token and the temporary folders
belong to this job: several jobs can share a machine, and no other user can use its Ray. A machine offers Ray the CPUs,
GPUs and memory that Slurm has given to the job, not all that it has.

With `--signal=B:USR1@300`, Slurm sends USR1 to the script 300 seconds before the time limit. The command then gets
SIGTERM, and when it has ended cleanly the job requeues itself; `wmlsearch tune --continue` goes on where it was.
`scancel` and preemption send SIGTERM to all processes of the job, Ray's too; the command then ends without Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from wmlsearch.errors import InputError
from wmlsearch.runs.environment import NO_GPUS, RAY_OF_JOB, hip_devices, loopback_exceptions, set_variables
from wmlsearch.runs.wording import plural

JOIN_S = 300.0  # in which all machines join: on a busy file system, importing Ray takes minutes
END_S = 60.0  # in which Ray ends on all machines; then it is killed
ENDED_BY_REQUEST = 128 + signal.SIGTERM  # exit status of a command that SIGTERM has ended
MODULE = "wmlsearch.cluster.slurm"
# Options of `srun` for the user's tasks, as `sbatch` leaves them in the environment: how many there are, what each has,
# and where it runs. The step that starts Ray has one task on a machine, which gets all that the job has there; with one
# of these options, Slurm would give it less, or refuse it.
_OF_THE_USERS_TASKS = re.compile(
    r"(SLURM|SRUN)_("
    r"\w+_PER_(TASK|GPU|TRES|SOCKET|CORE)|(NTASKS|NSOCKETS)_PER_NODE|"
    r"\w+_BIND(_\w+)?|DIST\w+|HINT|EXACT|EXCLUSIVE|OVERCOMMIT|CORE_SPEC|THREAD_SPEC|GRES|GRES_FLAGS|"
    r"STDINMODE|WAIT)"
)
_GPUS = ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclass(frozen=True)
class SlurmJob:
    """The job that this process belongs to."""

    number: str  # of the job; each task of an array has its own
    machines: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> SlurmJob:
        """Return the job that Slurm describes in the environment. Raises InputError if there is none."""
        number = environment.get("SLURM_JOB_ID", "")
        if not number:
            raise InputError(
                f"python -m {MODULE}: is not in a Slurm job (SLURM_JOB_ID is not set); submit a script that ends with "
                "it, such as the file of `wmlsearch cluster-file slurm`, by `sbatch`"
            )
        return cls(number, int(environment.get("SLURM_JOB_NUM_NODES", "1")))

    def requeue(self) -> str:
        """Put the job back into the queue, which ends it here. Returns why Slurm refused, or ""."""
        done = subprocess.run(["scontrol", "requeue", self.number], capture_output=True, text=True, check=False)  # noqa: S603, S607 - each site has its own place for Slurm's commands
        return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""


# -------------------------------------------------------------------------------------------------- the batch script


def run(command: Sequence[str]) -> int:
    """Run a command on a Ray of this job, and return its exit status. Raises InputError if Ray does not start."""
    job, children = SlurmJob.of(os.environ), _Children()
    ip = _own_ip()
    address = f"{ip}:{_free_port(ip)}"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": address, RAY_OF_JOB: address}
    environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    print(f"job {job.number}: starting Ray on {plural(job.machines, 'machine')} ...", flush=True)
    ray = _start_ray(job, address, environment)
    try:
        _wait_for_ray(job, ray, children, environment)
        status = children.run(command, environment)
    finally:
        _end(ray)
    if children.time_is_up and status == ENDED_BY_REQUEST:
        print(f"job {job.number}: requeues itself, since its time limit is near", flush=True)
        if refusal := job.requeue():
            print(f"job {job.number}: Slurm did not requeue it ({refusal}); to go on, submit the script again")
    return status


class _Children:
    """The processes that the batch script runs one after the other. A request to end this job ends them."""

    def __init__(self) -> None:
        self.asked_to_end: int | None = None  # the number of the signal
        self.time_is_up = False
        self._current: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._end)

    def run(self, words: Sequence[str], environment: Mapping[str, str]) -> int:
        """Return the exit status of a process; it is not started after a request to end."""
        if self.asked_to_end is not None:
            return 128 + self.asked_to_end
        self._current = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603
        if self.asked_to_end is not None:  # in between
            self._current.terminate()
        status = self._current.wait()
        self._current = None
        return status if status >= 0 else 128 - status

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self.time_is_up |= number == signal.SIGUSR1
        self.asked_to_end = self.asked_to_end or (signal.SIGTERM if number == signal.SIGUSR1 else number)
        if self._current is not None:
            self._current.terminate()


def _start_ray(job: SlurmJob, address: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a step with a task on each machine. It leaves the job's resources to the steps of the command too.

    The tasks end when their standard input does, so they end even if this process is killed.
    """
    environment = {name: value for name, value in environment.items() if not _OF_THE_USERS_TASKS.fullmatch(name)}
    words = ["srun", "--overlap", f"--nodes={job.machines}", f"--ntasks={job.machines}", "--ntasks-per-node=1"]
    words += ["--kill-on-bad-exit=0", "--export=ALL", sys.executable, "-m", MODULE, "--machine", address]
    # In a session of its own, since a Ctrl-C is for the command, and Ray ends after it.
    return subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603


def _wait_for_ray(
    job: SlurmJob, ray: subprocess.Popen[bytes], children: _Children, environment: Mapping[str, str]
) -> None:
    """Return when the machines have joined, or the job is asked to end. Raises InputError if Ray does not start."""
    host, _, port = environment["RAY_ADDRESS"].rpartition(":")
    waiter = [sys.executable, "-m", MODULE, "--wait-for", str(job.machines)]
    deadline = time.monotonic() + JOIN_S
    while ray.poll() is None and time.monotonic() < deadline and children.asked_to_end is None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            if children.run(waiter, environment) == 0:
                return
            break
        time.sleep(0.2)
    if children.asked_to_end is None:
        raise InputError(f"Ray did not start on the machines of job {job.number}; the lines above say why")


def _end(ray: subprocess.Popen[bytes]) -> None:
    """End Ray on all machines."""
    try:
        ray.communicate(timeout=END_S)  # closes the standard input of the tasks
    except subprocess.TimeoutExpired:
        ray.kill()
        ray.wait()


def _own_ip() -> str:
    """Return the address at which the other machines reach this one, as Ray chooses it: that of the default route."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address for documentation; no packet is sent
        return str(probe.getsockname()[0])
    return socket.gethostbyname(socket.gethostname())


def _free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


def wait_for(machines: int) -> int:
    """Return 0 when so many machines have joined the Ray of RAY_ADDRESS, or at least one within JOIN_S; else 1."""
    import ray

    set_variables(hip_devices(os.environ))
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.CRITICAL)
    deadline = time.monotonic() + JOIN_S
    while (joined := sum(node["Alive"] for node in ray.nodes())) < machines and time.monotonic() < deadline:
        time.sleep(0.5)
    if joined < machines:
        print(f"note: {joined} of {machines} machines have joined within {JOIN_S / 60:g} minutes; going on with these")
    return 0 if joined else 1


# --------------------------------------------------------------------------------------------- a task on each machine


def machine(address: str) -> int:
    """Run Ray on this machine until the standard input ends; on the first one also the head, at this address."""
    from wmlsearch.cluster.embedded import object_store, session_parent
    from wmlsearch.runs.scratch import scratch_folder

    with scratch_folder("ray", session_parent(object_store())) as folder, open(folder / "start.log", "w+b") as log:
        files = folder / "tmp"  # of all workers: removed with the folder, however they end
        files.mkdir()
        words = ray_start(address, folder, os.environ)
        environment = {**os.environ, **machine_variables(os.environ), "TMPDIR": str(files)}
        ray = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603
        stop_requested = threading.Event()

        def end(*_: object) -> None:
            stop_requested.set()
            ray.terminate()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)
        threading.Thread(target=lambda: end(sys.stdin.read()), daemon=True).start()
        status = ray.wait()
        if stop_requested.is_set():
            return 0
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()[-15:]
        print(f"{socket.gethostname()}: Ray has ended here with status {status}:", *lines, sep="\n  ", file=sys.stderr)
        return status or 1


def ray_start(address: str, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Return the command that runs Ray on this machine with the job's share of it, and ports that are free."""
    from wmlsearch.cluster.embedded import object_store
    from wmlsearch.cluster.ray_patches import RAY_COMMAND
    from wmlsearch.runs.machine import available_cpus, machine_bytes

    store, cpus, gpus = object_store(), available_cpus(), gpus_of_job(environment)
    memory = max(min(machine_bytes(), memory_of_job(environment)) - store.size, 2**28)
    words = [*RAY_COMMAND, "start", "--block", f"--temp-dir={folder}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
    words += [f"--memory={memory}", f"--object-store-memory={store.size}"]
    words += [] if store.in_shared_memory else [f"--plasma-directory={folder}"]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    if environment.get("SLURM_PROCID", "0") == "0":
        host, _, port = address.rpartition(":")
        return [*words, "--head", f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=false"]
    return [*words, f"--address={address}"]


def gpus_of_job(environment: Mapping[str, str]) -> int:
    """Return how many GPUs of this machine the job may use.

    Slurm names them where it manages GPUs. Where it does not, the script names them in CUDA_VISIBLE_DEVICES, or
    in HIP_VISIBLE_DEVICES those of AMD.
    """
    for name in _GPUS:
        value = environment.get(name, "").strip()
        if value.isdigit() and name == "SLURM_GPUS_ON_NODE":
            return int(value)
        if value not in NO_GPUS:
            return len(value.split(","))
    return 0


def memory_of_job(environment: Mapping[str, str]) -> int:
    """Return the memory of this machine that Slurm has given to the job, in bytes; a huge number if it says nothing."""
    per_machine = int(environment.get("SLURM_MEM_PER_NODE", 0))  # MiB; 0 is all that the machine has
    per_cpu = int(environment.get("SLURM_MEM_PER_CPU", 0)) * int(environment.get("SLURM_CPUS_ON_NODE", 1))
    return (per_machine or per_cpu) * 2**20 or 2**63 - 1


def machine_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what Ray's processes on this machine need in their environment."""
    from wmlsearch.runs.machine import Machine

    variables = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # see __init__.py
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # `scancel` grants 30 s in all, and Ray would wait as long
        **loopback_exceptions(environment),
        **hip_devices(environment),
    }
    if interface := default_interface():  # else gloo takes the host name's address, which may be 127.0.1.1
        variables["GLOO_SOCKET_IFNAME"] = environment.get("GLOO_SOCKET_IFNAME", interface)
    if Machine().memory_is_limited():  # Ray's monitor sees the whole machine; in a group the system ends a worker
        variables["RAY_memory_monitor_refresh_ms"] = "0"
    return variables


def default_interface(routes: Path = Path("/proc/net/route")) -> str:
    """Return the network interface of the default route, or "" if there is none."""
    with contextlib.suppress(OSError):
        for line in routes.read_text().splitlines()[1:]:
            name, destination, *_ = line.split()
            if destination == "00000000":
                return name
    return ""


def main(arguments: Sequence[str]) -> int:
    """Run the batch script's end, or what it starts. Returns the exit status."""
    if arguments[:1] == ["--machine"]:
        return machine(arguments[1])
    if arguments[:1] == ["--wait-for"]:
        return wait_for(int(arguments[1]))
    try:
        if not arguments:
            raise InputError(f"python -m {MODULE}: give a command, such as `wmlsearch tune --continue ...`")
        return run(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
