"""What a run says of itself at its start and at its end."""

from __future__ import annotations

from cavmae_ds.monitor.start_end import end_line, start_line
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.finetune.task import Finetuning
from cavmae_ds.tasks.pretrain.task import Pretraining
from tests.weights.small_models import run_folder, small_model

VALUES = {"model": {"preset": "tiny"}, "data": {"validation": "shards/held out"}}


def test_pretraining_says_what_it_is_where_to_look_and_what_next(tmp_path):
    run_dir = run_folder(tmp_path / "a run", small_model("pretrain"))
    cfg = validate_run(VALUES | {"run_dir": run_dir, "train": {"global_batch": 128, "steps": 300}}, "pretrain")
    numbers = Pretraining.resolve(cfg, 2, clips=1200)
    assert start_line(cfg.script, cfg.run_dir, numbers, 100) == (
        f"pretrain: {run_dir}: 1,200 clips, 2 ranks, 12,758,848 parameters, steps 101 to 300 of 128 clips; "
        f"curves: tensorboard --logdir '{run_dir}' (tab custom scalars)"
    )
    assert "all 300 steps are done" in start_line(cfg.script, cfg.run_dir, numbers, 300)
    assert end_line(Pretraining(cfg, numbers)).splitlines() == [
        f"pretrain: done: {run_dir}/checkpoints/step-00000010; next:",
        f"  cavmae report '{run_dir}'",
        f"  cavmae evaluate '{run_dir}' --data 'shards/held out'",
        f"  cavmae inpaint '{run_dir}' --data 'shards/held out' --out '{run_dir}/inpainted.png'",
    ]


def test_finetuning_says_so_too_with_the_weights_that_were_scored(tmp_path):
    values = {
        "run_dir": tmp_path,
        "train": {"epochs": 3},
        "average": {"from_epoch": 1, "to_epoch": 3},
        "classifier": {},
    }
    cfg = validate_run(VALUES | values, "finetune")
    plan = Finetuning.resolve(cfg, 1, 1200)
    assert "finetune: " in start_line(cfg.script, cfg.run_dir, plan, 0)
    assert f"cavmae evaluate {tmp_path} --weights averaged --data 'shards/held out'" in end_line(Finetuning(cfg, plan))
