"""Statistics of the log-mel are those of all its values, whoever computes them."""

import shutil

import numpy as np
import pytest
import torch

from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import audio_of
from cavmae_ds.data.inspect import statistics
from cavmae_ds.data.inspect.statistics import LogMelStatistics, clip_sums
from cavmae_ds.data.storage import open_store
from cavmae_ds.data.transforms.log_mel import LogMel
from cavmae_ds.errors import DataError
from tests.ranks import fork_cavmae

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def log_mels(tiny_shards):
    """One [T, 128] float64 a clip, each computed alone."""
    records = Records(str(tiny_shards))
    sounds = [torch.tensor(audio_of(sample)) for sample in records.read(range(len(records)))]
    front_end = LogMel()
    return [
        front_end(sound[None], torch.tensor([len(sound)]), 1 + (len(sound) - 400) // 160)[0].double().numpy()
        for sound in sounds
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_statistics_are_numpys_over_every_frame(tiny_shards, log_mels, workers, monkeypatch):
    # Given batches that do not divide the clips evenly
    monkeypatch.setattr(statistics, "CLIPS_AT_ONCE", 7)
    monkeypatch.setattr(statistics, "OFFICIAL_BATCH", 10)
    monkeypatch.setattr(statistics, "OFFICIAL_FRAMES", 100)  # some frames are cut off, as those of long clips are
    records = Records(str(tiny_shards))

    found = clip_sums(records, range(len(records)), CPU, workers).statistics()

    everything = np.concatenate(log_mels)
    batches = [log_mels[k : k + 10] for k in range(0, 24, 10)]
    cut = [np.concatenate([mel[:100] for mel in batch]) for batch in batches]
    assert (found.clips, found.log_mel_frames) == (24, len(everything))
    assert found.every_frame.mean == pytest.approx(everything.mean(), rel=1e-9)
    assert found.every_frame.std == pytest.approx(everything.std(ddof=1), rel=1e-9)
    assert found.batches_without_padding.mean == pytest.approx(np.mean([batch.mean() for batch in cut]), rel=1e-9)
    assert found.batches_without_padding.std == pytest.approx(np.mean([x.std(ddof=1) for x in cut]), rel=1e-9)


def test_the_official_way_counts_padding_up_to_1024_frames(tiny_shards, log_mels):
    found = clip_sums(Records(str(tiny_shards)), range(24), CPU).statistics()

    padded = torch.stack([torch.nn.functional.pad(torch.tensor(mel), (0, 0, 0, 1024 - len(mel))) for mel in log_mels])
    assert found.batches_padded.mean == pytest.approx(padded.mean().item(), rel=1e-9)
    assert found.batches_padded.std == pytest.approx(padded.std().item(), rel=1e-9)


def test_a_bucket_gives_the_same_with_connections_of_each_worker_s_own(tiny_shards, s3_bucket):
    address = f"s3://{s3_bucket}/tiny"
    for file in (path for path in tiny_shards.rglob("*") if path.is_file()):
        open_store(address).put_bytes(file.relative_to(tiny_shards).as_posix(), file.read_bytes())
    local, remote = Records(str(tiny_shards)), Records(address)

    found = clip_sums(remote, [0, 3, 4, 20], CPU, workers=2)

    assert np.array_equal(found.values, clip_sums(local, [0, 3, 4, 20], CPU).values)


def test_a_damaged_shard_ends_it_by_name(tmp_path, tiny_shards):
    copied = shutil.copytree(tiny_shards, tmp_path / "copied")
    shard = copied / "part-00000" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1000])

    with pytest.raises(DataError, match=r"^part-00000/shard.00000.mds in .* is damaged"):
        clip_sums(Records(str(copied)), range(24), CPU, workers=1)


def test_the_command_shows_stores_and_offers_the_numbers(tmp_path, tiny_shards):
    first, second = (shutil.copytree(tiny_shards, tmp_path / name) for name in ("first", "second"))
    (second / "stats.json").mkdir()  # cannot be written

    done = fork_cavmae("stats", first, second, "--device", "cpu", "--workers", 1)

    assert done.returncode == 0, done.stderr
    stored = LogMelStatistics.model_validate_json((first / "stats.json").read_bytes())
    assert stored.clips == 24
    assert f"data.audio_mean: {stored.every_frame.mean:.4f}" in done.stdout
    assert f"data.audio_std: {stored.every_frame.std:.4f}" in done.stdout
    assert "48 clips" in done.stdout
    assert "stats.json could not be written" in done.stderr
