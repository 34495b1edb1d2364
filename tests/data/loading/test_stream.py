"""DESIGN 2.3: mask and frame belong to the clip, its turn to the step; neither to rank, worker or resume."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.balance import write_sample_weights
from cavmae_ds.data.format.clips import collate
from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import audio_of, frame_of, frame_times_of
from cavmae_ds.data.format.shard_file import Contents
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.handover import micro_batches
from cavmae_ds.data.loading.order import EpochShape
from cavmae_ds.data.loading.selection import evaluation_selection
from cavmae_ds.data.loading.sources import held_out
from cavmae_ds.data.loading.stream import ClipStream, EvaluationClips
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import ConfigError, WorkerLost
from tests.data.small_shards import small_shards
from tests.ranks import fork_ranks, fork_script

WORKER = Path(__file__).with_name("stream_worker.py")
WINDOWS = {"frames": 3, "frame_spacing_seconds": 0.25, "audio_seconds": 0.5}
STEPS = 7  # the 24 clips make 3 steps an epoch: this reaches into the third


@pytest.fixture(scope="module")
def sources(tiny_shards, tmp_path_factory) -> dict[str, dict]:
    """Ways to give training clips: one source; two, balanced and partly held out, in small shards and stripes; windows
    of several frames and part of the sound."""
    folder = tmp_path_factory.mktemp("sources")
    weights = np.arange(24.0)
    for name, numbers in (("large", range(24)), ("small", range(5, 15))):
        out = small_shards(tiny_shards, folder / name, numbers, shard_clips=3)
        labels = [[number % 4] for number in numbers]
        write_sample_weights(open_store(out), labels, "abcd", given=weights[: len(numbers)])
    two = [{"remote": str(folder / "large"), "proportion": 2.0}, {"remote": str(folder / "small"), "proportion": 1.0}]
    mixed = {"sources": two, "canonical_nodes": 2, "validation_share": 0.1}
    return {
        "one": {"train": str(tiny_shards)},
        "windows": {"train": str(tiny_shards), "windows": WINDOWS},
        "two": mixed,
        "balanced": mixed | {"sampling": "balanced", "shuffle_block": 12, "epoch_clips": 17},
    }


def by_step(folder: Path, ranks: int, cases: dict[str, dict]) -> dict[str, dict[int, list[str]]]:
    """Case -> step -> all its clips as real ranks got them, as sorted JSON."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    finished = fork_ranks(ranks, WORKER, str(folder), scratch=folder)
    assert finished.returncode == 0, finished.stdout
    seen: dict = {name: defaultdict(list) for name in cases}
    for rank in range(ranks):
        for name, clips in json.loads((folder / f"rank-{rank}.json").read_text()).items():
            for clip in clips:
                seen[name][clip["step"]].append(json.dumps(clip, sort_keys=True))
    return {name: {step: sorted(clips) for step, clips in steps.items()} for name, steps in seen.items()}


def case(data: dict, workers: int, accumulation: int = 1, steps: range = range(STEPS)) -> dict:
    return {
        "data": {name: value for name, value in data.items() if name != "windows"} | {"workers": workers},
        "windows": data.get("windows", {}),
        "accumulation": accumulation,
        "first_step": steps.start,
        "steps": len(steps),
    }


@pytest.fixture(scope="module")
def one_rank(sources, tmp_path_factory):
    """The reference: one rank that decodes in its own process; and a resume on one rank."""
    cases = {name: case(data, workers=0) for name, data in sources.items()}
    cases |= {f"{name} 2-5": case(data, workers=2, steps=range(2, 5)) for name, data in sources.items()}
    return by_step(tmp_path_factory.mktemp("order") / "one", 1, cases)


def test_ranks_workers_accumulation_and_resumes_change_neither_clips_nor_frames_nor_masks(one_rank, sources, tmp_path):
    """From 2 ranks to 1 to 4, each change in the middle of an epoch; and 4 ranks from start to end."""
    two = by_step(
        tmp_path / "two",
        2,
        {name: case(data, workers=3, accumulation=2, steps=range(2)) for name, data in sources.items()},
    )
    four = {name: case(data, workers=2) for name, data in sources.items()}
    four |= {f"{name} 5-7": case(data, workers=0, steps=range(5, 7)) for name, data in sources.items()}
    four = by_step(tmp_path / "four", 4, four)
    for name in sources:
        assert four[name] == one_rank[name]
        assert two[name] | one_rank[f"{name} 2-5"] | four[f"{name} 5-7"] == one_rank[name]


def test_an_epoch_shows_every_clip_once_in_another_order_with_another_frame(one_rank):
    turns = defaultdict(list)
    for clips in one_rank["one"].values():
        for clip in map(json.loads, clips):
            turns[clip["turn"]].append(clip)
    assert sorted(clip["clip"] for clip in turns[0]) == list(range(24))
    assert sorted(clip["clip"] for clip in turns[1]) == list(range(24))
    by_clip = [{clip["clip"]: clip for clip in turns[turn]} for turn in (0, 1)]
    assert all(by_clip[0][i]["sound"] == by_clip[1][i]["sound"] for i in range(24))
    assert all(by_clip[0][i]["audio_mask"] != by_clip[1][i]["audio_mask"] for i in range(24))
    # ten frames: by chance the same one in two epochs for about 2 of the 24 clips
    assert sum(by_clip[0][i]["frame"] != by_clip[1][i]["frame"] for i in range(24)) > 12


def test_held_out_clips_and_clips_without_weight_never_come_and_copies_have_masks_of_their_own(one_rank):
    kept_away = set(np.flatnonzero(held_out(0, 34, 0.1)))
    assert kept_away
    for name in ("two", "balanced"):
        clips = [json.loads(clip) for clips in one_rank[name].values() for clip in clips]
        assert not {clip["clip"] for clip in clips} & kept_away
        masks = [(clip["clip"], clip["audio_mask"]) for clip in clips]
        assert len(set(masks)) == len(masks) > len({clip["clip"] for clip in clips})
    assert not {clip["clip"] for clip in clips} & {0, 24}  # balanced: weight 0


def test_evaluation_reads_several_frames_around_the_middle_and_the_sound_around_them(tiny_shards):
    whole = Records(str(tiny_shards))
    spec = InputSpec(log_mel_frames=64, frame_size=64, **WINDOWS)
    clips = EvaluationClips(str(tiny_shards), spec)
    for place in (0, 7, 23):
        [sample] = whole.read([place])
        chosen = evaluation_selection(spec, Contents(int(sample["n_samples"]), frame_times_of(sample)))
        clip = clips[place]
        assert np.array_equal(clip.frames, np.stack([frame_of(sample, frame) for frame in chosen.frames]))
        assert np.array_equal(clip.audio, audio_of(sample)[chosen.first_sample :][:8_000])
        first = clips.at_position(0)[place]
        assert np.array_equal(first.frames[0], frame_of(sample, 0)) and len(first.audio) == 8_000


def test_mixing_whole_frames_is_refused(tiny_shards):
    whole = InputSpec(log_mel_frames=64, frame_size=64, frame_fit="whole")
    with pytest.raises(ConfigError, match=r"augment\.mixup must be 0 for a model that reads whole frames"):
        ClipStream(
            DataConfig(train=str(tiny_shards)), whole, EpochShape(1, 1, 1, 8), host=0, local_rank=0, seed=0, mixup=0.5
        )


@pytest.mark.parametrize("workers", [0, 3])
def test_evaluation_on_several_ranks_and_workers_reads_every_clip_once(workers, sources):
    address = sources["two"]["sources"][0]["remote"]
    clips = EvaluationClips(address, InputSpec(log_mel_frames=64, frame_size=64))
    seen = []
    for rank in range(2):
        of_rank = DataLoader(
            clips, batch_size=5, collate_fn=collate, num_workers=workers, sampler=range(rank, len(clips), 2)
        )
        seen += [index for batch in of_rank for index in batch.clip_index.tolist()]
    assert sorted(seen) == list(range(24))


def test_batches_come_through_the_longest_temporary_folder_that_is_allowed_and_a_longer_one_is_refused(
    tmp_path, monkeypatch
):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch; from torch.utils.data import DataLoader; "
        "from cavmae_ds.data.loading.handover import check_temporary_folder; check_temporary_folder(1); "
        "print(len(list(DataLoader(torch.zeros(4, 2), num_workers=1, timeout=20))))"
    )
    results = []
    with tempfile.TemporaryDirectory() as short:
        longest = Path(short, "x" * (75 - len(short) - 1))
        for folder in (longest, Path(f"{longest}x")):
            folder.mkdir()
            monkeypatch.setenv("TMPDIR", str(folder))
            results.append(fork_script(script))

    assert results[0].stdout == "4\n", results[0].stderr
    assert "set TMPDIR to a shorter one" in results[1].stderr


class GoneWhenFetched:
    """A batch whose worker is killed after announcing it: fetching its memory fails, before torch knows of the end."""

    def __reduce__(self):
        return reset_by_peer, ()


def reset_by_peer():
    raise ConnectionResetError


def test_a_worker_that_is_gone_in_the_middle_of_a_batch_is_a_lost_worker():
    loader = DataLoader([0], num_workers=1, collate_fn=lambda clips: GoneWhenFetched())
    with pytest.raises(WorkerLost, match="ConnectionResetError in the middle of a batch"):
        next(micro_batches(loader))
