"""Inputs as they come: odd but playable, damaged, or no videos at all. Small, and written by PyAV."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from tests.data.media_files import (
    cut_short,
    numbered_frame,
    numbered_video,
    spoil_packets,
    tone,
    turn_clockwise,
    write_media,
)

FRAMES = [numbered_frame(k) for k in range(20)]  # two seconds
SOUND = tone(440, 2)


def write_corpus(folder: Path) -> Path:
    """Writes the files, and a list of them all."""
    for write in (_odd_pictures, _odd_sounds, _odd_times, _damaged, _no_videos):
        write(folder)
    listing = folder / "all.txt"
    names = sorted(path.name for path in folder.iterdir())
    listing.write_bytes(b"\n".join(os.fsencode(name) for name in [*names, "missing.mp4"]))
    return listing


def _odd_pictures(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 65, 63, 3), np.uint8)
    write_media(folder / "one pixel.mkv", frames=[f[:1, :1] for f in noise], sound=SOUND, codec="ffv1")
    write_media(folder / "odd size.mkv", frames=list(noise), sound=SOUND, codec="ffv1")
    write_media(folder / "portrait.mp4", frames=[numbered_frame(k, 128, 64) for k in range(20)], sound=SOUND)
    write_media(folder / "ten bit.mkv", frames=FRAMES, sound=SOUND, codec="libx265", pixel_format="yuv420p10le")
    write_media(folder / "grey.mkv", frames=FRAMES, sound=SOUND, codec="ffv1", pixel_format="gray")
    write_media(folder / "vp9.webm", frames=FRAMES, sound=tone(440, 2, 48_000), rate_hz=48_000, codec="libvpx-vp9",
                sound_codec="libopus")  # fmt: skip
    write_media(folder / "still.mkv", frames=FRAMES[:1], sound=SOUND)
    write_media(folder / "huge.mkv", frames=[np.zeros((4400, 7700, 3), np.uint8)], sound=SOUND, codec="mjpeg",
                pixel_format="yuvj420p")  # fmt: skip
    turn_clockwise(numbered_video(folder / "rotated.mp4", seconds=2))


def _odd_sounds(folder: Path) -> None:
    write_media(folder / "5.1.mkv", frames=FRAMES, sound=np.stack([SOUND] * 6))
    for rate_hz in (8_000, 96_000):
        write_media(folder / f"{rate_hz} Hz.mkv", frames=FRAMES, sound=tone(440, 2, rate_hz), rate_hz=rate_hz)
    write_media(folder / "sound longer.mkv", frames=FRAMES, sound=tone(440, 6))
    write_media(folder / "sound shorter.mkv", frames=FRAMES * 2, sound=SOUND)
    write_media(folder / "sound late.mkv", frames=FRAMES * 2, sound=SOUND, sound_start_s=1.5)
    write_media(folder / "sound apart.mkv", frames=FRAMES, sound=SOUND, sound_start_s=1.5)
    write_media(folder / "silent.mkv", frames=FRAMES, sound=0 * SOUND)
    write_media(folder / "no sound.mp4", frames=FRAMES)
    write_media(folder / "no picture.mp4", sound=SOUND)


def _odd_times(folder: Path) -> None:
    write_media(folder / "0.3 s.mkv", frames=FRAMES[:3], sound=tone(440, 0.3))
    minutes = [numbered_frame(k % 512, 64, 64) for k in range(360)]
    write_media(folder / "3 minutes.mkv", frames=minutes, fps=2, sound=tone(440, 180, 16_000), rate_hz=16_000,
                key_frame_every=20)  # fmt: skip
    uneven = [0.0, 0.1, 0.2, 0.3, 1.4, 1.5, 1.6]
    write_media(folder / "uneven.mkv", frames=FRAMES[:7], frame_times_s=uneven, sound=SOUND)
    write_media(folder / "from 1.5 s.ts", frames=FRAMES, frame_times_s=[1.5 + k / 10 for k in range(20)], sound=SOUND,
                sound_start_s=1.5)  # fmt: skip
    # Cut out of a broadcast: begins in the middle of a group of pictures, half a second before a key frame.
    whole = write_media(folder / "whole.ts", frames=FRAMES * 2, sound=tone(440, 4), key_frame_every=5)
    content = whole.read_bytes()
    tables, rest = content[: 3 * 188], content[len(content) // 188 // 20 * 188 :]  # the tables say what is in the rest
    (folder / "no key frame first.ts").write_bytes(tables + rest)
    whole.unlink()
    # An AVI whose headers claim a hundred times the frames it has.
    lying = write_media(folder / "lying.avi", frames=FRAMES, sound=SOUND, codec="mpeg4")
    content = bytearray(lying.read_bytes())
    for chunk, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = content.index(chunk) + offset
        content[at : at + 4] = (2000).to_bytes(4, "little")
    lying.write_bytes(content)


def _damaged(folder: Path) -> None:
    whole = numbered_video(folder / "whole.mp4", seconds=9)
    cut_short(whole, folder / "cut before the index.mp4", 0.5)
    whole.unlink()
    whole = numbered_video(folder / "whole.mkv", seconds=9)
    cut_short(whole, folder / "cut.mkv", 0.5)
    whole.unlink()
    spoil_packets(numbered_video(folder / "spoilt a little.mp4", seconds=3), "video", [14, 15])
    spoil_packets(numbered_video(folder / "spoilt picture.mp4", seconds=3), "video", range(10, 20))
    spoil_packets(numbered_video(folder / "spoilt sound.mp4", seconds=3), "audio", range(40, 80))


def _no_videos(folder: Path) -> None:
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is no film.\n" * 40)
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    os.mkfifo(folder / "pipe nobody writes to.mp4")
    _cover_art(folder / "cover art.mp4")
    numbered_video(folder / "twice.mkv", seconds=2)
    numbered_video(folder / "twice.mp4", seconds=2)
    numbered_video(folder / os.fsdecode(b"caf\xe9.mp4"), seconds=2)
    numbered_video(folder / "-a 'so called' \"name\" %d:.mp4", seconds=2)


def _cover_art(path: Path) -> None:
    """A sound with a picture on its cover."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", Fraction(1), options={})
        cover.height, cover.width, cover.pix_fmt = 72, 72, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        audio = container.add_stream("aac", 44_100, layout="mono")
        container.mux(cover.encode(av.VideoFrame.from_ndarray(FRAMES[5], "rgb24")))
        frame = av.AudioFrame.from_ndarray(SOUND[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
