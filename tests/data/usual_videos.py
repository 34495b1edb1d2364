"""Videos as web sites, cameras, phones and broadcasters encode them: numbered frames, a melody in the first channel."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.data.media_files import NUMBER_BITS, numbered_frame, write_media


class Encoding(NamedTuple):
    """How a video is encoded; rates, sizes and durations are those that are met, not round ones."""

    frames: int
    fps: Fraction
    height: int  # as stored, pixels
    width: int
    rate_hz: int
    sound_seconds: float
    channels: int
    codec: str = "libx264"
    sound_codec: str = "aac"
    key_frame_every: int = 25  # so there are B-frames, where the codec has them
    pixel_aspect: Fraction = Fraction(1)
    turned: bool = False  # stored lying on its left side; the display matrix sets it upright
    hidden: int = 0  # more frames before these, and sound, which an edit list hides: a cut without encoding again


ENCODINGS = {
    "broadcast.ts": Encoding(
        77, Fraction(25), 288, 352, 48_000, 3.1, 2, "mpeg2video", "ac3", 12, pixel_aspect=Fraction(12, 11)
    ),
    "camera.mp4": Encoding(299, Fraction(30_000, 1001), 360, 640, 48_000, 10.037, 2, hidden=110),
    "phone.mov": Encoding(137, Fraction(30), 180, 320, 44_100, 4.6, 1, "libx265", turned=True),
    "still.mp4": Encoding(1, Fraction(25), 230, 256, 16_000, 3.0, 1, pixel_aspect=Fraction(3335, 3328)),
    "stream.webm": Encoding(91, Fraction(25), 180, 320, 48_000, 3.64, 2, "libvpx-vp9", "libopus"),
    "web.mp4": Encoding(125, Fraction(25, 2), 144, 256, 44_100, 10.0, 2),
}


HIDDEN_SOUND_S = 1.02


class _Pictures(Sequence[np.ndarray]):
    """Frames from -hidden on: uint8 [H, W, 3], the number on the largest square at the centre of what is shown."""

    def __init__(self, encoding: Encoding):
        self._encoding = encoding

    def __len__(self) -> int:
        return self._encoding.hidden + self._encoding.frames

    def __getitem__(self, k):
        if k >= len(self):
            raise IndexError(k)
        height, width = self._encoding.height, self._encoding.width
        number = (k - self._encoding.hidden) % 2**NUMBER_BITS
        board = numbered_frame(number, height, round(height / self._encoding.pixel_aspect))
        picture = np.full((height, width, 3), 16, np.uint8)
        left = (width - board.shape[1]) // 2
        picture[:, left : left + board.shape[1]] = np.rot90(board) if self._encoding.turned else board
        return picture


def melody(seconds: float, rate_hz: int, start_s: float = 0.0) -> np.ndarray:
    """float [n]: five harmonics below 4 kHz of a gliding voice that swells and fades; no part of it comes twice."""
    t = start_s + np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * 220 * t + 60 * np.sin(2 * np.pi * 0.31 * t)
    voice = sum(np.sin(k * phase) / k for k in range(1, 6))
    return voice * (0.12 + 0.08 * np.sin(2 * np.pi * 1.7 * t))


def write_usual_videos(folder: Path) -> Path:
    """Writes ENCODINGS. All have a little noise under the melody, and another tone in a second channel."""
    for name, encoding in ENCODINGS.items():
        rate_hz = encoding.rate_hz
        start_s = -HIDDEN_SOUND_S if encoding.hidden else 0.0
        first = melody(encoding.sound_seconds - start_s, rate_hz, start_s)
        first = first + 0.003 * np.random.default_rng(0).standard_normal(len(first))
        second = 0.2 * np.sin(2 * np.pi * 700 * np.arange(len(first)) / rate_hz)
        write_media(
            folder / name,
            frames=_Pictures(encoding),
            fps=encoding.fps,
            frame_times_s=[k / encoding.fps for k in range(-encoding.hidden, encoding.frames)],
            time_base=1 / encoding.fps,
            sound_start_s=start_s,
            sound=np.stack([first, second][: encoding.channels]),
            rate_hz=rate_hz,
            key_frame_every=encoding.key_frame_every,
            codec=encoding.codec,
            sound_codec=encoding.sound_codec,
            pixel_aspect=encoding.pixel_aspect,
            display_matrix=[0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30] if encoding.turned else None,
        )
    return folder
