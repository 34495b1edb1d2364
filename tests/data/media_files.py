"""Writes real media files with known content: frames that carry their number, channels that differ."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

SHARED_VIDEOS = Path(__file__).parents[2] / ".." / "shared" / "data" / "videos"
NUMBER_BITS = 9


def numbered_frame(number: int, height: int = 72, width: int = 72) -> np.ndarray:
    """uint8 [H, W, 3]: a 3 x 3 board of black and white fields spelling the number, whatever the scale."""
    bits = np.array([number >> k & 1 for k in range(NUMBER_BITS)]).reshape(3, 3)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 3 // width
    return np.repeat((220 * bits[rows][:, columns] + 16).astype(np.uint8)[..., None], 3, axis=2)


def number_of(frame: np.ndarray) -> int:
    """The number that a frame [H, W, 3] carries, read at the middle of each field."""
    height, width = frame.shape[:2]
    fields = frame[height // 6 :: height // 3, width // 6 :: width // 3].mean(-1)[:3, :3] > 128
    return sum(int(bit) << k for k, bit in enumerate(fields.flat))


def tone(frequency_hz: float, seconds: float, rate_hz: int = 44_100, loudness: float = 0.5) -> np.ndarray:
    """float32 [n]"""
    return loudness * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def write_media(
    path: Path,
    *,
    frames: Sequence[np.ndarray] = (),
    fps: float = 10.0,
    frame_times_s: Sequence[float] | None = None,
    sound: np.ndarray | None = None,
    rate_hz: int = 44_100,
    sound_start_s: float = 0.0,
) -> Path:
    """frames: uint8 [H, W, 3] each; sound: float [n] or [channels, n], kept exactly as 16-bit PCM.

    Every frame is a key frame. The suffix chooses the container (.mkv and .mov hold PCM; .mp4 gets AAC).
    A track without content is left out.
    """
    times_s = frame_times_s if frame_times_s is not None else np.arange(len(frames)) / fps
    lossless = path.suffix != ".mp4"
    with av.open(f"file:{path}", "w") as container:
        if len(frames):
            rate = Fraction(fps).limit_denominator(1000)
            video = container.add_stream("libx264", rate, {"preset": "ultrafast", "crf": "12", "g": "1"})
            video.height, video.width = frames[0].shape[:2]
            video.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            sound = np.atleast_2d(sound)
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
            audio = container.add_stream("pcm_s16le" if lossless else "aac", rate_hz, layout=layout)
        for time_s, pixels in zip(times_s, frames, strict=True):
            frame = VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        if len(frames):
            container.mux(video.encode(None))
        if sound is not None:
            _mux_sound(container, audio, sound, rate_hz, sound_start_s)
    return path


def _mux_sound(container, audio, sound: np.ndarray, rate_hz: int, start_s: float) -> None:
    step = rate_hz // 20  # packets of 50 ms, as containers like them
    for first in range(0, sound.shape[1], step):
        part = sound[:, first : first + step]
        if audio.codec_context.name == "aac":
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(part, np.float32), "fltp", audio.layout.name)
        else:
            interleaved = np.round(part * 32767).astype(np.int16).T.reshape(1, -1)
            frame = AudioFrame.from_ndarray(interleaved, "s16", audio.layout.name)
        frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
        frame.pts = round(start_s * rate_hz) + first
        container.mux(audio.encode(frame))
    container.mux(audio.encode(None))


def numbered_video(path: Path, *, seconds: float = 3.0, fps: float = 10.0, pitch_hz: float = 440.0) -> Path:
    """Numbered frames with a tone of the same length."""
    frames = [numbered_frame(k) for k in range(round(seconds * fps))]
    return write_media(path, frames=frames, fps=fps, sound=tone(pitch_hz, seconds))


def turn_clockwise(path: Path) -> None:
    """Rewrites the display matrix of an mp4's picture track: a player shows it turned right by 90 degrees."""
    content = bytearray(path.read_bytes())
    upright = b"".join(n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    right = b"".join((n % 2**32).to_bytes(4, "big") for n in (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000))
    track = content.index(b"tkhd")  # the picture is the first track
    at = content.index(upright, track)
    content[at : at + len(right)] = right
    path.write_bytes(content)


def cut_short(whole: Path, path: Path, share: float) -> Path:
    """The first `share` of a file's bytes."""
    content = whole.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    return path


def spoil_packets(path: Path, kind: str, numbers: Sequence[int]) -> None:
    """Overwrites these packets of the "video" or "audio" track; the container stays whole."""
    with av.open(str(path)) as container:
        track = next(stream for stream in container.streams if stream.type == kind)
        packets = [(packet.pos, packet.size) for packet in container.demux(track) if packet.size]
    content = bytearray(path.read_bytes())
    for number in numbers:
        position, size = packets[number]
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
