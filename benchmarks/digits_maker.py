"""Makes the data set of the digits benchmark, in the layout of the official CAV-MAE data files.

A clip is one recording of a spoken digit (Free Spoken Digit Dataset: 6 speakers, 10 digits, 50 takes, 8 kHz) and ten
handwritten images of that digit (scikit-learn's 8 x 8 pixels), each drawn with another position, size and angle.

    out/audio/ID.wav                16 kHz, mono, 16 bits
    out/frames/frame_{0..9}/ID.jpg  RGB
    out/{train,test}.json           video_id, wav, video_path, labels
    out/class_labels.csv            index, mid, display_name: ten digits, then six speakers

Takes 0 to 4 are the test split, as their makers say, and handwriting is split too: no image is in both.
"""

from __future__ import annotations

import colorsys
import csv
import io
import json
import lzma
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from PIL import Image

from cavmae_ds.errors import DataError, UserError

Ink = Literal["speaker", "random"]
SPEAKERS = 6
FRAMES = 10
RATE_HZ = 16_000
TEST_TAKES = 5
TRAIN_WRITING = 1500
"""Of scikit-learn's 1,797 images the first are for train, the rest for test."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDING = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")
ADVICE = (
    "`git clone --branch v1.0.10 https://github.com/Jakobovski/free-spoken-digit-dataset digits/fsdd`, then add "
    "--recordings digits/fsdd"
)


def require_libraries() -> None:
    """Raises UserError if a library of the extra `digits` is missing."""
    try:
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the digits benchmark needs scipy and scikit-learn, and one of them cannot be imported "
            f"({error}); in the checkout: pip install -c launch/constraints.txt -e '.[digits]'"
        ) from error


def read_recordings(path: Path | None) -> dict[str, bytes]:
    """Content of every DIGIT_SPEAKER_TAKE.wav by its name without the suffix, from a folder or a tar file.

    Raises DataError if there is none, or if they are not every take of every digit by six speakers.
    """
    if path is None:
        raise DataError(f"--recordings is needed to make the digits; {ADVICE}")
    try:
        found = dict(_files(path))
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        why = " ".join(str(error).split())  # tarfile's are of several lines
        raise DataError(f"--recordings {path} is neither a folder nor a whole tar file ({why}); {ADVICE}") from error
    speakers, takes = ({name.split("_")[k] for name in found} for k in (1, 2))
    wanted = {f"{digit}_{speaker}_{take}" for digit in range(10) for speaker in speakers for take in takes}
    if len(speakers) != SPEAKERS or wanted - found.keys():
        lacking = "".join(f", without {name}" for name in sorted(wanted - found.keys())[:1])
        raise DataError(
            f"--recordings {path} must hold every DIGIT_SPEAKER_TAKE.wav of {SPEAKERS} speakers, got {len(found)} of "
            f"{len(speakers)}{lacking}; {ADVICE}"
        )
    return found


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names without the suffix and contents of the recordings; others, such as macOS's ._*.wav, are passed over."""
    if path.is_dir():
        yield from ((file.stem, file.read_bytes()) for file in path.rglob("*.wav") if RECORDING.fullmatch(file.name))
        return
    with tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name)
            if RECORDING.fullmatch(name.name) and (content := archive.extractfile(member)):
                yield name.stem, content.read()


def make_digits(
    out: Path, recordings: dict[str, bytes], size: int, limit: int = 0, ink: Ink = "speaker", seed: int = 0
) -> None:
    """Write both splits; class_labels.csv is written last.

    Args:
        out: Folder to write, made if it is missing.
        recordings: What read_recordings returns.
        size: Edge of an image, pixels.
        limit: At most this number of clips a split; 0 for all.
        ink: Whether the ink's colour is the speaker's or random.
        seed: Of the order of the clips and of what is drawn.

    Raises DataError for a recording that is not mono sound.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    halves = {"train": slice(TRAIN_WRITING), "test": slice(TRAIN_WRITING, None)}
    writing = {
        split: [digits.images[half][digits.target[half] == digit] for digit in range(10)]  # [n, 8, 8], 0 to 16
        for split, half in halves.items()
    }
    speakers = sorted({name.split("_")[1] for name in recordings})
    hues = {speaker: k / len(speakers) for k, speaker in enumerate(speakers)} if ink == "speaker" else {}
    audio, frames = out.resolve() / "audio", out.resolve() / "frames"
    for folder in (audio, *(frames / f"frame_{k}" for k in range(FRAMES))):
        folder.mkdir(parents=True, exist_ok=True)
    clips: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    rng = np.random.RandomState(seed)  # not default_rng: docs/results.md was measured with the set this one draws
    for name in np.random.RandomState(seed).permutation(sorted(recordings)).tolist():
        digit, speaker, take = name.split("_")
        split = "test" if int(take) < TEST_TAKES else "train"
        if limit and len(clips[split]) >= limit:
            continue
        wav = audio / f"{name}.wav"
        soundfile.write(wav, _resampled(name, recordings[name]), RATE_HZ, subtype="PCM_16")
        glyphs = writing[split][int(digit)]
        for k in range(FRAMES):
            image = _draw(glyphs[rng.randint(len(glyphs))], size, hues.get(speaker), rng)
            image.save(frames / f"frame_{k}" / f"{name}.jpg", quality=92)
        labels = f"/d/{digit},/s/{speaker}"
        clips[split].append({"video_id": name, "wav": str(wav), "video_path": str(frames), "labels": labels})
    for split, entries in clips.items():
        (out / f"{split}.json").write_text(json.dumps({"data": entries}, indent=1))
    classes = [(f"/d/{digit}", word) for digit, word in enumerate(WORDS)]
    classes += [(f"/s/{speaker}", f"speaker {speaker}") for speaker in speakers]
    with (out / "class_labels.csv").open("w", newline="") as file:
        rows = [(index, *names) for index, names in enumerate(classes)]
        csv.writer(file).writerows([("index", "mid", "display_name"), *rows])


def _resampled(name: str, content: bytes) -> np.ndarray:
    """int16 [n] at RATE_HZ."""
    from scipy.signal import resample_poly

    try:
        sound, rate_hz = soundfile.read(io.BytesIO(content), dtype="int16")
    except soundfile.LibsndfileError as error:
        raise DataError(f"the recording {name}.wav cannot be read ({error}); {ADVICE}") from error
    if sound.ndim != 1 or not len(sound):
        raise DataError(f"the recording {name}.wav must be mono sound, got shape {sound.shape}; {ADVICE}")
    return np.clip(resample_poly(sound.astype(np.float64), RATE_HZ, rate_hz), -32768, 32767).astype(np.int16)


def _draw(glyph: np.ndarray, size: int, hue: float | None, rng: np.random.RandomState) -> Image.Image:
    """A glyph [8, 8] in bright ink on a dark canvas [size, size]; hue in [0, 1) varies a little, None is any hue."""
    hue = rng.rand() if hue is None else (hue + rng.uniform(-0.04, 0.04)) % 1
    colour = np.multiply(colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.75, 1)), 255)
    background = rng.randint(0, 60) + rng.randint(0, 20, 3)
    edge = int(size * rng.uniform(0.45, 0.8))
    opacity = Image.fromarray(np.uint8(glyph / 16 * 255)).resize((edge, edge), Image.Resampling.BICUBIC)
    opacity = opacity.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    left, top = rng.randint(0, size - edge + 1, 2)
    canvas = Image.new("RGB", (size, size), tuple(background.tolist()))
    canvas.paste(tuple(colour.astype(int).tolist()), (left, top, left + edge, top + edge), opacity)
    return canvas
