"""Which frames of a clip are kept, and how they become JPEG files."""

from collections.abc import Iterator, Sequence

import av
import numpy as np
import simplejpeg
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from PIL import Image

from cavmae_ds.data.schema import FRAMES_PER_CLIP
from cavmae_ds.data.tracks import TIME_TOLERANCE_S, packet_span


def pick_frames(
    stream: Stream, packets: list[Packet], start_s: float, wanted: Sequence[float], *, numbered: bool = False
) -> tuple[list[tuple[float, VideoFrame]], float]:
    """For each wanted time the frame on screen then, and the share of the clip's frames that did not decode.

    Each frame comes with its presentation time; all times are seconds on the file's clock. With `numbered` the
    wanted are numbers instead, 0 being the first frame of the clip. Frames before start_s are decoded for the sake
    of the others; the last of them may still be on screen.

    A corrupt frame is never chosen: the sound one before it stays on screen (at the very start, the next).
    Nothing after the last wanted frame is decoded. The list is empty when no frame is sound.
    """
    first_s = start_s - TIME_TOLERANCE_S
    chosen: list[tuple[float, VideoFrame]] = []
    on_screen = None
    seen = bad = 0
    before = any(span[0] < first_s for span in map(packet_span, packets[:1]) if span)
    for frame in _decoded(stream, packets):
        time_s = None  # frame.time is missing on the decoder's last frames
        if frame is not None and frame.pts is not None:
            time_s = float(frame.pts * (stream.time_base or 0))
        before = before and (time_s is None or time_s < first_s)
        seen += not before
        if frame is None or time_s is None or frame.is_corrupt:
            bad += not before
            continue
        position = seen - 1 if numbered else time_s
        while on_screen and wanted[len(chosen)] + TIME_TOLERANCE_S < position:
            chosen.append(on_screen)
            if len(chosen) == len(wanted):
                return chosen, bad / seen
        on_screen = (time_s, frame)
    if on_screen:
        chosen += [on_screen] * (len(wanted) - len(chosen))
    return chosen, bad / max(seen, 1)


def official_numbers(container: InputContainer, stream: Stream, start_s: float, clip_seconds: float) -> list[int]:
    """The frames that the official preparation reads, counted from start_s (spec cav-mae.md 3.2).

    n = min(number of frames, int(clip_seconds * rate)), both as the container claims them and OpenCV reads them;
    then int(i * n / 10) - 1 for i = 0 to 9, but no less than 0. The "- 1" is a slip that is kept for parity.
    """
    rate_hz = float(stream.guessed_rate or stream.average_rate or 0)
    seconds = float((stream.duration or 0) * (stream.time_base or 0)) or (container.duration or 0) / av.time_base
    count = stream.frames or int(seconds * rate_hz + 0.5)
    offset_s = start_s - float((stream.start_time or 0) * (stream.time_base or 0))
    n = max(min(count - round(offset_s * rate_hz), int(clip_seconds * rate_hz)), 1)
    return [max(int(i * (n / FRAMES_PER_CLIP)) - 1, 0) for i in range(FRAMES_PER_CLIP)]


def _decoded(stream: Stream, packets: list[Packet]) -> Iterator[VideoFrame | None]:
    """Frames in presentation order; None for a packet that does not decode."""
    for packet in [*packets, None]:  # None empties the decoder
        try:
            yield from stream.decode(packet)  # type: ignore[attr-defined]
        except av.FFmpegError:
            yield None


def encode_frame(frame: VideoFrame, size: int, quality: int) -> bytes:
    """The frame as a player shows it, as a JPEG file: see encode_picture."""
    rgb = frame.to_ndarray(format="rgb24", threads=1)  # [H, W, 3]
    return encode_picture(np.rot90(rgb, round(frame.rotation / 90)), size, quality)  # both turn counter-clockwise


def encode_picture(rgb: np.ndarray, size: int, quality: int) -> bytes:
    """uint8 [H, W, 3] RGB, shorter side scaled to `size` pixels, centre cut out, as a 4:2:0 JPEG file.

    PIL's antialiased bilinear filter, as the official preparation uses (spec cav-mae.md 3.2).
    """
    image = Image.fromarray(np.ascontiguousarray(rgb))
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(scaled.crop((left, top, left + size, top + size)))  # [size, size, 3]
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
