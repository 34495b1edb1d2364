"""Which frames of a clip are kept, and how they become JPEG files."""

from collections.abc import Iterator

import av
import numpy as np
import simplejpeg
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from PIL import Image

from cavmae_ds.data.schema import FRAMES_PER_CLIP

TIME_TOLERANCE_S = 0.002  # containers may round times to 1 ms: a frame that begins so little late is on screen


def pick_frames(
    stream: Stream, packets: list[Packet], start_s: float, picture_s: float
) -> tuple[list[tuple[float, VideoFrame]], float]:
    """The frames on screen at start_s + i * picture_s / FRAMES_PER_CLIP, and the share that did not decode.

    Each frame comes with its presentation time in seconds on the file's clock.

    A corrupt frame is never chosen: the sound one before it stays on screen (at the very start, the next).
    Nothing after the last wanted time is decoded. The list is empty when no frame is sound.
    """
    wanted_s = [start_s + i * picture_s / FRAMES_PER_CLIP for i in range(FRAMES_PER_CLIP)]
    chosen: list[tuple[float, VideoFrame]] = []
    on_screen = None
    seen = bad = 0
    for frame in _decoded(stream, packets):
        seen += 1
        if frame is None or frame.is_corrupt or frame.pts is None:
            bad += 1
            continue
        time_s = float(frame.pts * (stream.time_base or 0))  # frame.time is missing on the decoder's last frames
        while on_screen and wanted_s[len(chosen)] + TIME_TOLERANCE_S < time_s:
            chosen.append(on_screen)
            if len(chosen) == FRAMES_PER_CLIP:
                return chosen, bad / seen
        on_screen = (time_s, frame)
    if on_screen:
        chosen += [on_screen] * (FRAMES_PER_CLIP - len(chosen))
    return chosen, bad / max(seen, 1)


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
