"""Predicted bytes against bytes that torch and DeepSpeed really hold on a CPU: within a tenth, mostly to the byte."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.plan_memory import AT_REST_S, ENGINES, compare, engine_run, held_at_rest, run_of
from cavmae_ds.kernels.contrastive import contrastive
from cavmae_ds.plan.states import count, states
from cavmae_ds.tasks.pretrain.comparison import Comparison, contrast_bytes
from tests.ranks import CHECKOUT, fork_ranks

MEASURED = {1: ("0-fp32", "1-fp32", "2-bf16", "3-fp32"), 2: ("1-bf16", "2-fp32", "3-bf16")}
"""Ranks -> engines, as stage-precision."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", ["small", "deep, narrow MLP"])
@pytest.mark.parametrize("recompute", [False, True], ids=["all kept", "checkpoint_towers"])
def test_forward_leaves_behind_what_was_predicted(size, precision, recompute):
    _, found, plan = compare(run_of(size, precision, 4, model={"checkpoint_towers": recompute}))
    assert plan == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("loss", [{"mae_weight": 0.0, "contrastive_weight": 1.0}, {"contrastive_weight": 0.0}])
def test_a_loss_that_is_switched_off_saves_nothing(loss):
    _, found, plan = compare(run_of("small", "fp32", 4, loss=loss))
    assert plan == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize(("precision", "recompute"), [("fp32", False), ("fp32", True), ("bf16", False)])
def test_a_chunked_decoder_peaks_where_predicted(precision, recompute):
    switches = {"decoder_chunk": 1, "checkpoint_towers": recompute}
    _, found, plan = compare(run_of("small", precision, 4, model=switches))
    assert plan == pytest.approx(found, rel=0.01)


def test_the_contrastive_loss_takes_a_few_tiles_and_not_a_matrix():
    cfg = run_of("small", "fp32", 2)
    rows, candidates = (
        torch.nn.functional.normalize(torch.randn(clips, cfg.model.embed_dim), dim=1).requires_grad_()
        for clips in (1024, 16_384)
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        contrastive(rows, candidates, 0, 0.05).loss.backward()
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    held = peak = rows.nbytes + candidates.nbytes
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += change
        peak = max(peak, held)

    compared = Comparison(1024, 16_384, 1)
    assert contrast_bytes(cfg.contrastive, compared, cfg.model.embed_dim) == pytest.approx(peak, rel=0.1)
    assert peak < 3 * 1024 * 16_384 * 4  # the matrix and its gradients would be more


def test_what_a_thread_of_gloo_still_holds_is_not_counted():
    held = [torch.ones(1000), torch.ones(10)]
    threading.Timer(AT_REST_S / 2, lambda: held.pop(0)).start()
    assert held_at_rest(lambda: sum(tensor.nbytes for tensor in held)) == 40


@pytest.mark.parametrize("ranks", [1, 2])
def test_engines_hold_the_states_that_were_predicted(ranks, tmp_path):
    out, script = tmp_path / "held.json", CHECKOUT / "benchmarks" / "plan_memory.py"
    finished = fork_ranks(ranks, script, str(out), *MEASURED[ranks], scratch=tmp_path)
    assert finished.returncode == 0, finished.stdout

    for name, found in json.loads(out.read_text()).items():
        stage, precision = int(name[0]), name[2:]
        cfg = engine_run(stage, precision, ranks, tmp_path)
        plan = states(cfg, {"zero_optimization": ENGINES[stage]}, count(cfg), ranks)
        assert found["bucket_buffers"] == plan.buckets, name
        # Between backward and step nothing is gathered, and only ZeRO-3 keeps its buckets.
        held = plan.total - plan.gathered - (plan.buckets if stage < 3 else 0)
        assert held == pytest.approx(found["held"], rel=0.1), name
