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

from cavmae_ds.data.format.schema import Require
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode

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
    """Packets of one stream around the clip, in file order; seconds count on the file's own clock.

    The picture begins with a key frame: a decoder makes nothing of what comes before it.
    """

    stream: Stream
    packets: list[Packet] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)  # of those packets that are presented
    bytes: int = 0  # of the packets
    start_s: float = np.inf  # of all packets that were read, kept or not
    end_s: float = -np.inf
    presented: int = 0
    skipped: int = 0  # before the first key frame
    key_s: float | None = None  # when the first key frame is presented; -inf: it only primes the decoder

    def add(self, packet: Packet) -> bool:
        """False: no decoder can use it."""
        span = packet_span(packet)
        if self.key_s is None and packet.is_keyframe:
            self.key_s = span[0] if span else -np.inf
        # An open group of pictures: these are shown before its key frame and refer to the group before.
        leading = self.key_s is not None and span and 0 < self.key_s - span[0] <= REORDER_SECONDS
        if self.key_s is None or leading:
            self.skipped += 1
            return False
        self.packets.append(packet)
        self.bytes += packet.size
        if span:
            self.times_s.append(span[0])
            self.start_s, self.end_s = min(self.start_s, span[0]), max(self.end_s, span[1])
            self.presented += 1
        return True

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


@dataclass
class Tracks:
    """The tracks of a clip, and how far all tracks of the file reach: its declared length counts subtitles too.

    One of them is None where only the other one is read.
    """

    video: Track | None
    audio: Track | None
    end_s: float = -np.inf  # of all packets of all tracks that were read

    @property
    def read(self) -> list[Track]:
        """Those that are read; the first one sets the clip's clock: the picture, if it is among them."""
        return [track for track in (self.video, self.audio) if track]


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
        # Titles are in any encoding, and none is used.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except av.FFmpegError as error:
        looks_like_media = head[4:8] in _ISO_BOXES or head.startswith(_MAGICS)
        code = RejectCode.TRUNCATED if looks_like_media else RejectCode.NOT_MEDIA
        raise ClipRejected(code, f"cannot be opened: {error.strerror}") from error
    with container:
        yield container


def find_tracks(
    container: InputContainer, max_frame_pixels: int, audio_track: int = 1, require: Require = "both"
) -> Tracks:
    """The first picture track and the sound track of that number, 1 being the first, or one of them alone.

    Raises ClipRejected when one that is required is missing or cannot be read.
    """
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    audios = container.streams.audio
    listed = "tracks: " + ", ".join(s.type for s in container.streams)
    if not container.streams.video and not audios:
        raise ClipRejected(RejectCode.NOT_MEDIA, "neither a picture nor a sound track")
    if not videos and require != "audio":
        raise ClipRejected(RejectCode.NO_VIDEO, listed)
    if len(audios) < audio_track and require != "video":
        wanted = f"sound track {audio_track} is wanted; " if audios else ""
        raise ClipRejected(RejectCode.NO_AUDIO, wanted + listed)
    video = videos[0] if require != "audio" else None
    audio = audios[audio_track - 1] if require != "video" else None
    if (
        audio and audio.codec_context and audio.codec_context.codec_tag == "drms"
    ):  # FairPlay; its picture is no known codec
        raise ClipRejected(RejectCode.ENCRYPTED, "the audio track is drms")
    for stream, code in ((video, RejectCode.CORRUPT_VIDEO), (audio, RejectCode.CORRUPT_AUDIO)):
        if stream is None:
            continue
        if stream.codec_context is None:
            raise ClipRejected(code, "no decoder knows this codec")
        stream.codec_context.thread_count = 1  # clips, not codecs, are what runs in parallel
    if video:
        width, height = video.codec_context.width, video.codec_context.height
        if width * height > max_frame_pixels:
            raise ClipRejected(RejectCode.TOO_LARGE, f"{width}x{height} pixels, allowed {max_frame_pixels} in all")
    return Tracks(Track(video) if video else None, Track(audio, key_s=-np.inf) if audio else None)


def read_all(container: InputContainer, tracks: Tracks) -> None:
    """Reads to the end and keeps no packet: for how far the tracks reach."""
    for track in _each_packet(container, tracks):
        track.drop()


def read_packets(container: InputContainer, tracks: Tracks, seconds: float) -> None:
    """Fills the tracks up to `seconds` after their first packet. Stops early where the file does."""
    for track in _each_packet(container, tracks):
        first_s = next((each.times_s[0] for each in tracks.read if each.times_s), np.inf)
        if _beyond(first_s + seconds + REORDER_SECONDS, track, tracks):
            return


def read_packets_from(container: InputContainer, tracks: Tracks, start_s: float, seconds: float, *, jump: bool) -> bool:
    """Fills the tracks from start_s on, with what their decoders need before it.

    False: no key frame, or without a picture no sound, is before it. With `jump` what lies before is not read, if the
    container can do that; it may land too late.
    """
    first = tracks.read[0]
    if jump:
        with suppress(av.FFmpegError):  # who cannot jump reads from the beginning
            landing_s = start_s - INTERLEAVE_SECONDS
            container.seek(round(landing_s / (first.stream.time_base or 1)), stream=first.stream)
    for track in _each_packet(container, tracks):
        newest, span = track.packets[-1], packet_span(track.packets[-1])
        if track is tracks.video and newest.is_keyframe and span and span[0] <= start_s + TIME_TOLERANCE_S:
            track.drop(keep=1)
        elif track is tracks.audio and span and span[1] < start_s - SOUND_LEAD_SECONDS:
            track.drop()
        if _beyond(start_s + seconds + REORDER_SECONDS, track, tracks):
            break
    begin = packet_span(first.packets[0]) if first.packets else None
    return begin is not None and begin[0] <= start_s + TIME_TOLERANCE_S


def _each_packet(container: InputContainer, tracks: Tracks) -> Iterator[Track]:
    """Adds packet after packet to its track, and yields that track, until the file ends or makes no sense."""
    read = {track.stream.index: track for track in tracks.read}
    with suppress(av.FFmpegError):
        for packet in container.demux():
            if not packet.size:  # marks the end of a stream
                continue
            if span := packet_span(packet):
                tracks.end_s = max(tracks.end_s, span[1])
            track = read.get(packet.stream.index)
            if track is None:
                continue
            if packet.has_sidedata("encryption_info"):
                raise ClipRejected(RejectCode.ENCRYPTED, f"packets of the {packet.stream.type} track are encrypted")
            if not track.add(packet):
                continue
            if sum(each.bytes for each in tracks.read) > MAX_CLIP_BYTES:
                raise ClipRejected(RejectCode.TOO_LARGE, f"more than {MAX_CLIP_BYTES / 2**20:.0f} MiB in one clip")
            yield track


def _beyond(stop_s: float, track: Track, tracks: Tracks) -> bool:
    """The newest packet is after stop_s, and another track is either too or is not to be waited for."""
    if not track.times_s or track.times_s[-1] <= stop_s:
        return False
    reached = all(each.end_s > stop_s for each in tracks.read)
    return reached or track.times_s[-1] > stop_s + INTERLEAVE_SECONDS
