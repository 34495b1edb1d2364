"""Why a video can be turned away: one code and one plain sentence each."""

from enum import Enum


class RejectCode(str, Enum):
    """The reason an input did not become a clip. The value is what reports and rejected.csv show."""

    explanation: str

    def __new__(cls, code: str, explanation: str = "") -> "RejectCode":
        member = str.__new__(cls, code)
        member._value_ = code
        member.explanation = explanation
        return member

    UNREADABLE = "unreadable", "the file is missing, may not be read, or its name is not valid UTF-8"
    EMPTY_FILE = "empty_file", "the file has no bytes"
    NOT_MEDIA = "not_media", "the bytes are no video or audio at all, whatever the name says"
    TRUNCATED = "truncated", "cut short: no index, or less than 90 % of the declared length is there"
    NO_VIDEO = "no_video", "there is no picture track (cover art does not count)"
    NO_AUDIO = "no_audio", "there is no sound track, or not the one asked for"
    ENCRYPTED = "encrypted", "picture or sound is encrypted (DRM): only who has the key can decode it"
    TOO_LARGE = "too_large", "more pixels a frame, or more bytes a clip, than allowed"
    CORRUPT_VIDEO = "corrupt_video", "more than 10 % of the picture data cannot be decoded"
    CORRUPT_AUDIO = "corrupt_audio", "more than 10 % of the sound data cannot be decoded"
    TOO_SHORT = "too_short", "sound or picture lasts less than a second"
    NO_AV_OVERLAP = "no_av_overlap", "sound and picture are there together for less than a second"
    SILENT_AUDIO = "silent_audio", "every sample of the sound is zero"
    TIMEOUT = "timeout", "decoding took longer than the time limit"
    WORKER_CRASHED = "worker_crashed", "the process decoding it died or failed in an unforeseen way"
    UNKNOWN_LABEL = "unknown_label", "the label CSV does not have one of its labels"
    DUPLICATE_ID = "duplicate_id", "another input has the same name without its suffix"


class ClipRejected(Exception):
    """An input cannot become a clip. `code` says why, `detail` gives the particulars."""

    def __init__(self, code: RejectCode, detail: str) -> None:
        super().__init__(code, detail)  # both as arguments: the exception crosses process borders
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code.value}: {self.detail}"
