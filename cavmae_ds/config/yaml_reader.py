"""YAML of run files and overrides to plain values: what cannot be meant is refused, with line and remedy.

YAML 1.1 reads `1:30` as 90, `010` as 8 and `2e-4` as text; a few lines of aliases stand for billions of values. What
is accepted here is small, has one meaning, and shares no part between two sections.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cavmae_ds.errors import ConfigError, shortened

MOST_BYTES = 256 << 10
"""Of a run file: the longest recipe has 3 kB."""
MOST_DEPTH = 20
MOST_VALUES = 10_000
"""Keys and values, with aliases expanded."""
MOST_CHARACTERS = 2_000
"""Of one key or value; an S3 key has at most 1,024."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_yaml(path: Path) -> Any:
    """The values in a run file. Raises ConfigError: cannot be read, too large, not UTF-8, not YAML; see parse_yaml."""
    what = f"the run file {str(path)!r}"
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{what} is larger than {MOST_BYTES >> 10} KiB; give a file of `section:` mappings")
    if content.startswith(_UTF_16) or b"\0" in content[:2]:
        raise ConfigError(f"{what} is encoded in UTF-16; save it as UTF-8 (iconv -f utf-16 -t utf-8 OLD > NEW)")
    try:
        return parse_yaml(content.decode("utf-8-sig"), what)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{what} is not encoded in UTF-8 (line {line} has the byte 0x{content[error.start]:02x}, as in Latin-1 or "
            "Windows-1252); save it as UTF-8 (iconv -f windows-1252 -t utf-8 OLD > NEW)"
        ) from None


def parse_yaml(text: str, what: str) -> Any:
    """The values in a text. Raises ConfigError, which begins with `what`: not YAML, ambiguous, too large or deep."""
    try:
        return _unshared(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{what} is not valid YAML{where}: {shortened(problem, 400)}") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `2e-4` as a number and a date as text, and refuses what the module says."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._values = 0
        self._values_in: dict[int, int] = {}  # by id of a composed node, with aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._values
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _refusal(f"it is nested deeper than {MOST_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._values_in:
                raise _refusal(f"the alias *{event.anchor} stands inside what it stands for", event.start_mark)
            self._values += self._values_in[id(node)]
        else:
            self._values += 1
            self._values_in[id(node)] = self._values - before
        if self._values > MOST_VALUES:
            raise _refusal(f"it has more than {MOST_VALUES:,} values, with aliases expanded", event.start_mark)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MOST_CHARACTERS:
            raise _refusal(
                f"{shortened(node.value, 40)!r} has {len(node.value):,} characters, allowed are {MOST_CHARACTERS:,}",
                node.start_mark,
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be a name", key.start_mark)
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise _refusal(
                    f"key {shortened(key.value)!r} is given twice, in line {lines[name]} and in line {line}; keep one",
                    key.start_mark,
                )
            lines[name] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError) as error:  # `!!int x`, `!!bool maybe`, a date of month 13
            kind = node.tag.rpartition(":")[2]
            raise _refusal(f"{shortened(str(node.value), 40)!r} is no {kind}", node.start_mark) from error

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return str(self.construct_scalar(node))

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        kind = node.tag.rpartition(":")[2]
        value: int | float = (self.construct_yaml_int if kind == "int" else self.construct_yaml_float)(node)
        if ":" in text:
            raise _refusal(f'{text} would be read as {value} (base 60); write {value}, or "{text}"', node.start_mark)
        if kind == "int" and re.fullmatch(r"[-+]?0[0-7_]+", text) and value:
            decimal = int(text.replace("_", ""))
            raise _refusal(f"{text} would be read as octal; write {decimal} or {value}", node.start_mark)
        if kind == "int" and not -(2**63) <= value < 2**63:
            raise _refusal(f"{shortened(text, 40)} is larger than any number of use here", node.start_mark)
        return value


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which the loader would read as a number."""


for _each in (_Loader, Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_text)  # a run_dir may be a date


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _unshared(value: Any) -> Any:
    """Copies where aliases gave one object twice: an override changes one section, not each that was written alike."""
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    return [_unshared(part) for part in value] if isinstance(value, list) else value
