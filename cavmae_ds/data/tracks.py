"""A media file's picture and sound tracks as packets: opened with care, read around a clip, never all at once."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream

from cavmae_ds.data.rejects import ClipRejected, RejectCode

MAX_CLIP_BYTES = 512 * 2**20  # compressed bytes of one clip held in memory
REORDER_SECONDS = 1.0  # how far decoding order may run ahead of presentation order
INTERLEAVE_SECONDS = 10.0  # how far one track may lie behind the other in the file
SOUND_LEAD_SECONDS = 0.5  # decoded before the clip, so that the decoder has settled
TIME_TOLERANCE_S = 0.002  # containers may round times to 1 ms

# How files begin that FFmpeg would open if they were whole: four bytes at an offset.
_ISO_BOXES = (b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"styp")
_MAGICS = (b"\x1aE\xdf\xa3", b"RIFF", b"OggS", b"FLV\x01", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba")


@dataclass
class Track:
    """Packets of one stream around the clip, in file order; seconds count on the file's own clock."""

    stream: Stream
    packets: list[Packet] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)  # of those packets that are presented
    bytes: int = 0  # of the packets
    start_s: float = np.inf  # of all packets that were read, kept or not
    end_s: float = -np.inf
    presented: int = 0

    def add(self, packet: Packet) -> None:
        self.packets.append(packet)
        self.bytes += packet.size
        if span := packet_span(packet):
            self.times_s.append(span[0])
            self.start_s, self.end_s = min(self.start_s, span[0]), max(self.end_s, span[1])
            self.presented += 1

    def drop(self, keep: int = 0) -> None:
        """Forgets the packets but the newest `keep`, not how far they reached."""
        del self.packets[: len(self.packets) - keep]
        del self.times_s[: len(self.times_s) - keep]
        self.bytes = sum(packet.size for packet in self.packets)

    @property
    def seconds(self) -> float:
        return max(self.end_s - self.start_s, 0.0)

    @property
    def declared_start_s(self) -> float:
        return float((self.stream.start_time or 0) * (self.stream.time_base or 0))

    @property
    def declared_end_s(self) -> float:
        """Where the file claims that this track ends; its beginning when it claims nothing."""
        return self.declared_start_s + float((self.stream.duration or 0) * (self.stream.time_base or 0))


def packet_span(packet: Packet) -> tuple[float, float] | None:
    """Begin and end on the file's clock in seconds; None when it is not presented."""
    stamp = packet.pts if packet.pts is not None else packet.dts
    if stamp is None or packet.is_discard:  # discarded: only there to prime the decoder
        return None
    time_base = packet.time_base or Fraction(1)
    return float(stamp * time_base), float((stamp + (packet.duration or 0)) * time_base)


@contextmanager
def opened(path: str) -> Iterator[InputContainer]:
    """The container in a file. Raises ClipRejected when it is none."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ClipRejected(RejectCode.UNREADABLE, error.strerror or str(error)) from error
    if not head:
        raise ClipRejected(RejectCode.EMPTY_FILE, "0 bytes")
    try:
        # "file:" keeps a colon or a dash in the name from meaning a protocol or an option, and the
        # whitelist keeps a playlist that poses as a video from opening anything else.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except av.FFmpegError as error:
        looks_like_media = head[4:8] in _ISO_BOXES or head.startswith(_MAGICS)
        code = RejectCode.TRUNCATED if looks_like_media else RejectCode.NOT_MEDIA
        raise ClipRejected(code, f"cannot be opened: {error.strerror}") from error
    with container:
        yield container


def find_tracks(container: InputContainer, max_frame_pixels: int) -> tuple[Track, Track]:
    """The first picture track and the first sound track. Raises ClipRejected."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    audios = container.streams.audio
    if not container.streams.video and not audios:
        raise ClipRejected(RejectCode.NOT_MEDIA, "neither a picture nor a sound track")
    if not videos:
        raise ClipRejected(RejectCode.NO_VIDEO, "tracks: " + ", ".join(s.type for s in container.streams))
    if not audios:
        raise ClipRejected(RejectCode.NO_AUDIO, "tracks: " + ", ".join(s.type for s in container.streams))
    for stream, code in ((videos[0], RejectCode.CORRUPT_VIDEO), (audios[0], RejectCode.CORRUPT_AUDIO)):
        if stream.codec_context is None:
            raise ClipRejected(code, "no decoder knows this codec")
        stream.codec_context.thread_count = 1  # clips, not codecs, are what runs in parallel
    width, height = videos[0].codec_context.width, videos[0].codec_context.height
    if width * height > max_frame_pixels:
        raise ClipRejected(RejectCode.TOO_LARGE, f"{width}x{height} pixels, allowed {max_frame_pixels} in all")
    return Track(videos[0]), Track(audios[0])


def read_all(container: InputContainer, video: Track, audio: Track) -> None:
    """Reads to the end and keeps no packet: for how far the tracks reach."""
    for track in _each_packet(container, video, audio):
        track.drop()


def read_packets(container: InputContainer, video: Track, audio: Track, seconds: float) -> None:
    """Fills both tracks up to so many seconds after their first packet. Stops early where the file does."""
    for track in _each_packet(container, video, audio):
        first_s = min((video if video.times_s else audio).times_s[:1], default=np.inf)
        if _beyond(first_s + seconds + REORDER_SECONDS, track, (video, audio)):
            return


def read_packets_from(
    container: InputContainer, video: Track, audio: Track, start_s: float, seconds: float, *, jump: bool
) -> bool:
    """Fills both tracks from start_s on, with what their decoders need before it. False: no key frame is before it.

    With `jump` what lies before is not read, if the container can do that; it may land too late.
    """
    if jump:
        with suppress(av.FFmpegError):  # who cannot jump reads from the beginning
            landing_s = start_s - INTERLEAVE_SECONDS
            container.seek(round(landing_s / (video.stream.time_base or 1)), stream=video.stream)
    for track in _each_packet(container, video, audio):
        newest, span = track.packets[-1], packet_span(track.packets[-1])
        if track is video and newest.is_keyframe and span and span[0] <= start_s + TIME_TOLERANCE_S:
            track.drop(keep=1)
        elif track is audio and span and span[1] < start_s - SOUND_LEAD_SECONDS:
            track.drop()
        if _beyond(start_s + seconds + REORDER_SECONDS, track, (video, audio)):
            break
    first = packet_span(video.packets[0]) if video.packets and video.packets[0].is_keyframe else None
    return first is not None and first[0] <= start_s + TIME_TOLERANCE_S


def _each_packet(container: InputContainer, video: Track, audio: Track) -> Iterator[Track]:
    """Adds packet after packet to its track, and tells to which, until the file ends or makes no sense."""
    tracks = {track.stream.index: track for track in (video, audio)}
    with suppress(av.FFmpegError):
        for packet in container.demux(video.stream, audio.stream):
            if not packet.size:  # marks the end of a stream
                continue
            track = tracks[packet.stream.index]
            track.add(packet)
            if video.bytes + audio.bytes > MAX_CLIP_BYTES:
                raise ClipRejected(RejectCode.TOO_LARGE, f"more than {MAX_CLIP_BYTES / 2**20:.0f} MiB in one clip")
            yield track


def _beyond(stop_s: float, track: Track, tracks: tuple[Track, Track]) -> bool:
    """The newest packet is after stop_s, and the other track is either too or is not to be waited for."""
    if not track.times_s or track.times_s[-1] <= stop_s:
        return False
    return all(each.end_s > stop_s for each in tracks) or track.times_s[-1] > stop_s + INTERLEAVE_SECONDS
