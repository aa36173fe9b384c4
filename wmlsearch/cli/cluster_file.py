"""The verb `cluster-file`: a file that describes a cluster, to be adapted."""

from __future__ import annotations

from pathlib import Path

import click

from wmlsearch.cli import options


@click.command("cluster-file", short_help="Write a file that describes a cluster.")
@click.argument("kind", metavar="KIND", type=click.Choice(["aws", "on-prem", "slurm", "kuberay"]))
@click.argument("out", type=click.Path(path_type=Path), default=Path())
def cluster_file(kind: str, out: Path) -> None:
    """Write the file for a cluster of KIND. OUT is a file name with a suffix, or a folder (default: the current one).

    \b
    aws      cluster.yaml for `ray up`: a head, and GPU machines that start while trials wait
    on-prem  on-prem.yaml for `ray up`: your own machines, reached by ssh
    slurm    slurm.sbatch, a batch script
    kuberay  kuberay.yaml, a manifest for KubeRay, and wmlsearch-image, the folder to build its image from

    Change the lines that are marked with CHANGE. Nothing is overwritten.

    Example: wmlsearch cluster-file aws
    """
    from wmlsearch.cluster.cluster_files import KINDS, write_cluster_file

    written = write_cluster_file(kind, out)
    for path in written:
        options.say(f"wrote {path}")
    options.say(f"next: change the lines of {written[0]} that say CHANGE, then")
    for step in KINDS[kind].next_steps(written[0]):
        options.say(f"  {step}")
