"""Made-up videos with something to learn: each class is one thing seen tied to one thing heard.

Within a class everything else varies: place, size, tempo, hue, background, noise, pitch, loudness, onset.
A clip is a pure function of (seed, clip number). Letters: S = picture size in pixels, n = sound samples.
"""

import csv
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from PIL import Image, ImageColor

from cavmae_ds.atomic_io import make_folder, written_whole
from cavmae_ds.data.format.schema import AUDIO_RATE_HZ
from cavmae_ds.errors import ConfigError

TAU = 2 * np.pi


class Variation(NamedTuple):
    """What differs between two clips of one class."""

    x: float  # centre of the shape; the picture spans -1 to 1, y grows downwards
    y: float
    radius: float
    tempo_hz: float  # shared by motion and rhythm
    phase: float  # turns
    hue_shift: float  # degrees
    pitch: float  # factor on every frequency heard
    loudness: float
    onset_s: float
    noise: np.ndarray  # float32 [n], standard normal


# Seen: coverage of each pixel at time t. x, y: float32 [S, S], already relative to the clip's centre.


def _bouncing_circle(x, y, t, v):
    lift = 0.7 * abs(np.sin(TAU / 2 * (v.tempo_hz * t + v.phase)))
    return np.hypot(x, y + lift - 0.35) < v.radius


def _rotating_square(x, y, t, v):
    x, y = _turned(x, y, 0.5 * v.tempo_hz * t + v.phase)
    return np.maximum(abs(x), abs(y)) < v.radius


def _swinging_triangle(x, y, t, v):
    x, y = _turned(x, y + 0.2, 0.15 * np.sin(TAU * (v.tempo_hz * t + v.phase)))
    return (y < v.radius) & (abs(x) < 0.6 * (y + v.radius))


def _pulsing_star(x, y, t, v):
    beat = 1 + 0.4 * np.sin(TAU * (v.tempo_hz * t + v.phase))
    return np.hypot(x, y) < v.radius * beat * (0.8 + 0.4 * np.cos(5 * np.arctan2(x, y)))


def _scrolling_stripes(x, y, t, v):
    return np.sin(TAU * ((x + y) / v.radius / 2 - v.tempo_hz * t + v.phase)) > 0


def _flashing_checker(x, y, t, v):
    cells = np.floor(x / v.radius) + np.floor(y / v.radius) + np.floor(2 * (v.tempo_hz * t + v.phase))
    return cells % 2 == 0


def _spreading_rings(x, y, t, v):
    return np.sin(TAU * (np.hypot(x, y) / v.radius - v.tempo_hz * t + v.phase)) > 0.4


def _sweeping_beam(x, y, t, v):
    x, y = _turned(x, y, 0.5 * v.tempo_hz * t + v.phase)
    return (y < 0) & (abs(x) < 0.4 * v.radius)


def _turned(x, y, turns):
    cos, sin = np.cos(TAU * turns), np.sin(TAU * turns)
    return cos * x - sin * y, sin * x + cos * y


# Heard: float [n] within about -1 to 1. t: seconds, float64 [n].


def _vibrato_tone(t, v):
    return np.sin(TAU * 440 * v.pitch * t + 6 * np.sin(TAU * 5 * v.tempo_hz * t))


def _rising_chirps(t, v):
    beat, rate_hz = _since_beat(t, v, 2)
    return np.sin(TAU * v.pitch * (500 * beat + 1000 * rate_hz * beat**2)) * (1 - beat * rate_hz)


def _noise_bursts(t, v):
    beat, _ = _since_beat(t, v, 3)
    return v.noise * 0.4 * np.exp(-15 * beat)


def _harmonic_drone(t, v):
    return sum(np.sin(TAU * 110 * v.pitch * k * t) / k for k in range(1, 9)) / 2


def _clicks(t, v):
    beat, _ = _since_beat(t, v, 8)
    return np.sin(TAU * 3000 * v.pitch * beat) * np.exp(-300 * beat)


def _two_tone_siren(t, v):
    high = np.floor(2 * (v.tempo_hz * t + v.phase)) % 2
    return np.sign(np.sin(TAU * np.where(high, 950, 700) * v.pitch * t)) * 0.5


def _bells(t, v):
    beat, _ = _since_beat(t, v, 1.5)
    partials = ((1, 1.0), (2.76, 0.6), (5.4, 0.3))
    return sum(a * np.sin(TAU * 880 * f * v.pitch * beat) * np.exp(-3 * f * beat) for f, a in partials) / 2


def _drum(t, v):
    beat, _ = _since_beat(t, v, 2.5)
    return np.sin(TAU * v.pitch * (55 * beat + 8 * (1 - np.exp(-30 * beat)))) * np.exp(-8 * beat)


def _since_beat(t, v, beats_per_cycle):
    """Seconds since the last beat [n], and beats a second."""
    rate_hz = beats_per_cycle * v.tempo_hz
    return (rate_hz * t + v.phase) % 1 / rate_hz, rate_hz


class Kind(NamedTuple):
    """A class: its name, its colour family, what is seen and what is heard."""

    name: str
    hue: int  # degrees
    draw: Callable[[np.ndarray, np.ndarray, float, Variation], np.ndarray]
    play: Callable[[np.ndarray, Variation], np.ndarray]


KINDS = (
    Kind("circle", 0, _bouncing_circle, _vibrato_tone),
    Kind("square", 225, _rotating_square, _harmonic_drone),
    Kind("triangle", 90, _swinging_triangle, _bells),
    Kind("star", 45, _pulsing_star, _rising_chirps),
    Kind("stripes", 180, _scrolling_stripes, _noise_bursts),
    Kind("checker", 315, _flashing_checker, _clicks),
    Kind("rings", 270, _spreading_rings, _two_tone_siren),
    Kind("beam", 135, _sweeping_beam, _drum),
)


class Split(NamedTuple):
    """How many clips were written for each purpose."""

    train: int
    eval: int


def synthesize(
    out_dir: Path,
    *,
    clips: int = 480,
    classes: int = len(KINDS),
    seconds: float = 2.56,
    size: int = 128,
    fps: float = 12.5,
    seed: int = 0,
    eval_share: float = 0.2,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Split:
    """Writes H.264 + AAC videos, train.csv and eval.csv (path,labels) and classes.txt (one name a line).

    Clip k belongs to class k % classes; the last `eval_share` of the clips are the eval split: no clip is
    in both, and eval has every class if it has as many clips. `progress` hears (done, total). Raises
    ConfigError.
    """
    if not 1 <= classes <= len(KINDS):
        raise ConfigError(f"classes must lie between 1 and {len(KINDS)}, got {classes}")
    if size % 2 or not 16 <= size <= 1024:
        raise ConfigError(f"size must be an even number of pixels between 16 and 1024, got {size}")
    if not 1 <= seconds <= 60 or not 1 <= fps <= 60:
        raise ConfigError(f"seconds and fps must lie between 1 and 60, got {seconds:g} and {fps:g}")
    evals = round(clips * eval_share)
    if not 0 <= evals < clips:
        raise ConfigError(f"clips and eval_share must leave a clip to train on, got {clips} and {eval_share}")

    make_folder(out_dir / "videos", "the folder for the videos")
    rows = [(f"videos/{KINDS[k % classes].name}-{k:06d}.mp4", KINDS[k % classes].name) for k in range(clips)]
    make = partial(_write_clip, out_dir, classes, seconds, size, fps, seed)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        for done, _ in enumerate(pool.map(make, range(clips), [row[0] for row in rows], chunksize=4), 1):
            progress(done, clips)
    with written_whole(out_dir / "classes.txt") as unfinished:
        unfinished.write_text("".join(f"{kind.name}\n" for kind in KINDS[:classes]))
    for name, members in (("train.csv", rows[: clips - evals]), ("eval.csv", rows[clips - evals :])):
        with written_whole(out_dir / name) as unfinished, unfinished.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "labels"), *members])
    return Split(train=clips - evals, eval=evals)


def _write_clip(
    out_dir: Path, classes: int, seconds: float, size: int, fps: float, seed: int, clip: int, name: str
) -> None:
    kind, rng = KINDS[clip % classes], np.random.default_rng((seed, clip))
    sound_at = np.arange(round(seconds * AUDIO_RATE_HZ)) / AUDIO_RATE_HZ  # [n]
    v = Variation(
        x=rng.uniform(-0.4, 0.4),
        y=rng.uniform(-0.4, 0.4),
        radius=rng.uniform(0.25, 0.5),
        tempo_hz=rng.uniform(0.7, 1.4),
        phase=rng.uniform(),
        hue_shift=rng.uniform(-15, 15),
        pitch=2 ** rng.uniform(-3 / 12, 3 / 12),
        loudness=rng.uniform(0.2, 0.8),
        onset_s=rng.uniform(0, 0.3),
        noise=rng.standard_normal(len(sound_at), np.float32),
    )
    frames_at = np.arange(round(seconds * fps)) / fps
    # The rest of the sound's randomness is drawn before the pictures': their number depends on fps.
    hiss = rng.standard_normal(len(sound_at), np.float32) * rng.uniform(0.002, 0.02)
    onset = np.clip((sound_at - v.onset_s) / 0.02, 0, 1)
    sound = np.clip(v.loudness * onset * kind.play(sound_at, v) + hiss, -1, 1)  # [n]
    with written_whole(out_dir / name) as unfinished:
        write_video(unfinished, _pictures(kind, v, frames_at, size, rng), fps, sound[None], AUDIO_RATE_HZ)


def _pictures(
    kind: Kind, v: Variation, times_s: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """uint8 [S, S, 3] for each time."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = np.meshgrid(axis - v.y, axis - v.x, indexing="ij")  # [S, S]
    hue = (kind.hue + v.hue_shift) % 360
    colour = np.array(ImageColor.getrgb(f"hsv({hue:.1f}, {rng.uniform(60, 100):.1f}%, 90%)"), np.float32)
    patches = rng.uniform(0, 1, (4, 4, 3)) * 70 + rng.uniform(20, 110, 3)
    texture = Image.fromarray(patches.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    background = np.asarray(texture, np.float32)  # [S, S, 3]
    for t in times_s:
        scene = np.where(kind.draw(x, y, t, v)[..., None], colour, background)
        grain = 8 * rng.standard_normal((size, size, 1), np.float32)
        yield np.clip(scene + grain, 0, 255).astype(np.uint8)


def write_video(path: Path, frames: Iterator[np.ndarray], fps: float, sound: np.ndarray, rate_hz: int) -> None:
    """Writes an mp4: frames uint8 [H, W, 3]; sound float [channels, n] in -1 to 1, mono or stereo."""
    with av.open(f"file:{path}", "w", format="mp4") as container:
        # The bytes must not depend on the machine: one thread, and no "mbtree", which with B-frames gives
        # other bytes from call to call (x264 165, seen at 64 and 72 pixels).
        options = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", Fraction(fps).limit_denominator(1001), options)
        audio = container.add_stream("aac", rate_hz, layout="mono" if len(sound) == 1 else "stereo")
        audio.bit_rate = 64_000
        for k, pixels in enumerate(frames):
            if k == 0:
                video.height, video.width = pixels.shape[:2]
            container.mux(video.encode(VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode(None))
        samples = np.ascontiguousarray(sound, np.float32)
        frame = AudioFrame.from_ndarray(samples, "fltp", audio.layout.name)
        frame.sample_rate, frame.pts = rate_hz, 0  # without it the encoder's warm-up would be heard
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
