"""One video file in, one clip record out: what is accepted, what is refused, and the clip's clock.

The clip begins with the first picture (t0) and lasts `clip_seconds` or less. Packets are read first,
because their timestamps tell how long the picture really lasts before anything is decoded; then each
track is decoded once. Durations and frame counts in file headers are only used to notice missing data.
Rules: spec data-path.md section 7.
"""

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

from cavmae_ds.data.inputs import VideoInput
from cavmae_ds.data.pictures import encode_frame, pick_frames
from cavmae_ds.data.rejects import ClipRejected, RejectCode
from cavmae_ds.data.schema import AUDIO_RATE_HZ, ClipFlag, ClipRecord
from cavmae_ds.data.settings import MIN_COMMON_SECONDS, PrepareSettings
from cavmae_ds.data.sound import read_sound

MIN_SHARE_OF_DECLARED = 0.9
MAX_BAD_SHARE = 0.1
SHORT_BELOW_SHARE = 0.95
MAX_CLIP_BYTES = 512 * 2**20  # compressed bytes of one clip held in memory
REORDER_SECONDS = 1.0  # how far decoding order may run ahead of presentation order
INTERLEAVE_SECONDS = 10.0  # how far one track may lie behind the other in the file

# How files begin that FFmpeg would open if they were whole: four bytes at an offset.
_ISO_BOXES = (b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"styp")
_MAGICS = (b"\x1aE\xdf\xa3", b"RIFF", b"OggS", b"FLV\x01", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba")


@dataclass
class Track:
    """Packets of one stream around the clip, in file order; seconds count on the file's own clock."""

    stream: Stream
    packets: list[Packet] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)  # of packets that are presented
    end_s: float = -np.inf

    def add(self, packet: Packet) -> None:
        self.packets.append(packet)
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or packet.is_discard:  # discarded: only there to prime the decoder
            return
        time_base = packet.time_base or Fraction(1)
        self.times_s.append(float(stamp * time_base))
        self.end_s = max(self.end_s, float((stamp + (packet.duration or 0)) * time_base))

    @property
    def start_s(self) -> float:
        return min(self.times_s)

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s if self.times_s else 0.0

    @property
    def declared_s(self) -> float:
        """Length the file claims for this track; 0 when it claims none."""
        return float((self.stream.duration or 0) * (self.stream.time_base or 0))


def read_clip(item: VideoInput, settings: PrepareSettings) -> ClipRecord:
    """Decodes the first `settings.clip_seconds` of a video into a record.

    Frame i is the one on screen at t0 + i * D / 10, D = min(length of the picture, clip_seconds). A single
    picture under a longer sound counts as a still that stays on screen. Raises ClipRejected.
    """
    with _opened(item.path) as container:
        video, audio = _tracks(container, settings)
        _read_packets(container, video, audio, settings)
        _refuse_truncated(container, video, audio, settings)
        start_s, picture_s = _clip_span(video, audio, settings)
        source_start_s = (container.start_time or 0) / av.time_base
        frames, bad_video = pick_frames(video.stream, video.packets, start_s, picture_s)
        sound = read_sound(audio.stream, audio.packets, start_s, settings.clip_seconds, settings.channel)

    if not frames or bad_video > MAX_BAD_SHARE:
        raise ClipRejected(RejectCode.CORRUPT_VIDEO, f"{bad_video:.0%} of the picture does not decode")
    if not len(sound.samples) or sound.bad_share > MAX_BAD_SHARE:
        raise ClipRejected(RejectCode.CORRUPT_AUDIO, f"{sound.bad_share:.0%} of the sound does not decode")
    silent = not sound.samples.any()
    if silent and not settings.keep_silent:
        raise ClipRejected(RejectCode.SILENT_AUDIO, f"all {len(sound.samples)} samples are zero")

    times_s = tuple(round(time_s - start_s, 6) for time_s, _ in frames)
    covered_s = min(picture_s, len(sound.samples) / AUDIO_RATE_HZ)
    unusual = {
        ClipFlag.SHORT: covered_s < SHORT_BELOW_SHARE * settings.clip_seconds,
        ClipFlag.SILENT: silent,
        ClipFlag.ROTATED: any(frame.rotation for _, frame in frames),
        ClipFlag.AV_OFFSET_FILLED: sound.filled,
        ClipFlag.REPEATED_FRAMES: len(set(times_s)) < len(times_s),
        ClipFlag.SOME_CORRUPT_FRAMES: bad_video > 0,
        ClipFlag.VARIABLE_RATE: _rate_varies(video),
    }
    return ClipRecord(
        clip_id=item.clip_id,
        source=item.source,
        start_s=round(start_s - source_start_s, 6),
        audio=sound.samples,
        frames=tuple(encode_frame(frame, settings.frame_size, settings.jpeg_quality) for _, frame in frames),
        frame_times=times_s,
        labels=np.array(item.labels, np.int32),
        flags=ClipFlag(sum(flag for flag, applies in unusual.items() if applies)),
    )


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    try:
        with path.open("rb") as file:
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


def _tracks(container: InputContainer, settings: PrepareSettings) -> tuple[Track, Track]:
    """The first picture track and the first sound track."""
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
    if width * height > settings.max_frame_pixels:
        raise ClipRejected(RejectCode.TOO_LARGE, f"{width}x{height} pixels, allowed {settings.max_frame_pixels} in all")
    return Track(videos[0]), Track(audios[0])


def _read_packets(container: InputContainer, video: Track, audio: Track, settings: PrepareSettings) -> None:
    """Fills both tracks up to the end of the clip. Stops early where the file does: see _refuse_truncated."""
    tracks = {track.stream.index: track for track in (video, audio)}
    held_bytes = 0
    with suppress(av.FFmpegError):
        for packet in container.demux(video.stream, audio.stream):
            if not packet.size:  # marks the end of a stream
                continue
            stop_s = min((video if video.times_s else audio).times_s[:1], default=np.inf)
            stop_s += settings.clip_seconds + REORDER_SECONDS
            track = tracks[packet.stream.index]
            if track.times_s and track.times_s[-1] > stop_s:
                if all(t.end_s > stop_s for t in tracks.values()):
                    return
                if track.times_s[-1] > stop_s + INTERLEAVE_SECONDS:
                    return
            track.add(packet)
            held_bytes += packet.size
            if held_bytes > MAX_CLIP_BYTES:
                raise ClipRejected(RejectCode.TOO_LARGE, f"more than {MAX_CLIP_BYTES / 2**20:.0f} MiB in one clip")


def _refuse_truncated(container: InputContainer, video: Track, audio: Track, settings: PrepareSettings) -> None:
    starts_s = [track.start_s for track in (video, audio) if track.times_s]
    reached_s = max(video.end_s, audio.end_s) - min(starts_s) if starts_s else 0.0
    claims = [((container.duration or 0) / av.time_base, reached_s)]
    if "mp4" in container.format.name:  # elsewhere FFmpeg fills the tracks' durations in from the whole
        claims += [(track.declared_s, track.seconds) for track in (video, audio)]
    for declared_s, read_s in claims:
        if read_s < MIN_SHARE_OF_DECLARED * min(declared_s, settings.clip_seconds):
            raise ClipRejected(RejectCode.TRUNCATED, f"declares {declared_s:.2f} s but only {read_s:.2f} s are there")


def _clip_span(video: Track, audio: Track, settings: PrepareSettings) -> tuple[float, float]:
    """t0 on the file's clock and the length D of the picture, both in seconds."""
    if not video.times_s:
        raise ClipRejected(RejectCode.NO_VIDEO, "the picture track is empty")
    if not audio.times_s:
        raise ClipRejected(RejectCode.NO_AV_OVERLAP, "no sound within the clip")
    start_s, end_s = video.start_s, video.end_s
    if len(video.times_s) == 1:
        end_s = max(end_s, audio.end_s)  # a still stays on screen
    for what, seconds in (("picture", end_s - start_s), ("sound", audio.seconds)):
        if seconds < MIN_COMMON_SECONDS:
            raise ClipRejected(RejectCode.TOO_SHORT, f"{seconds:.2f} s of {what}")
    common_s = min(end_s, audio.end_s, start_s + settings.clip_seconds) - max(start_s, audio.start_s)
    if common_s < MIN_COMMON_SECONDS:
        raise ClipRejected(
            RejectCode.NO_AV_OVERLAP,
            f"picture at {start_s:.2f} to {end_s:.2f} s, sound at {audio.start_s:.2f} to {audio.end_s:.2f} s",
        )
    return start_s, min(end_s - start_s, settings.clip_seconds)


def _rate_varies(video: Track) -> bool:
    gaps_s = np.diff(np.unique(video.times_s))
    return len(gaps_s) > 0 and float(np.ptp(gaps_s)) > 0.5 * float(np.median(gaps_s))
