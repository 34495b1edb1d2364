"""What each check makes of what it sees: pure rules, by table."""

from __future__ import annotations

import os
import re
import resource
import time
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from torch.distributed import TCPStore

from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.handover import decoded_clip_bytes
from cavmae_ds.distributed.process_group import World
from cavmae_ds.doctor.bucket import throughput
from cavmae_ds.doctor.compiling import c_compiler
from cavmae_ds.doctor.devices import accelerator, threads
from cavmae_ds.doctor.environment import clock_finding, clocks_of_ranks, network_settings
from cavmae_ds.doctor.examine import Asked
from cavmae_ds.doctor.finding import Finding, Verdict, bounded, fix, ok
from cavmae_ds.doctor.leftovers import stale_locks, unused
from cavmae_ds.doctor.links import link
from cavmae_ds.doctor.ranks import Facts, Meeting, differences, own_name, shared_names, silent
from cavmae_ds.doctor.ranks import facts as gathered_facts
from cavmae_ds.doctor.report import Line, document, merged, shortened, spans, worst
from cavmae_ds.doctor.space import GIB, disk, locked_memory, open_files, parameters, shared_memory
from cavmae_ds.doctor.versions import as_constrained, constraints, requirements_met
from cavmae_ds.errors import DataError
from cavmae_ds.tasks import validate_run
from tests.ranks import CHECKOUT


def verdicts(*findings: Finding) -> list[str]:
    for finding in findings:
        assert finding.fix or finding.verdict != Verdict.FIX, finding
    return [finding.verdict.value for finding in findings]


@pytest.mark.parametrize(
    ("broken", "verdict"),
    [
        ([], "OK"),
        (["cavmae-ds 0.1.0 has requirement numpy<2.2, but you have numpy 2.3.0."], "FIX"),
        (["cavmae-ds 0.1.0 requires av, which is not installed."], "FIX"),
        (["other 1.0 requires av, which is not installed."], "NOTE"),
    ],
)
def test_missing_and_too_new_packages_are_named_and_only_ours_are_to_fix(broken, verdict):
    finding = requirements_met(broken)
    assert verdicts(finding) == [verdict] and "".join(broken) in finding.found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch==2.11.0", ["OK"]),
        ("torch==2.11.7", ["OK", "NOTE"]),  # another patch level fits
        ("torch==2.12.0", ["FIX"]),
        ("einops==0.8.1", ["NOTE"]),
        ("absent==1.0", []),
    ],
)
def test_a_matched_package_of_another_minor_version_is_to_fix_and_others_are_said(line, expected):
    installed = {"torch": "2.11.0+cu130", "einops": "0.8.2"}
    assert verdicts(*as_constrained([Requirement(line)], installed)) == expected


def test_a_changed_line_of_the_constraints_is_found_out(tmp_path):
    text = (CHECKOUT / "launch" / "constraints.txt").read_text()
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "constraints.txt").write_text(text.replace("deepspeed==0.19.8", "deepspeed==0.18.2"))
    (apart,) = [f for f in as_constrained(constraints(tmp_path), {"deepspeed": "0.19.8"}) if f.verdict == Verdict.FIX]
    assert apart.found == "deepspeed 0.19.8 instead of 0.18.2"
    assert apart.fix == f"pip install -c {CHECKOUT / 'launch' / 'constraints.txt'} deepspeed==0.18.2"
    assert verdicts(*as_constrained(constraints(CHECKOUT), {"deepspeed": "0.19.8"})) == ["OK"]


def test_torchaudio_is_pinned_to_the_torch_it_was_built_for():
    """2.11.1 does not load beside torch 2.11.0, and pip takes the newest that is allowed."""
    (pinned,) = [line for line in constraints(CHECKOUT) if line.name == "torchaudio"]
    setup = ConfigParser(interpolation=None)
    setup.read(CHECKOUT / "setup.cfg", "utf-8")
    assert str(pinned) in setup["options"]["install_requires"].splitlines()


def test_no_page_recommends_an_extra_without_the_constraints():
    for page in (CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")):
        for command in re.findall(r"pip install[^`\n]*", page.read_text("utf-8")):
            assert command.startswith("pip install -c launch/constraints.txt "), f"{page.name}: {command}"


@pytest.mark.parametrize(
    ("cores", "ranks", "workers", "told", "gpu", "expected"),
    [
        (16, 2, 2, "", False, ["OK"]),
        (16, 2, 2, "8", False, ["OK"]),
        (16, 2, 2, "16", False, ["FIX"]),
        (16, 2, 2, "16", True, ["NOTE"]),
        (16, 2, 2, "many", True, ["FIX"]),
        (16, 2, 2, "0", True, ["FIX"]),
        (16, 8, 4, "", True, ["OK", "NOTE"]),
    ],
)
def test_threads_and_workers_are_held_against_the_cores(cores, ranks, workers, told, gpu, expected):
    assert verdicts(*threads(cores, ranks, workers, told, gpu)) == expected


@pytest.mark.parametrize(
    ("told", "gpu", "verdict"),
    [("", True, "OK"), ("", False, "OK"), ("cpu", False, "OK"), ("cpu", True, "FIX"), ("cuda", False, "FIX")],
)
def test_the_accelerator_that_is_asked_for_must_be_there(told, gpu, verdict):
    assert verdicts(accelerator(told, gpu)) == [verdict]


def test_shared_memory_that_is_too_small_says_to_which_size(tmp_path):
    assert verdicts(shared_memory(3 * GIB, 4 * GIB, 3 * GIB, "x")) == ["OK"]
    small = shared_memory(GIB // 16, GIB // 16, 3 * GIB, "x")
    assert verdicts(small) == ["FIX"]
    assert "--shm-size=3g" in small.fix and "size=3G" in small.fix
    assert decoded_clip_bytes(InputSpec(log_mel_frames=1024)) == 320_000 + 150_528


def test_a_disk_needs_room_and_a_folder_that_may_be_written(tmp_path):
    assert verdicts(disk("run_dir", tmp_path / "not" / "yet", 1, "x", "free")) == ["OK"]
    full = disk("run_dir", tmp_path, 1 << 60, "x", "free")
    assert verdicts(full) == ["FIX"] and "GiB" in full.fix
    (tmp_path / "file").touch()
    blocked = disk("run_dir", tmp_path / "file" / "below", 1, "x", "free")
    assert verdicts(blocked) == ["FIX"] and "cannot be written" in blocked.found
    base = validate_run({"train": {"epochs": 1}, "model": {"preset": "base"}})
    assert 150e6 < parameters(base) < 250e6


@pytest.mark.parametrize(
    ("soft", "hard", "verdict", "do"),
    [
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "OK", ""),
        (4096, 4096, "OK", ""),
        (1024, 1 << 20, "FIX", "ulimit -n 2048"),
        (1024, 1024, "FIX", "limits.conf"),
    ],
)
def test_too_few_open_files_say_which_limit_to_raise(soft, hard, verdict, do):
    finding = open_files(soft, hard, 2048)
    assert verdicts(finding) == [verdict] and do in finding.fix


def test_infiniband_needs_locked_memory_without_a_limit():
    assert verdicts(locked_memory(resource.RLIM_INFINITY, "mlx5_0"), locked_memory(65536, "mlx5_0")) == ["OK", "FIX"]


def test_network_settings_are_shown_and_a_missing_interface_is_to_fix():
    interfaces = {"lo", "eth0", "eth1"}
    settings = {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "eth", "GLOO_SOCKET_IFNAME": "eth", "FI_TOKEN": "abc"}
    shown, gloo, credentials = network_settings(settings | {"AWS_SECRET_ACCESS_KEY": "hush"}, interfaces)
    assert verdicts(shown, gloo, credentials) == ["NOTE", "FIX", "OK"]  # eth is a prefix for NCCL alone
    assert "NCCL_DEBUG=INFO" in shown.found and "abc" not in shown.found
    assert "AWS_SECRET_ACCESS_KEY" in credentials.found and "hush" not in credentials.found
    assert verdicts(*network_settings({"NCCL_SOCKET_IFNAME": "=eth"}, interfaces)) == ["NOTE", "FIX", "OK"]
    assert verdicts(*network_settings({"NCCL_SOCKET_IFNAME": "^docker0"}, interfaces)) == ["NOTE", "OK"]
    assert verdicts(*network_settings({}, interfaces)) == ["OK", "OK"]


@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [(0.0, "OK"), (-0.9, "OK"), (1.5, "NOTE"), (-3.0, "NOTE"), (6.0, "FIX"), (-9e9, "FIX")]
)
def test_clocks_that_are_apart_are_noted_then_to_fix(ahead_s, verdict):
    assert verdicts(clock_finding("clock", ahead_s, "the server's")) == [verdict]
    assert verdicts(clocks_of_ranks({0: 1e9, 1: 1e9 + ahead_s, 2: 1e9})) == [verdict]


def test_the_rank_whose_clock_is_ahead_is_named():
    assert clocks_of_ranks({0: 100.0, 1: 107.5, 2: 100.1}).found == "rank 1's is 7.5 s ahead of rank 0's"


def test_a_bucket_that_is_too_slow_for_the_run_is_to_fix():
    rates = {1: 40e6, 4: 90e6}  # 90 MB/s are 200 clips/s
    slow = throughput("s3://b/p", rates, 250)
    assert verdicts(throughput("s3://b/p", rates, 0), throughput("s3://b/p", rates, 190), slow) == ["OK", "OK", "FIX"]
    assert "201 clips/s" in slow.found and "250 are needed" in slow.found


def test_a_compiler_is_only_needed_on_a_gpu(tmp_path, monkeypatch):
    assert verdicts(c_compiler("", True)) == ["OK"]
    assert verdicts(c_compiler("/nowhere/gcc", True)) == ["FIX"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert verdicts(c_compiler("", True), c_compiler("", False)) == ["FIX", "NOTE"]


def facts(host: str, local_rank: int, **changed: str) -> Facts:
    alike = dict.fromkeys(("code", "packages", "Python", "run", "device", "network settings"), "same")
    return Facts(host, local_rank, alike | changed)


def test_what_differs_between_ranks_is_named_with_ranks_and_hosts():
    who = {0: facts("a", 0), 1: facts("a", 1), 2: facts("b", 0, code="other"), 3: facts("b", 1, code="other")}
    code, rest = differences(who)
    assert verdicts(code, rest) == ["FIX", "OK"]
    assert code.found == "same on ranks 0-1 (a); other on ranks 2-3 (b)"
    assert "code" not in rest.found and "packages" in rest.found
    assert shared_names(who) == []


def test_hosts_of_one_name_and_silent_ranks_are_named():
    (shared,) = shared_names({0: facts("a", 0), 1: facts("a", 1), 2: facts("a", 0), 3: facts("a", 1), 4: facts("b", 0)})
    assert verdicts(shared) == ["FIX"] and "0-3" in shared.found
    assert silent(4, [0, 1, 2, 3], {}) == []
    (missing,) = silent(4, [0], {0: "a", 1: "a", 2: "b"})
    assert verdicts(missing) == ["FIX"] and missing.found == "1-3 (host a, b, unknown)"


@pytest.mark.parametrize(
    ("resolved", "hosts", "verdict"),
    [("127.0.1.1", 1, "OK"), ("127.0.1.1", 2, "FIX"), ("nothing (unknown)", 2, "FIX"), ("10.0.0.7", 2, "OK")],
)
def test_a_name_that_leads_nowhere_for_others_is_to_fix_among_hosts(resolved, hosts, verdict, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert verdicts(own_name("node", resolved, "eth0", "10.0.0.7", hosts)) == [verdict]


@given(st.sets(st.integers(0, 600)))
def test_spans_of_ranks_can_be_read_back(ranks):
    read = set()
    for part in filter(None, spans(ranks).split(", ")):
        first, _, last = part.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == ranks


def test_findings_that_several_ranks_share_are_one_line():
    slow = fix("b", "slow", "repair")
    lines = merged({0: [ok("a", "well"), slow], 1: [ok("a", "well"), ok("b", "fast")]})
    assert lines == [Line(ok("a", "well"), (0, 1)), Line(slow, (0,)), Line(ok("b", "fast"), (1,))]
    assert worst(lines) == Verdict.FIX
    told = document(lines, {0: "x", 1: "y"}, 2)
    assert told["verdict"] == "FIX" and told["findings"][1]["ranks"] == [0]


def test_a_check_that_hangs_or_fails_is_a_finding():
    def refuse() -> list[Finding]:
        raise DataError("the bucket is gone; create it")

    began = time.monotonic()
    (hung,) = bounded("x", lambda: time.sleep(30) or [], 0.1)
    assert time.monotonic() - began < 10 and "no answer within 0.1 s" in hung.found
    (failed,) = bounded("x", lambda: [][0], 5)
    assert "IndexError" in failed.found
    (refused,) = bounded("x", refuse, 5)
    assert (refused.found, refused.fix) == ("the bucket is gone", "create it")
    assert verdicts(hung, failed, refused) == ["FIX"] * 3


def test_only_files_that_no_process_holds_are_left_over(tmp_path, monkeypatch):
    monkeypatch.setattr("cavmae_ds.doctor.leftovers.YOUNG_S", -1.0)
    for name in ("held", "left"):
        (tmp_path / name).write_bytes(b"0" * 8192)
    with (tmp_path / "held").open("rb"):
        assert list(unused(tmp_path)) == ["left"]
    monkeypatch.undo()
    assert unused(tmp_path) == {}  # too young to tell


def test_an_old_build_lock_is_to_remove(tmp_path):
    lock: Path = tmp_path / "py311_cpu" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert verdicts(stale_locks([tmp_path])) == ["OK"]  # perhaps being built
    os.utime(lock, (1e9, 1e9))
    stale = stale_locks([tmp_path])
    assert verdicts(stale) == ["FIX"] and stale.fix == f"rm {lock}"


def test_what_is_in_order_in_several_ways_is_one_line_of_the_table():
    by_rank = {rank: [ok("address", f"10.0.0.{rank}"), ok("device", "CPU")] for rank in range(3)}
    by_rank[2].append(fix("address", "127.0.1.1", "change it"))
    address, wrong, device = shortened(merged(by_rank))
    assert address == Line(ok("address", "10.0.0.0; 2 more in order"), (0, 1, 2))
    assert (wrong.ranks, device.ranks) == ((2,), (0, 1, 2))


def test_a_sum_that_arrives_changed_is_to_fix():
    world = World(0, 2, 0, 1, torch.device("cpu"))
    assert verdicts(link("all_reduce", 0.1, 2e9, world, True), link("all_reduce", 0.1, 2e9, world, False)) == [
        "OK",
        "FIX",
    ]
    assert "10.00 GB/s" in link("all_reduce", 0.1, 2e9, world, True).found


def test_a_rank_that_says_nothing_is_not_waited_for_for_ever(monkeypatch):
    server = TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    first = Meeting(World(0, 2, 0, 1, torch.device("cpu")))
    first.tell("found", [["a", "OK", "b", ""]])
    assert first.hear("found", 0.2) == {0: [["a", "OK", "b", ""]]}
    assert not first.all_begin(False)


def test_another_run_file_and_other_settings_of_the_network_make_other_facts():
    def of(steps: int, **environment: str) -> dict[str, str]:
        cfg = validate_run({"train": {"steps": steps}})
        return gathered_facts(Asked(cfg, True, (), 0.0, 1.0, environment), 0).alike

    same, other = of(1), of(2, NCCL_DEBUG="INFO")
    assert same == of(1, AWS_SECRET_ACCESS_KEY="hush")
    assert {key for key in same if same[key] != other[key]} == {"run", "network settings"}
