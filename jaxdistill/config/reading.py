"""Strict YAML and `key.path=value` overrides: text to plain dicts and lists, nothing interpreted yet."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxdistill.config.problems import Problem, did_you_mean, dotted, shown
from jaxdistill.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys and reads scalars by YAML 1.2.

    YAML 1.1, PyYAML's own, reads `1e-4` as text, `no` and `off` as booleans, `010` as eight and `1:30` as ninety.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a key must be text (put it in quotes)", problem_mark=key.start_mark)
            if key.value in seen:
                message = f"key '{key.value}' was already given on line {seen[key.value]}; keep one of them"
                raise yaml.MarkedYAMLError(problem=message, problem_mark=key.start_mark)
            seen[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


_MOST_VALUES = 100_000
"""Aliases of aliases can stand for billions of values in a few lines."""

_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "merge": (r"<<", "<"),
}
_StrictLoader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _characters = ["" if character == "\0" else character for character in _first]
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _characters)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_integer)


def parse_yaml(text: str, *, where: str) -> Any:
    """YAML text as plain values.

    Raises:
      ConfigError: syntax error, repeated key, key that is not text, or a tag we do not read, with line and column.
    """
    try:
        return _unshared(yaml.load(text, Loader=_StrictLoader), itertools.count(1))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: {place}{message}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(
            f"{where}: an alias refers to the value it stands in, or values are nested too deep"
        ) from error
    except ValueError as error:  # a number that Python does not read, or too many values
        raise ConfigError(f"{where}: {error}") from error


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which only YAML 1.2 takes for something else, such as `1e5`."""


for _first, _resolvers in _StrictLoader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def dump_yaml(value: Any) -> str:
    """Plain values as YAML text that `parse_yaml`, and any other reader, reads back the same."""
    # Without escapes PyYAML writes U+0085 and its like as line breaks, and reads them back as spaces.
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=120)


def _unshared(value: Any, count: Iterator[int]) -> Any:
    """A copy in which aliases of one anchor are separate values, so that an override changes one of them."""
    if next(count) > _MOST_VALUES:
        raise ValueError(f"holds more than {_MOST_VALUES} values (aliases counted each time they are used)")
    if isinstance(value, dict):
        return {key: _unshared(item, count) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item, count) for item in value]
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
      ConfigError: the file is missing, unreadable, not UTF-8, empty, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        names = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file{did_you_mean(path.name, names)}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a directory; expected a YAML file") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8 text; save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    value = parse_yaml(text, where=str(path))
    if value is None:
        raise ConfigError(f"{path}: is empty; expected a mapping with name, data and stages")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: got {shown(value)}; expected a mapping with name, data and stages")
    return value


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    """Write each `a.b.0.c=value` into `raw`, in order; the value is YAML.

    A part of the path is a key, the index of a list item, or, in `stages`, a stage's name. Mappings that are not
    there are created; list items are not.

    Returns:
      What could not be applied; the rest has been.
    """
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(Problem((), f"override {override!r}: expected key.path=value"))
            continue
        try:
            value = parse_yaml(text, where=f"override {override!r}")
        except ConfigError as error:
            problems += [Problem((), text) for text in error.problems]
            continue
        if message := _assign(raw, parts, value):
            problems.append(Problem((), f"override {override!r}: {message}"))
    return problems


def _assign(raw: dict[str, Any], parts: list[str], value: Any) -> str | None:
    """Set one value, or say why it cannot be."""
    here: Any = raw
    for depth, part in enumerate(parts):
        place = dotted(parts[:depth])
        if isinstance(here, list):
            index = _index(here, part, place)
            if isinstance(index, str):
                return index
            key: Any = index
        elif isinstance(here, dict):
            key = part
        else:
            return f"{place} is {shown(here)}, which has nothing inside; expected a mapping or a list"
        if depth == len(parts) - 1:
            here[key] = value
            return None
        if isinstance(here, dict) and here.get(key) is None:
            for end, following in enumerate(parts[depth + 1 :], start=depth + 1):
                if following.isdigit():
                    whole = dotted(parts[:end])
                    return f"{whole} is not there, so it has no item {following}; give the whole list, {whole}=[...]"
            for inner in reversed(parts[depth + 1 :]):
                value = {inner: value}
            here[key] = value
            return None
        here = here[key]
    return None


def _index(items: list[Any], part: str, place: str) -> int | str:
    """The position that `part` means in a list, or a message."""
    names = [item.get("name") for item in items if isinstance(item, dict)] if place == "stages" else []
    if part in names:
        return next(i for i, item in enumerate(items) if isinstance(item, dict) and item.get("name") == part)
    if part.isascii() and part.isdigit():
        if int(part) < len(items):
            return int(part)
        return f"{place} has {len(items)} item(s), counted from 0; there is no {place}.{part}"
    if place == "stages":
        texts = [name for name in names if isinstance(name, str)]
        return f"no stage is named '{part}' (stages: {', '.join(texts)}){did_you_mean(part, texts)}"
    return f"{place} is a list; expected the index of an item (counted from 0), got '{part}'"
