"""Text files that users write: UTF-8, or refused with the line that is not."""

import codecs
from pathlib import Path

from cavmae_ds.errors import DataError


def read_text(path: Path, *, keep_invalid: bool = False) -> str:
    """The text of a UTF-8 file without a byte order mark, its line ends unchanged.

    With `keep_invalid` bytes that are not UTF-8 become surrogates, as in file names (os.fsdecode). Raises DataError for
    a file that cannot be read or is in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise DataError(f"{path} is no UTF-8 text but UTF-16 or binary; save it as UTF-8")
    try:
        return content.decode("utf-8-sig", "surrogateescape" if keep_invalid else "strict")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        line = content.split(b"\n")[number - 1][:80]
        raise DataError(f"{path} line {number} is not UTF-8, got {line!r}; save the file as UTF-8") from error
