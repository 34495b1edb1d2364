"""Every command line of README, docs and --help runs, in a folder that has what it names: a new example is a new test.

What starts ranks or hosts is checked by --dry-run, after its launcher's options; ten lines are not run, with reasons.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from deepspeed.launcher.runner import parse_args as parse_deepspeed

from tests.documented import folder as documented_folder
from tests.documented.clean import CleanBuckets, CleanFolder
from tests.documented.commands import (
    TRAINING_SCRIPTS,
    Documented,
    cli_command,
    documented_commands,
    mentioned_commands,
)
from tests.ranks import CHECKOUT, fork_cavmae, fork_script

pytestmark = pytest.mark.slow

NOT_RUN = {
    "launch/test.sh": "runs this test",
    "launch/quickstart.sh": "runs in tests/test_quickstart.py, with what it prints",
    "source": "activates the environment that the tests run in",
    "ssh-keygen": "writes a key into the user's home",
    "for": "copies a key to other hosts",
    "ib_write_bw": "needs InfiniBand adapters",
    "mpirun": "needs GPUs, MPI and nccl-tests",
    "sbatch": "needs Slurm",
    "wget": "downloads from another site",
    "aws": "is another project's program",
    "git": "downloads from another site",
    "pip": "installs packages",
}
"""First word of a line -> why it is not run."""
FEW = ("train.global_batch=2", "train.micro_batch=2", "optim.warmup_clips=0")
"""Overrides for commands that count the clips of the folder's data set, of which there are few."""
CLIPS = ("--clips", "2000000")
"""Stands for the data set of a reader's own: as large as AudioSet."""
DOCTOR = ("--seconds", "6")
"""Of which it measures each address for two."""
RUN_MODULE = Path(__file__).with_name("run_module.py")
COMMANDS = [one for one in documented_commands() if one.words[0] not in NOT_RUN]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("documented")
    documented_folder.make(made)
    return made


@pytest.fixture(scope="module")
def clean(original, tmp_path_factory) -> CleanFolder:
    return CleanFolder(original, tmp_path_factory.mktemp("copy") / "clean")


@pytest.fixture
def folder(clean, monkeypatch) -> Path:
    """As it was made, whatever the command before has done; it is the current folder."""
    clean.restore()
    monkeypatch.chdir(clean.path)
    return clean.path


@pytest.fixture(scope="module")
def buckets(original, s3_server) -> CleanBuckets:
    """Buckets with the names of the pages and what commands read there."""
    shards, checkpoints = original / "shards" / "train", original / "runs" / "base" / "checkpoints"
    files = {
        (bucket, f"{prefix}/{path.relative_to(source)}"): path
        for bucket, prefix, source in (
            ("bucket", "train", shards), ("bucket", "more", shards), ("my-bucket", "train", shards),
            ("bucket", "runs/base", checkpoints),
        )
        for path in source.rglob("*")
        if path.is_file()
    }  # fmt: skip
    return CleanBuckets(s3_server.client(), files)


def test_at_most_ten_lines_are_not_run_and_each_has_its_reason(capsys):
    left_out = [one for one in documented_commands() if one.words[0] in NOT_RUN]
    with capsys.disabled():
        for one in left_out:
            print(f"\n{one.page}: not run: {one.line}: {NOT_RUN[one.words[0]]}", end="")  # noqa: T201
    assert {one.words[0] for one in left_out} == NOT_RUN.keys()  # nothing is marked that no page shows
    elsewhere = {"launch/quickstart.sh", "source"}
    assert len([one for one in left_out if one.words[0] not in elsewhere]) <= 10
    assert len(COMMANDS) > 80


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: f"{one.page}: {one.line[:90]}")
def test_a_documented_command_does_what_the_page_says(command, folder, original, buckets, s3_server, monkeypatch):
    for name, value in {**s3_server.environment, "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    if "s3://" in command.line:
        buckets.restore(without="train" if "--out s3://" in command.line else "")
    finished = run(command, folder, original)
    what = f"{command.page}: {command.line}\n{finished.stdout}\n{finished.stderr}"
    assert "Traceback" not in finished.stderr, what
    if command.line.endswith(".onnx") and not find_spec("onnx"):  # the page names the extra that it needs
        assert finished.returncode == 2 and "'cavmae-ds[export]'" in finished.stderr, what
    else:
        assert finished.returncode == 0, what


@pytest.mark.parametrize("command", mentioned_commands(), ids=lambda one: f"{one.page}: {one.line}")
def test_a_command_named_in_a_sentence_has_the_options_that_are_named(command):
    cli, words = cli_command([word for word in command.words[1:] if word != "COMMAND"])
    known = {option for parameter in cli.params for option in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_mistake_in_the_readme_is_answered_as_it_says(folder):
    finished = fork_script(CHECKOUT / "launch/pretrain.py", "RUN.yaml", "mask.rato=0.5", cwd=folder)
    assert finished.returncode == 2
    assert finished.stderr in (CHECKOUT / "README.md").read_text()


def run(command: Documented, folder: Path, original: Path) -> subprocess.CompletedProcess[str]:
    """Run a line, or what checks it."""
    line = os.path.expandvars(command.line.replace("step-00120000", documented_folder.newest_step(folder)))
    program, *words = shlex.split(line)
    words = [name for word in words for name in (run_folders(word) if "*" in word else [word])]
    match program:
        case "cavmae" if words[0] == "launch":
            cli, rest = cli_command(words)
            options = cli.make_context("launch", rest).params
            return dry_run("pretrain.py", [str(options["run"]), *(options["overrides"] or [])], 1, folder)
        case "cavmae":
            return fork_cavmae(*prepared(words, folder, original), cwd=folder)
        case "deepspeed":
            options = parse_deepspeed(words)
            script = Path(options.user_script).name
            if script in TRAINING_SCRIPTS:
                return dry_run(script, options.user_args, max(1, options.num_gpus), folder)
            given = (*FEW, *DOCTOR) if script == "doctor.py" else ()
            return fork_script(CHECKOUT / "launch" / script, *options.user_args, *given, cwd=folder)
        case "python" if words[0] == "-m":
            return fork_script(RUN_MODULE, words[1], "--help", cwd=folder)
        case "python" if words[0].startswith("tests/"):
            return fork_script(CHECKOUT / words[0], *words[1:], cwd=CHECKOUT)
        case "python":
            return dry_run(Path(words[0]).name, words[1:], 1, folder)
        case "tensorboard":
            return tensorboard(words)
    return subprocess.run(["bash", "-euc", line], capture_output=True, text=True)


def run_folders(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path().glob(pattern) if (path / "config.yaml").is_file())


def prepared(words: list[str], folder: Path, original: Path) -> list[str]:
    """The words, after what they are to make was removed, and paths of a reader's own were replaced by those here."""
    if words[0] in ("prepare", "import-official", "create-official", "synthesize"):
        out = folder / words[words.index("--out") + 1]
        out.unlink() if out.is_symlink() else shutil.rmtree(out, ignore_errors=True)
    if words[0] in ("prepare", "import-official", "synthesize"):
        words = [*words, "--workers", "1"]
    if words[0] == "synthesize":
        return [*words, "--clips", "8"]
    if words[0] == "doctor":
        return [*words, *(FEW if words[1].lower() == "run.yaml" else ()), *DOCTOR]
    if words[0] == "plan" and "--clips" not in words:
        return [*words, *CLIPS]
    if "--root" in words:
        at, listing = words.index("--root") + 1, folder / words[1]
        old = words[at].partition("=")[0]
        listing.write_text(listing.read_text().replace(str(original), old))
        return [*words[:at], f"{old}={original}", *words[at + 1 :]]
    return words


def dry_run(script: str, words: list[str], ranks: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """What launch/pretrain.py or launch/finetune.py would do, as far as that can be seen without starting it."""
    if script == "finetune.py":
        shutil.copy("FINETUNE.yaml", "RUN.yaml")
    given = [] if "--dry-run" in words else ["--dry-run", "--ranks", str(ranks)]
    return fork_script(CHECKOUT / "launch" / script, *words, *given, *CLIPS, cwd=folder)


def tensorboard(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Started on a free port, until it says where it is to be seen."""
    process = subprocess.Popen(
        [Path(sys.executable).with_name("tensorboard"), *words, "--port", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said = ""
        while line := process.stderr.readline():
            said += line
            if "http://localhost:" in line:
                return subprocess.CompletedProcess(words, 0, "", said)
        return subprocess.CompletedProcess(words, process.wait(), "", said)
    finally:
        process.kill()
        process.wait()
