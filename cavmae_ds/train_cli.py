"""What `deepspeed` starts on every rank: read the command line, refuse in one sentence, or run."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cavmae_ds.atomic_io import make_folder, refusal
from cavmae_ds.config.load import to_yaml
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.distributed.environment import from_launcher, ranks_of_this_host
from cavmae_ds.errors import ConfigError, DataError, RankError, UserError
from cavmae_ds.fault_tolerance.exit import ExitCode, Leaving, PeerLost, leave, leaving, say
from cavmae_ds.fault_tolerance.process_tree import launchers, when_orphaned
from cavmae_ds.fault_tolerance.signals import LAUNCHER_GONE, StopRequests
from cavmae_ds.tasks import load_run, task_of
from cavmae_ds.terminal import echo, log_to_stderr, open_standard_streams

if TYPE_CHECKING:
    from cavmae_ds.tasks.run_plan import RunPlan

RunFile = Annotated[Path, typer.Argument(help="Run file: YAML with the differences from the defaults.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as many as you like.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved run and its numbers, then stop.")]
DryRanks = Annotated[int, typer.Option("--ranks", help="With --dry-run: ranks to compute for.")]
DryClips = Annotated[
    int,
    typer.Option("--clips", min=0, help="With --dry-run: clips of the data set; data and init are then not looked at."),
]
LocalRank = Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)]

Train = Callable[[StopRequests], None]

FIRST_RANK_SPEAKS_S = 3.0

log = logging.getLogger(__name__)


def pretrain_command(
    run: RunFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    ranks: DryRanks = 0,
    clips: DryClips = 0,
    local_rank: LocalRank = 0,
) -> None:
    """Pretrain CAV-MAE on all ranks that the launcher starts; resumes when the run folder holds a checkpoint.

    Examples:\n
      deepspeed --num_gpus 2 launch/pretrain.py launch/recipes/quickstart.yaml\n
      deepspeed --hostfile launch/hostfile launch/pretrain.py RUN.yaml train.global_batch=1024\n
      python launch/pretrain.py RUN.yaml --dry-run --ranks 8\n
      python launch/pretrain.py launch/recipes/base.yaml --dry-run --clips 1772023

    Exit codes: 0 done; 2 something must change first (one sentence says what); 75 asked to stop, everything is saved;
    69 a rank or host was lost; 130 told twice to stop; 1 a defect. After 69 and 75 the same command goes on.
    """
    _train("pretrain", run, overrides, dry_run, ranks, clips)


def finetune_command(
    run: RunFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    ranks: DryRanks = 0,
    clips: DryClips = 0,
    local_rank: LocalRank = 0,
) -> None:
    """Finetune a classifier on all ranks that the launcher starts; resumes when the run folder holds a checkpoint.

    Examples:\n
      deepspeed --num_gpus 4 launch/finetune.py launch/recipes/official/finetune-as20k.yaml\n
      python launch/finetune.py RUN.yaml --dry-run --ranks 4\n
      python launch/finetune.py RUN.yaml --dry-run --clips 18691 classifier.classes=527

    Exit codes: as those of pretraining; see launch/pretrain.py --help.
    """
    _train("finetune", run, overrides, dry_run, ranks, clips)


def train_command(
    run: RunFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    ranks: DryRanks = 0,
    clips: DryClips = 0,
    local_rank: LocalRank = 0,
) -> None:
    """Train what the run file says, on all ranks that the launcher starts; resumes from a checkpoint in the run folder.

    The file's `task` says what is trained; without the key, its sections do, and a file without any pretrains.

    Examples:\n
      deepspeed --num_gpus 2 launch/train.py RUN.yaml\n
      python launch/train.py launch/recipes/base.yaml --dry-run --clips 1772023

    Exit codes: as those of pretraining; see launch/pretrain.py --help.
    """
    _train("", run, overrides, dry_run, ranks, clips)


def _train(task: str, run: Path, overrides: list[str] | None, dry_run: bool, ranks: int, clips: int) -> None:
    above = _prepare_rank()
    cfg = load_run(run, task, overrides or [])
    if not dry_run:
        _check_run_dir(cfg.run_dir)
    if clips and not dry_run:
        raise ConfigError("--clips is for --dry-run, got --clips without it; add --dry-run or leave --clips out")
    kind = task_of(cfg)  # brings torch along: a mistyped key is refused before that
    plan = kind.resolve(cfg, _ranks(dry_run, ranks), clips or None)
    if dry_run:
        return _show(cfg, plan, looked_at=not clips)
    from cavmae_ds.training.loop import train

    _train_and_leave(Path(cfg.script).stem, cfg.watch.grace_seconds, above, partial(train, kind(cfg, plan)))


def _prepare_rank() -> list[int]:
    """Before torch is imported; returns the launchers above this rank, while they surely live."""
    above = launchers()
    if "RANK" in os.environ:  # among others: a store that is gone would else be told with the stack of C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # One thread a rank unless told otherwise: ranks on a CPU would each take all cores. The launcher sets nothing.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks_of_this_host())))
    return above


def _ranks(dry_run: bool, asked: int) -> int:
    return asked if dry_run and asked else from_launcher("WORLD_SIZE", 1)


def _show(cfg: RunConfig, numbers: RunPlan, looked_at: bool) -> None:
    """Prints the run. looked_at: its data were, so the weights of section init are too. Raises CheckpointError."""
    if from_launcher("RANK", 0) == 0:
        if looked_at:
            from cavmae_ds.weights.init import examine_start

            build = partial(task_of(cfg).build_model, cfg)
            examine_start(cfg.init, cfg.model, cfg.run_dir, build, numbers.head_classes())
        echo(f"{to_yaml(cfg)}\n# What follows from it (memory and speed: cavmae plan RUN.yaml):\n{numbers.lines()}")


def _check_run_dir(run_dir: Path) -> None:
    """Before anything expensive, and by every rank: its host may have a disk of its own.

    Raises ConfigError; on the first rank of a host RankError, so that one rank of each speaks.
    """
    try:
        make_folder(run_dir, "run_dir")
    except ConfigError as error:
        if from_launcher("LOCAL_RANK", 0):
            raise
        raise RankError(f"{error} (on {socket.gethostname()})") from error


def _train_and_leave(what: str, grace_s: float, above: list[int], train: Train) -> None:
    stop = StopRequests(grace_s, from_launcher("RANK", 0))
    when_orphaned(above, lambda: stop.ask(LAUNCHER_GONE))
    leave(_end_of_run(what, partial(train, stop)))


def _end_of_run(what: str, train: Callable[[], None]) -> ExitCode:
    """Train; what ends it is said, and becomes an exit code."""
    rank = from_launcher("RANK", 0)
    try:
        train()
    except PeerLost as lost:
        say(f"rank {rank}: {lost}")
        return lost.code
    except Leaving as left:
        if rank == 0:
            say(f"{what}: {left}")
        return left.code
    except DataError as error:
        say(f"{what}: error: rank {rank}: {error}")
        return ExitCode.REFUSED
    except UserError as error:
        if rank == 0 or isinstance(error, RankError):
            say(f"{what}: error: {error}")
        else:
            _let_first_rank_speak()
        return ExitCode.REFUSED
    except Exception as error:
        if sentence := refusal(error):
            say(f"{what}: error: rank {rank}: {sentence}")
            return ExitCode.REFUSED
        if not leaving():
            say(traceback.format_exc())
        return ExitCode.DEFECT
    return ExitCode.DONE


def _let_first_rank_speak() -> None:
    """After a refusal that the first rank alone prints: torchrun ends all ranks at once when one has left."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # other launchers look once a second
        time.sleep(FIRST_RANK_SPEAKS_S)


def main(command: Callable[..., None] = pretrain_command) -> None:
    """Run the command; what must change before the run becomes one sentence of the first rank and exit code 2."""
    first = from_launcher("RANK", 0) == 0
    open_standard_streams()
    log_to_stderr(logging.INFO if first else logging.ERROR)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
    try:
        app(standalone_mode=True)
    except Exception as error:
        sentence = refusal(error)
        if first or not sentence or isinstance(error, RankError):
            what = command.__name__.partition("_")[0]
            echo(f"{what}: error: {sentence}" if sentence else traceback.format_exc(), err=True)
        else:
            _let_first_rank_speak()
        sys.exit(ExitCode.REFUSED if sentence else ExitCode.DEFECT)


if __name__ == "__main__":  # `cavmae launch` starts ranks by module name
    main(train_command)
