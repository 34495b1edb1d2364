"""Valid files made wrong: bytes that are flipped, cut, repeated or inserted, and JSON values that become others.

Examples are the same on every run. FUZZ_EXAMPLES=5000 draws others, and more of them, from each test.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from cavmae_ds.errors import UserError

LONGEST_MESSAGE = 2_000
TIMEOUT_S = 300  # of each test; a hang, not a machine under load

_MORE = int(os.environ.get("FUZZ_EXAMPLES", "0"))
_PIECES = (
    *(b"\0", b"\xff", b"\xff\xfe", b"\x1b[31m", b"\xef\xbb\xbf", b"\n", b"\r", b",", b'"', b"'", b":", b"#", b" "),
    *(b"[" * 3000, b"{" * 300, b'{"a":' * 3000, b"9" * 5001, b"-1", b"1e999", b"NaN", b"null", b"../../x", b"x" * 5000),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1.5, -0.0, 2**31, 2**40, 2**63, 10**30, 1e308, "", "1", "pkl", "x" * 3000, "\0", "../../x"),
    *("/etc/passwd", "\x1b[31m", "é", [], {}, [[]], [0], [-1], [2**40, 2**40], ["master", "x"], {"a": 1}, {"": None}),
)


def examples(count: int) -> settings:
    """So many, in the same order on every run, however long one takes under load."""
    return settings(
        max_examples=_MORE or count,
        derandomize=not _MORE,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),  # shrinking a failure could take longer than all the rest
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content of a file after one to four changes."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = at + draw(st.integers(1, 40))
        match draw(st.sampled_from(["flip", "cut", "insert", "replace", "remove", "repeat"])):
            case "flip":
                flipped = bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in content[at : at + 1])
                content = content[:at] + flipped + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "insert":
                content = content[:at] + draw(st.sampled_from(_PIECES)) + content[at:]
            case "replace":
                content = content[:at] + draw(st.sampled_from(_PIECES)) + content[end:]
            case "remove":
                content = content[:at] + content[end:]
            case "repeat":
                content = content[:end] + content[at:]
    return content


@st.composite
def mutated_values(draw: st.DrawFn, values: Any) -> Any:
    """A tree of plain values in which one to three are others, missing or additional."""
    values = copy.deepcopy(values)
    for _ in range(draw(st.integers(1, 3))):
        parents = _containers(values)
        if not parents:
            return values
        parent = draw(st.sampled_from(parents))
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        odd = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        what = draw(st.sampled_from(["change", "change", "change", "remove", "add"]))
        if what == "add" or not keys:
            parent.update({draw(st.sampled_from(["", "extra", *map(str, keys)])): odd}) if isinstance(
                parent, dict
            ) else parent.append(odd)
            continue
        key = draw(st.sampled_from(keys))
        if what == "remove":
            del parent[key]
        else:
            parent[key] = odd
    return values


def mutated_json(values: Any) -> st.SearchStrategy[bytes]:
    """A JSON file with other values, or with other bytes."""
    changed = mutated_values(values).map(lambda other: json.dumps(other).encode())
    return changed | mutated_bytes(json.dumps(values).encode())


def _containers(values: Any) -> list[Any]:
    if not isinstance(values, (dict, list)):
        return []
    inner = values.values() if isinstance(values, dict) else values
    return [values, *(found for value in inner for found in _containers(value))]


def works_or_is_refused(read: Callable[[], Any]) -> bool:
    """Whether it worked. Fails for any other exception than a UserError, and for a message that is no short line."""
    try:
        read()
    except UserError as error:
        text = str(error)
        assert 0 < len(text) < LONGEST_MESSAGE, f"{len(text)} characters: {text[:300]}"
        assert "\n" not in text and "\x1b" not in text, repr(text)
        text.encode()  # it can be printed
        return False
    return True
