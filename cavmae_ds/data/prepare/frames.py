"""Which frames of a clip are kept, how they are turned, and how they become JPEG files."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

import av
import numpy as np
import simplejpeg
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from PIL import Image

from cavmae_ds.data.format.crop import centre_crop
from cavmae_ds.data.format.schema import FRAMES_PER_CLIP
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode
from cavmae_ds.data.prepare.tracks import TIME_TOLERANCE_S, packet_span

MAX_JPEG_SIDE = 65_500  # pixels, what libjpeg writes

Kept = TypeVar("Kept")


class Turn(NamedTuple):
    """How a stored picture is turned to be shown: first transposed, then mirrored."""

    transposed: bool = False
    left_to_right: bool = False
    top_to_bottom: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> "Turn":
        """As a player turns it: by the display matrix, to the nearest right angle."""
        try:
            matrix = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV 18 lists nothing when the frame has one kind of data that it does not know
            return cls.rotation_of(frame)
        if matrix is None:
            return cls()
        # Shown at x' = a x + c y, y' = b x + d y.
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # type: ignore[call-overload]
        transposed = abs(b) + abs(c) > abs(a) + abs(d)
        return cls(transposed, (c if transposed else a) < 0, (b if transposed else d) < 0)

    @classmethod
    def rotation_of(cls, frame: VideoFrame) -> "Turn":
        """As OpenCV turns it: by the rotation in the display matrix, whatever else that asks for."""
        quarters = round(frame.rotation / 90) % 4  # counter-clockwise
        return (cls(), cls(True, False, True), cls(False, True, True), cls(True, True, False))[quarters]

    def applied_to(self, frame: VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3] RGB"""
        rgb = frame.to_ndarray(format="rgb24", threads=1)
        rgb = rgb.swapaxes(0, 1) if self.transposed else rgb
        return rgb[:: -1 if self.top_to_bottom else 1, :: -1 if self.left_to_right else 1]


def pick_frames(
    stream: Stream,
    packets: list[Packet],
    start_s: float,
    wanted: Sequence[float],
    keep: Callable[[VideoFrame], Kept],
    *,
    numbered: bool = False,
) -> tuple[list[tuple[float, Kept]], float]:
    """For each wanted time the frame on screen then, and the share of the clip's frames that did not decode.

    Each frame comes as what `keep` makes of it, once however often it is wanted: hundreds of whole frames would not
    fit into memory. It comes with its presentation time; all times are seconds on the file's clock. With `numbered`
    the wanted are numbers instead, 0 being the first frame of the clip. Frames before start_s are decoded for the sake
    of the others; the last of them may still be on screen.

    A corrupt frame is never chosen: the sound one before it stays on screen (at the very start, the next: then the
    clip should begin with that one). Nothing after the last wanted frame is decoded. The list is empty when no frame
    is sound.
    """
    stream.codec_context.flush_buffers()  # it may have decoded these packets before
    first_s = start_s - TIME_TOLERANCE_S
    announced_s = np.sort([span[0] for span in map(packet_span, packets) if span and span[0] >= first_s])
    chosen: list[tuple[float, Kept]] = []
    sound_s: list[float] = []
    on_screen = None
    seen, interlaced, ordered = 0, False, True
    before = any(span[0] < first_s for span in map(packet_span, packets[:1]) if span)
    for frame in _decoded(stream, packets):
        time_s = None  # frame.time is missing on the decoder's last frames
        if frame is not None and frame.pts is not None:
            time_s = float(frame.pts * (stream.time_base or 0))
        before = before and (time_s is None or time_s < first_s)
        seen += not before
        if frame is None or time_s is None or frame.is_corrupt:
            continue
        if not before:
            ordered = ordered and time_s >= max(sound_s[-1:], default=time_s)  # H.264 in AVI is not: decode all of it
            sound_s.append(time_s)
            interlaced |= frame.interlaced_frame
        position = seen - 1 if numbered else time_s
        passed = len(chosen)
        while on_screen and passed < len(wanted) and wanted[passed] + TIME_TOLERANCE_S < position:
            passed += 1
        if on_screen and passed > len(chosen):
            chosen += [(on_screen[0], keep(on_screen[1]))] * (passed - len(chosen))
        if ordered and len(chosen) == len(wanted):
            announced_s = announced_s[announced_s <= time_s + TIME_TOLERANCE_S]
            break
        on_screen = (time_s, frame)
    if on_screen and len(chosen) < len(wanted):
        chosen += [(on_screen[0], keep(on_screen[1]))] * (len(wanted) - len(chosen))
    return chosen, _missing_share(announced_s, sound_s, interlaced)


def _missing_share(announced_s: np.ndarray, sound_s: Sequence[float], interlaced: bool) -> float:
    """Of the frames whose packets are there, the share that did not come out of the decoder, or came out corrupt.

    Decoders drop frames without an error. An interlaced frame may be two packets, one for each field.
    """
    packets_per_frame = 1.0
    if interlaced and len(sound_s) > 1:
        packets_per_frame = max(float(np.median(np.diff(np.searchsorted(announced_s, sound_s)))), 1.0)
    frames = int(len(announced_s) / packets_per_frame)
    return max(1 - len(sound_s) / frames, 0.0) if frames else 0.0


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


def encode_frame(
    frame: VideoFrame, turn: Turn, aspect: Fraction | None, size: int, quality: int, *, whole: bool = False
) -> bytes:
    """The frame as it is shown, as a JPEG file: see encode_picture. aspect: of the pixels as they are stored."""
    shown = 1 / aspect if aspect and turn.transposed else aspect
    return encode_picture(turn.applied_to(frame), size, quality, shown, whole=whole)


def encode_picture(
    rgb: np.ndarray, size: int, quality: int, aspect: Fraction | None = None, *, whole: bool = False
) -> bytes:
    """uint8 [H, W, 3] RGB, shorter side scaled to `size` pixels, as a 4:2:0 JPEG file: the centre cut out, or `whole`.

    PIL's antialiased bilinear filter, as the official preparation uses (spec cav-mae.md 3.2). aspect: width of a pixel
    by its height, as they are shown; None: square. Raises ClipRejected when a whole picture is too long for a JPEG.
    """
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if whole:
        pixels = np.asarray(image.resize(_whole_size(image, size, aspect or Fraction(1)), Image.Resampling.BILINEAR))
    elif aspect and aspect != 1:
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, _shown_square(image, aspect)))
    else:
        pixels = centre_crop(rgb, size)
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")


def _whole_size(image: Image.Image, size: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height in pixels of the picture as it is shown, its shorter side `size`. Raises ClipRejected."""
    shown = (image.width * aspect, Fraction(image.height))
    width, height = (int(size * side / min(shown)) for side in shown)
    if max(width, height) > MAX_JPEG_SIDE:
        raise ClipRejected(RejectCode.TOO_LARGE, f"{width}x{height} pixels after scaling, a JPEG has {MAX_JPEG_SIDE}")
    return width, height


def _shown_square(image: Image.Image, aspect: Fraction) -> tuple[float, float, float, float]:
    """The largest square at the centre of the picture as it is shown, in its pixels: left, top, right, bottom."""
    side = min(image.width * aspect, Fraction(image.height))  # in heights of a pixel
    left, top = (image.width - side / aspect) / 2, (image.height - side) / 2
    return float(left), float(top), float(left + side / aspect), float(top + side)
