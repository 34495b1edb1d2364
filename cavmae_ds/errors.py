"""What the user is told: every refusal is one of these, one sentence, no traceback, exit code 2."""


class UserError(Exception):
    """Something outside the program must change; the message says what. Exit code 2."""


class ConfigError(UserError):
    """A run file, an override or an engine fragment asks for something impossible."""


class DataError(UserError):
    """Input videos, shards or a bucket are missing, damaged or do not fit the run."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another model."""


class GuardError(UserError):
    """Training itself has gone wrong, on all ranks alike."""


class RankError(UserError):
    """Went wrong in the middle of a run, perhaps on one rank alone: whoever meets it speaks."""


class WorkerLost(Exception):
    """A process that loads clips for a rank is gone; starting again helps."""


def distinct(value: float, limit: float, spec: str) -> tuple[str, str]:
    """Two different numbers as text with at least the digits of `spec` (".1%", ",.2f"), and enough to differ."""
    form, first, kind = spec[:-2], int(spec[-2]), spec[-1]
    texts = [(f"{value:{form}{digits}{kind}}", f"{limit:{form}{digits}{kind}}") for digits in range(first, 18)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])


def shortened(text: str, most: int = 120) -> str:
    """The beginning of a text, on one line and printable, for a message: whatever a file holds, it stays a sentence."""
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return text if text.isprintable() else repr(text)[1:-1]
