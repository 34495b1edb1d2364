"""One record becomes one clip, clips become a batch: all that a worker process does per clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cavmae_ds.data.format.crop import centre_crop
from cavmae_ds.data.format.schema import Damage, audio_of, damaged, frame_count, frame_of, labels_of
from cavmae_ds.data.input_spec import InputSpec


class BadClip(NamedTuple):
    """A clip that could not be used."""

    damage: Damage
    line: str
    """Names it and what is wrong; the clips of a damaged shard share one."""


class Clip(NamedTuple):
    """One decoded clip; `bad` is what had to be replaced to fill its place, if anything."""

    clip_index: int
    epoch: int
    audio: NDArray[np.int16]  # [n] 16 kHz mono
    frames: NDArray[np.uint8]  # [T, H, W, 3]
    labels: NDArray[np.int32]
    bad: BadClip | None
    partner: Clip | None = None  # another clip, of this turn, to be mixed with
    share: float = 1.0  # of this clip in the mix
    clip_id: str = ""  # its name in the data


class Partners(NamedTuple):
    """The M clips that some clips of a micro-batch are mixed with (data.augment)."""

    row: Tensor  # [M] int64, whom each is mixed with
    share: Tensor  # [M] float32, of the other, the clip of the batch
    audio: Tensor  # [M, N] int16, zeros after the clip's end; N is the partners' own
    n_samples: Tensor  # [M] int64
    frames: Tensor  # [M, T, 3, H, W] uint8
    labels: list[list[int]]

    def to(self, device: torch.device) -> Partners:
        """The same on a device."""
        row, share, audio, n_samples, frames = (part.to(device, non_blocking=True) for part in self[:-1])
        return Partners(row, share, audio, n_samples, frames, self.labels)


class Batch(NamedTuple):
    """A micro-batch of B clips as the workers hand it over, in the sizes it is stored in."""

    clip_index: Tensor  # [B] int64, place of the clip in the data
    epoch: Tensor  # [B] int64, the clip's turn: how often it came before (data.order)
    audio: Tensor  # [B, N] int16, zeros after the clip's end
    n_samples: Tensor  # [B] int64
    frames: Tensor  # [B, T, 3, H, W] uint8
    labels: list[list[int]]  # class ids of each clip
    bad: list[BadClip]  # those that had to be replaced
    partners: Partners | None = None
    clip_ids: Sequence[str] = ()  # their names, for those who read the log
    frame_sizes: Tensor | None = None  # [B, 2] int64, height and width before padding; None: no frame is padded


def decode_clip(
    sample: Mapping[str, Any], inputs: InputSpec, *, clip_index: int, epoch: int, bad: BadClip | None = None
) -> Clip:
    """All that read_clip has read of a record.

    Raises DataError, naming the clip, if it is damaged, or lacks the sound or the frames that a model reads.
    """
    audio, labels = audio_of(sample), labels_of(sample)
    if inputs.log_mel_frames and not len(audio):
        raise damaged(Damage.SOUND, sample, "has no sound, which the model reads")
    frames = decode_frames(sample, inputs)
    return Clip(clip_index, epoch, audio, frames, labels, bad, clip_id=sample["clip_id"])


def decode_frames(sample: Mapping[str, Any], inputs: InputSpec) -> NDArray[np.uint8]:
    """The frames that read_clip has read of a record, as inputs.frame_fit says: [T, H, W, 3].

    Raises DataError, naming the clip, if one is damaged, if there are none, or if whole ones differ in shape.
    """
    size = inputs.frame_size
    if inputs.frames == 0:
        return np.empty((0, size, size, 3), np.uint8)
    frames = [frame_of(sample, k) for k in range(frame_count(sample))]
    if not frames:
        raise damaged(Damage.FRAME, sample, "has no frames, which the model reads")
    if inputs.frame_fit == "crop":
        frames = [frame if frame.shape[:2] == (size, size) else centre_crop(frame, size) for frame in frames]
    if len(frames) == 1:
        return frames[0][None]  # not copied
    if len({frame.shape for frame in frames}) > 1:
        raise damaged(Damage.FRAME, sample, "has frames of several shapes")
    return np.stack(frames)


def padded(sounds: Sequence[NDArray[np.int16]]) -> tuple[Tensor, Tensor]:
    """Sounds as int16 [B, N], zeros after each one's end, and their lengths int64 [B]."""
    audio = np.zeros((len(sounds), max(map(len, sounds))), np.int16)
    for row, sound in zip(audio, sounds, strict=True):
        row[: len(sound)] = sound
    return torch.from_numpy(audio), torch.tensor([len(sound) for sound in sounds])


def padded_frames(clips: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor | None]:
    """Frames [T, H, W, 3] of B clips as [B, T, 3, H, W], the colours of a pixel side by side in memory.

    Where shapes differ, zeros fill the right and the bottom; then heights and widths, int64 [B, 2], come too.
    """
    if len({frames.shape for frames in clips}) == 1:
        return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3), None
    sizes = torch.tensor([frames.shape[1:3] for frames in clips])  # [B, 2]
    height, width = sizes.amax(0).tolist()
    stacked = np.zeros((len(clips), len(clips[0]), height, width, 3), np.uint8)
    for row, frames in zip(stacked, clips, strict=True):
        row[:, : frames.shape[1], : frames.shape[2]] = frames
    return torch.from_numpy(stacked).permute(0, 1, 4, 2, 3), sizes


def collate(clips: Sequence[Clip]) -> Batch:
    """Stack clips; sounds and frames are padded with zeros to the largest. Frames lie as [B, T, H, W, 3] in memory."""
    audio, n_samples = padded([clip.audio for clip in clips])
    frames, frame_sizes = padded_frames([clip.frames for clip in clips])
    mixed = [(row, clip.share, clip.partner) for row, clip in enumerate(clips) if clip.partner]
    return Batch(
        clip_index=torch.tensor([clip.clip_index for clip in clips]),
        epoch=torch.tensor([clip.epoch for clip in clips]),
        audio=audio,
        n_samples=n_samples,
        frames=frames,
        labels=[clip.labels.tolist() for clip in clips],
        bad=[clip.bad for clip in (*clips, *(partner for *_, partner in mixed)) if clip.bad],
        partners=_partners(mixed) if mixed else None,
        clip_ids=[clip.clip_id for clip in clips],
        frame_sizes=frame_sizes,
    )


def _partners(mixed: Sequence[tuple[int, float, Clip]]) -> Partners:
    rows, shares, clips = zip(*mixed, strict=True)
    audio, n_samples = padded([clip.audio for clip in clips])
    labels = [clip.labels.tolist() for clip in clips]
    frames, _ = padded_frames([clip.frames for clip in clips])
    return Partners(torch.tensor(rows), torch.tensor(shares), audio, n_samples, frames, labels)
