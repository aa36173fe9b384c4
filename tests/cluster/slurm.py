"""Slurm on the hosts of hosts.py: munged on each, slurmctld on the first, slurmd on all."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Any

from hosts import Host
from processes import wait_for

FOLDER = "/run/slurm"  # private to a host
CONFIG = f"{FOLDER}/slurm.conf"
DAEMONS = ("munged", "slurmd", "slurmctld", "slurmstepd")
KILL_WAIT_S = 30  # Slurm's default: from SIGTERM to SIGKILL


class Slurm:
    """A Slurm cluster of hosts with some CPUs each, which several jobs can share."""

    def __init__(self, hosts: Mapping[str, Host], cpus: int = 2) -> None:
        self.hosts = list(hosts.values())
        self.controller = self.hosts[0]
        key = base64.b64encode(os.urandom(128))
        for host in self.hosts:
            wait_for(host.is_up, 30, f"{host.name} is not up")
            folder = host.file(FOLDER)
            for name in ("munge", "state", "spool", "log"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / "munge" / "key").write_bytes(key)
            (folder / "munge" / "key").chmod(0o600)
            host.file(CONFIG).write_text(self._config(hosts, cpus))
            host.file("/run/munge").mkdir(exist_ok=True)
            host.exec(
                "/usr/sbin/munged", "--force", "--key-file", f"{FOLDER}/munge/key",
                "--seed-file", f"{FOLDER}/munge/seed", "--log-file", f"{FOLDER}/munge/log",
                "--pid-file", f"{FOLDER}/munge/pid",
            )  # fmt: skip
        self.controller.exec("/usr/sbin/slurmctld", "-f", CONFIG)
        for host in self.hosts:
            host.exec("/usr/sbin/slurmd", "-f", CONFIG, "-N", host.name)
        wait_for(lambda: self.run("sinfo", "--noheader", "--format=%D %t") == f"{len(self.hosts)} idle", 60, "Slurm")

    def run(self, *words: Any) -> str:
        """Run a command of Slurm on the controller, and return its output."""
        return self.controller.exec(*words, environment={"SLURM_CONF": CONFIG}).strip()

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING, with the number of its restarts: "RUNNING 1"."""
        shown = dict(
            word.partition("=")[::2] for word in self.run("scontrol", "--oneliner", "show", "job", job).split()
        )
        return f"{shown['JobState']} {shown['Restarts']}"

    def log(self) -> str:
        """Return the ends of the logs of all daemons."""
        files = [path for host in self.hosts for path in sorted(host.file(f"{FOLDER}/log").glob("*"))]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in files)

    def _config(self, hosts: Mapping[str, Host], cpus: int) -> str:
        nodes = "\n".join(
            f"NodeName={host.name} NodeAddr={ip} CPUs={cpus} RealMemory=4000" for ip, host in hosts.items()
        )
        head_ip = next(iter(hosts))
        # Slurm holds a requeued job back until its credential has expired. The hosts' processes have namespaces of
        # their own, so they need no control groups.
        return f"""ClusterName=test
SlurmctldHost={self.controller.name}({head_ip})
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={FOLDER}/state
SlurmdSpoolDir={FOLDER}/spool
SlurmctldPidFile={FOLDER}/slurmctld.pid
SlurmdPidFile={FOLDER}/slurmd.pid
SlurmctldLogFile={FOLDER}/log/slurmctld
SlurmdLogFile={FOLDER}/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2
MailProg=/bin/true
KillWait={KILL_WAIT_S}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
