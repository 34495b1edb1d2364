"""What must hold of predictions whatever the run."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.plan.advice import recommend
from cavmae_ds.plan.hardware import GPUS
from cavmae_ds.plan.predict import Choice, Machine, Planner
from cavmae_ds.tasks import validate_run
from tests.plan.formulas_memory import decoder_parameters
from tests.plan.test_known_numbers import variant

stages = st.sampled_from([Path(f"ds_configs/zero{stage}.json") for stage in (1, 2, 3)])
modes = st.builds(variant, st.sampled_from([0, 1, 8]), st.booleans(), st.booleans())
presets = st.sampled_from(["tiny", "base"])
MOST = 64


def planner(preset: str, gpus: int, gpu: str = "h200", per_gpu: int = 128) -> Planner:
    train = {"global_batch": per_gpu * gpus, "micro_batch": per_gpu, "epochs": 1}
    return Planner(validate_run({"model": {"preset": preset}, "train": train}), Machine(GPUS[gpu], gpus, 8, 0.4))


# Building a model's meta tensors takes longer than all the rest: once for each.
PLANNERS = {(preset, gpus): planner(preset, gpus) for preset in ("tiny", "base") for gpus in (1, 2, 8, MOST)}


@given(presets, stages, modes, st.integers(1, 128))
@settings(deadline=None, max_examples=40)
def test_more_gpus_never_hold_more_states_each(preset, stage, switches, clips):
    held = [PLANNERS[preset, gpus].memory(Choice(stage, clips, switches)).states for gpus in (1, 2, 8, MOST)]
    without_gathering = [states.total - states.gathered for states in held]
    assert without_gathering == sorted(without_gathering, reverse=True)


@given(presets, stages, modes, st.integers(1, 4096))
@settings(deadline=None, max_examples=40)
def test_one_more_clip_never_needs_less(preset, stage, switches, clips):
    one = PLANNERS[preset, 8]
    assert one.memory(Choice(stage, clips, switches)).total <= one.memory(Choice(stage, clips + 1, switches)).total


@given(presets, stages, st.booleans(), st.integers(2, 4096), st.data())
@settings(deadline=None, max_examples=40)
def test_a_chunked_decoder_never_holds_more_than_the_whole_one(preset, stage, recompute, clips, data):
    chunk = data.draw(st.sampled_from([n for n in (1, 8) if n <= clips]))
    whole, part = (
        PLANNERS[preset, 8].memory(Choice(stage, clips, variant(size, recompute))).activations for size in (0, chunk)
    )
    model = PLANNERS[preset, 8].cfg.model
    sums = 6 * decoder_parameters(model) + 2 * clips * 177 * model.embed_dim  # of gradients: what chunks keep apart
    assert part <= whole + sums


@given(presets, stages, st.sampled_from([0, 8]), st.integers(1, 512))
@settings(deadline=None, max_examples=40)
def test_checkpointing_never_holds_more(preset, stage, chunk, clips):
    kept, again = (
        PLANNERS[preset, 8].memory(Choice(stage, clips, variant(chunk, recompute))).activations
        for recompute in (False, True)
    )
    assert again <= kept


@given(presets, stages, modes)
@settings(deadline=None, max_examples=30)
def test_the_largest_micro_batch_fits_and_the_next_one_does_not(preset, stage, switches):
    one = PLANNERS[preset, 8]
    most = one.largest_micro_batch(stage, switches)
    assert most == 0 or one.fits(Choice(stage, most, switches))
    assert not one.fits(Choice(stage, most + 1, switches))


@given(presets, stages, modes, st.sampled_from([1, 2, 8, MOST]))
@settings(deadline=None, max_examples=30)
def test_switches_that_run_things_twice_are_never_faster(preset, stage, switches, gpus):
    one = PLANNERS[preset, gpus]
    times = [one.predict(Choice(stage, 64, chosen)).time for chosen in (variant(), switches)]
    assert times[0].compute <= times[1].compute


@given(presets, st.sampled_from([1, 8, MOST]), st.sampled_from(sorted(GPUS)), st.sampled_from([32, 512, 4096]))
@settings(deadline=None, max_examples=12)
def test_what_is_recommended_fits_divides_the_batch_and_compares_all_of_it(preset, gpus, gpu, per_gpu):
    one = planner(preset, gpus, gpu, per_gpu)
    found = recommend(one)
    assert found is not None and found.fits
    assert per_gpu % found.choice.micro_batch == 0
    assert found.across_clips.candidates == one.cfg.train.global_batch
