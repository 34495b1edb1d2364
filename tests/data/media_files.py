"""Writes real media files with known content: frames that carry their number, channels that differ."""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

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
    key_frame_every: int = 1,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    sound_codec: str | None = None,
    time_base: Fraction = Fraction(1, 1000),
    display_matrix: Sequence[int] | None = None,
    pixel_aspect: Fraction = Fraction(1),
    container_options: dict[str, str] | None = None,
) -> Path:
    """frames: uint8 [H, W, 3] each; sound: float [n] or [channels, n], kept exactly as 16-bit PCM.

    The suffix chooses the container, and with it the sound's codec (PCM where it can be, AAC elsewhere). A track
    without content is left out. With key frames further apart there are B-frames too.
    """
    times_s = frame_times_s if frame_times_s is not None else np.arange(len(frames)) / fps
    sound_codec = sound_codec or ("pcm_s16le" if path.suffix in (".mkv", ".mov", ".avi") else "aac")
    with av.open(f"file:{path}", "w", options=container_options) as container:
        if len(frames):
            rate = Fraction(fps).limit_denominator(1000)
            video = container.add_stream(codec, rate, _encoder_options(codec, key_frame_every))
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = pixel_format
            video.codec_context.time_base = time_base
            video.codec_context.sample_aspect_ratio = pixel_aspect
            video.set_display_matrix(display_matrix)
        if sound is not None:
            sound = np.atleast_2d(sound)
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
            audio = container.add_stream(sound_codec, rate_hz, layout=layout)
        sources = [_encoded_frames(video, frames, times_s, time_base)] if len(frames) else []
        if sound is not None:
            sources.append(_encoded_sound(audio, sound, rate_hz, sound_start_s))
        for _, packets in heapq.merge(*sources, key=lambda entry: entry[0]):
            container.mux(packets)
    return path


def _encoder_options(codec: str, key_frame_every: int) -> dict[str, str]:
    options = {
        "libx264": {"preset": "ultrafast", "crf": "12"},
        "libx265": {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
        "mpeg2video": {"b": "2000000"},
    }.get(codec, {})
    if key_frame_every > 1 and codec in ("libx264", "libx265", "mpeg2video"):
        options |= {"bf": "2", "sc_threshold": "0"}
    return options | ({"g": str(key_frame_every)} if options else {})


def _encoded_frames(
    video, frames: Sequence[np.ndarray], times_s: Sequence[float], time_base: Fraction
) -> Iterator[tuple[float, list]]:
    """(seconds, packets) in file order."""
    for time_s, pixels in zip(times_s, frames, strict=True):
        frame = VideoFrame.from_ndarray(pixels, "rgb24")
        frame.pts, frame.time_base = round(time_s / time_base), time_base
        yield time_s, video.encode(frame)
    yield np.inf, video.encode(None)


def _encoded_sound(audio, sound: np.ndarray, rate_hz: int, start_s: float) -> Iterator[tuple[float, list]]:
    step = rate_hz // 20  # packets of 50 ms, as containers like them
    planar = audio.codec_context.format.name == "fltp"
    for first in range(0, sound.shape[1], step):
        part = sound[:, first : first + step]
        if planar:
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(part, np.float32), "fltp", audio.layout.name)
        else:
            interleaved = np.round(part * 32767).astype(np.int16).T.reshape(1, -1)
            frame = AudioFrame.from_ndarray(interleaved, "s16", audio.layout.name)
        frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
        frame.pts = round(start_s * rate_hz) + first
        yield start_s + first / rate_hz, audio.encode(frame)
    yield np.inf, audio.encode(None)


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


def joined(path: Path, *sources: Path, title: str | None = None) -> Path:
    """All tracks of the sources in one file. The title is written in Latin-1."""
    with ExitStack() as stack:
        target = stack.enter_context(av.open(f"file:{path}", "w", metadata_encoding="latin-1"))
        if title:
            target.metadata["title"] = title
        packets = []
        for source in sources:
            container = stack.enter_context(av.open(str(source)))
            streams = {stream.index: target.add_stream_from_template(stream) for stream in container.streams}
            packets += [(streams[packet.stream.index], packet) for packet in container.demux() if packet.size]
        for stream, packet in sorted(packets, key=lambda pair: pair[1].dts * pair[1].time_base):
            packet.stream = stream
            target.mux(packet)
    return path


def cut_off_the_beginning(whole: Path, path: Path, share: float) -> Path:
    """A .ts file without the first `share` of its packets, but with the tables that name its tracks."""
    content = whole.read_bytes()
    path.write_bytes(content[: 3 * 188] + content[round(share * (len(content) // 188)) * 188 :])
    return path


def spoil_packets(path: Path, kind: str, numbers: Sequence[int], *, filler: bool = False) -> None:
    """Overwrites these packets of the "video" or "audio" track; the container stays whole.

    With `filler` they become H.264 filler data (type 12), of which a decoder makes nothing, without an error.
    """
    with av.open(str(path)) as container:
        track = next(stream for stream in container.streams if stream.type == kind)
        packets = [(packet.pos, packet.size) for packet in container.demux(track) if packet.size]
    content = bytearray(path.read_bytes())
    for number in numbers:
        position, size = packets[number]
        junk = (size - 4).to_bytes(4, "big") + b"\x0c" if filler else b""
        content[position : position + size] = junk.ljust(size, b"\xff")
    path.write_bytes(content)
