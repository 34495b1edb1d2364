"""What to type where a package is missing: pip alone would replace parts of the set that was made to fit together."""

import shlex
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def pip_install(*packages: str) -> str:
    """A command for a message, with the constraints of the checkout; a wheel has none."""
    constraints = CHECKOUT / "launch" / "constraints.txt"
    constrained = ["-c", str(constraints)] if constraints.is_file() else []
    return shlex.join(["pip", "install", *constrained, *packages])
