"""`cavmae launch`: a run on all GPUs of this host or of many, seen through to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def launch(
    run: Annotated[Path, typer.Argument(help="Run file: YAML with the differences from the defaults.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as many as you like.")] = None,
    hostfile: Annotated[Path | None, typer.Option(help="Lines `name slots=8`; without it this host alone.")] = None,
    ranks_per_host: Annotated[
        int, typer.Option(min=0, help="Ranks on each host; 0: its slots, or the GPUs of this one.")
    ] = 0,
    restarts: Annotated[
        int,
        typer.Option(
            min=0, help="Failures in a row that are forgiven; a checkpoint in between starts the count again."
        ),
    ] = 3,
    min_hosts: Annotated[
        int | None, typer.Option(help="Go on with so many hosts when the others do not answer.", show_default="all")
    ] = None,
    master_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where ranks meet; 0: another port each time.")
    ] = 0,
) -> None:
    """Train on one host or many; what fails is started again from the last checkpoint, also with fewer hosts.

    Hosts are reached by ssh without a password. Credentials and settings of the network (AWS_*, NCCL_*, ...) go along
    inside the connection. SIGTERM, SIGUSR1 and Ctrl-C reach every rank: they save and stop. docs/multinode.md.

    \b
    Examples:
      cavmae launch RUN.yaml
      cavmae launch RUN.yaml --hostfile launch/hostfile --restarts 10 --min-hosts 6 train.global_batch=4096
    """
    from cavmae_ds.launcher.hosts import HERE, Host, read_hostfile
    from cavmae_ds.launcher.supervisor import Supervisor
    from cavmae_ds.launcher.world_size import check_fewer_hosts
    from cavmae_ds.tasks import load_run

    cfg = load_run(run, overrides=overrides or [])
    hosts = read_hostfile(hostfile) if hostfile else [Host(HERE, ranks_per_host or _gpus() or 1)]
    if ranks_per_host:
        hosts = [Host(host.name, ranks_per_host) for host in hosts]
    fewest = len(hosts) if min_hosts is None else min_hosts
    check_fewer_hosts(len(hosts), fewest, cfg.check_fewer_ranks)
    program = ["--module", "cavmae_ds.train_cli", str(run.resolve()), *(overrides or [])]
    supervisor = Supervisor(
        program, hosts, restarts, fewest, master_port, run_dir=cfg.run_dir, address=cfg.checkpoint.address,
        train=cfg.train, data=cfg.data, watch=cfg.watch,
    )  # fmt: skip
    raise typer.Exit(supervisor.run())


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
