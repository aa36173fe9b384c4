"""The verb `cluster-file`: a file that describes a cluster, to be adapted."""

from __future__ import annotations

from pathlib import Path

import click

from wmlsearch.cli import options


@click.command("cluster-file", short_help="Write a file that describes a cluster.")
@click.argument("kind", metavar="KIND", type=click.Choice(["aws", "on-prem", "slurm", "kuberay"]))
@click.argument("out", type=click.Path(path_type=Path), default=Path())
def cluster_file(kind: str, out: Path) -> None:
    """Write the file for a cluster of KIND to OUT: a name with a suffix, or a folder (default: this one).

    \b
    aws      cluster.yaml for `ray up`: a head, and GPU machines as long as trials wait
    on-prem  on-prem.yaml for `ray up`: machines of your own, reached by ssh
    slurm    slurm.sbatch, a batch script
    kuberay  kuberay.yaml, a manifest for KubeRay, and wmlsearch-image, the folder of its image

    The lines to change are marked with CHANGE. Nothing is overwritten.

    Example: wmlsearch cluster-file aws
    """
    from wmlsearch.cluster.cluster_files import KINDS, write_cluster_file

    written = write_cluster_file(kind, out)
    for path in written:
        options.say(f"wrote {path}")
    options.say(f"next: change the lines of {written[0]} that say CHANGE, then")
    for step in KINDS[kind].next_steps(written[0]):
        options.say(f"  {step}")
