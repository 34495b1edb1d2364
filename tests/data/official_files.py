"""Recordings, data files in the official layout, and the official loader's reading of them, without our importer."""

import csv
import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
LABELS = 'index,mid,display_name\n0,/m/a,Dog\n1,/m/b,"Cat, small"\n2,/t/c,Rain\n'


def write_recordings(folder: Path, speakers=SPEAKERS) -> Path:
    """Recordings as the digits benchmark reads them: takes 4 (test) and 5 (train) of every digit, half a second of a
    tone at 8 kHz, higher for a higher digit; and a file that is none.
    """
    folder.mkdir()
    for speaker in speakers:
        for digit in range(10):
            tone = 9000 * np.sin(2 * np.pi * (200 + 100 * digit) * np.arange(4000) / 8000)
            for take in (4, 5):
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", tone.astype(np.int16), 8000)
    (folder / "._0_george_4.wav").write_text("not a recording")
    return folder


def sound(seconds: float = 1.0, rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
    """int16 [n]"""
    return np.random.RandomState(seed).randint(-9000, 9000, round(seconds * rate_hz)).astype(np.int16)


class OfficialFolder:
    """A folder that grows by clips: audio/ID.wav, frames/frame_k/ID.jpg, and one entry of the JSON each."""

    def __init__(self, root: Path):
        self.root, self.entries = root, []

    def add(self, name: str, labels: str | None = "/m/a", wave=None, rate_hz: int = 16_000, size: int = 64) -> Path:
        """A good clip whose ten frames differ; wave: int16 or float32 [n] or [n, channels]. Returns its sound file."""
        (self.root / "audio").mkdir(parents=True, exist_ok=True)
        wav = self.root / "audio" / f"{name}.wav"
        subtype = "FLOAT" if wave is not None and wave.dtype == np.float32 else "PCM_16"
        soundfile.write(wav, sound() if wave is None else wave, rate_hz, subtype=subtype)
        for k in range(10):
            self.frame(name, k, Image.new("RGB", (size, size), (25 * k, 100, 200)))
        self.entry(name, labels, wav)
        return wav

    def frame(self, name: str, k: int, image: Image.Image, **options) -> Path:
        """Writes frame k of a clip as a JPEG file."""
        path = self.root / "frames" / f"frame_{k}" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "JPEG", **options)
        return path

    def entry(self, name, labels: str | None, wav: Path | str) -> None:
        """One more clip in the JSON."""
        entry = {"video_id": name, "wav": str(wav), "video_path": str(self.root / "frames"), "labels": labels}
        self.entries.append({key: value for key, value in entry.items() if value is not None})

    def write(self, labels: str = LABELS, encoding: str = "utf-8") -> tuple[Path, Path]:
        """The JSON and the label CSV."""
        listing, label_csv = self.root / "train.json", self.root / "classes.csv"
        listing.write_text(json.dumps({"data": self.entries}, ensure_ascii=False), encoding=encoding)
        label_csv.write_text(labels, encoding=encoding)
        return listing, label_csv


def official_clips(listing: Path, label_csv: Path) -> list[dict]:
    """What the official loader makes of its files, in their order (spec/cav-mae.md 3.3 and 3.6)."""
    with label_csv.open(newline="") as file:
        number = {row["mid"]: int(row["index"]) for row in csv.DictReader(file)}
    clips = []
    for datum in json.loads(listing.read_text())["data"]:
        wave, rate_hz = soundfile.read(datum["wav"], dtype="int16")
        assert rate_hz == 16_000 and wave.ndim == 1
        paths = [f"{datum['video_path']}/frame_{k}/{datum['video_id']}.jpg" for k in range(10)]
        frames = [np.asarray(Image.open(path)) for path in paths]
        labels = [number[label] for label in datum["labels"].split(",")]
        clips.append({"video_id": datum["video_id"], "wave": wave, "frames": frames, "labels": labels})
    return clips
