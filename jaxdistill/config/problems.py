"""Wording: what pydantic found, and what we find ourselves, as one line a problem with its dotted path."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import ValidationError

Path = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "dataclass_type": "a mapping",
}

_REQUIRED = {
    ("Run", "data"): "{train: {path: FILE}, ...}",
    ("Run", "stages"): "a list of stages",
    ("StageConfig", "train"): "{epochs: N, ...} or {steps: N, ...}",
}


class Problem(NamedTuple):
    """One thing that is wrong, and where; `str()` is the line the user reads.

    unknown_key: the key means nothing, so nothing else depends on its value.
    """

    path: Path
    text: str
    unknown_key: bool = False

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text


def dotted(path: Iterable[str | int]) -> str:
    """`("stages", 0, "name")` as `stages.0.name`, the form overrides take."""
    return ".".join(text if (text := str(part)).isprintable() else repr(text) for part in path)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the closest candidate, or nothing if none is close."""
    names = list(candidates)
    # Shortened words (`layers`, `acc`) are too far off by the letters.
    close = [name for name in names if name.endswith((f"_{word}", f"_{word}s"))]
    close = close or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    close = close or [name for name in names if len(word) > 1 and name.startswith(word)]
    return f"; did you mean '{close[0]}'?" if close else ""


def shown(value: Any) -> str:
    """A value as the user would write it in YAML, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == [] or value == {}:
        return "an empty list" if isinstance(value, list) else "an empty mapping"
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def from_validation(error: ValidationError, root: Any, raw: Any, *, prefix: Path = ()) -> list[Problem]:
    """Pydantic's errors about `raw` (checked against type `root`) as problems, without the noise of its unions.

    Pydantic reports every member of a union that did not fit. Only those of the member that the value's kind (mapping,
    list, text) asks for are kept; a value whose kind no member takes gets one line that names them all.
    """
    problems = []
    for entry in error.errors(include_url=False):
        place = _locate(entry["loc"], root, raw)
        text = _wording(entry, place) if place is not None else None
        if place is not None and text is not None:
            unknown_key = entry["type"] == "unexpected_keyword_argument"
            problems.append(Problem(prefix + place.path, text, unknown_key=unknown_key))
    return list(dict.fromkeys(problems))


class _Place(NamedTuple):
    """Where an error is: its path in the YAML, the type expected and the value found there, the dataclass around it.

    misfit: the type is a union, and the value is of a kind that none of its members takes.
    """

    path: Path
    type: Any
    value: Any
    owner: Any = None
    misfit: bool = False


def _locate(loc: Iterable[str | int], root: Any, raw: Any) -> _Place | None:
    """Follow pydantic's `loc`, which mixes keys with names of union members, through the types.

    None if the error is about another member of a union than the one that was meant.
    """
    path: Path = ()
    kind, value, owner = _plain(root), raw, None
    for item in loc:
        if _is_union(kind):
            member = _tagged(kind, item)
            if member is None:
                member = _member_for(kind, value)
                if member is None:
                    return _Place(path, kind, value, owner, misfit=True)
                if not _is_label_of(item, member):
                    return None
            kind = _plain(member)
            continue
        owner, path = kind, (*path, item)
        if dataclasses.is_dataclass(kind):
            kind = _plain(typing.get_type_hints(kind, include_extras=True).get(str(item), Any))
            value = value.get(item) if isinstance(value, Mapping) else None
        else:
            kind = _plain((*typing.get_args(kind), Any)[0])
            value = value[item] if isinstance(value, list | tuple) and isinstance(item, int) else None
    if _is_union(kind) and (member := _member_for(kind, value)) is not None and not _tags(kind):
        kind = _plain(member)
    return _Place(path, kind, value, owner)


def _plain(kind: Any) -> Any:
    """The type without `Annotated`, `| None` and pydantic's extras."""
    while True:
        if typing.get_origin(kind) is Annotated:
            kind = typing.get_args(kind)[0]
        elif _is_union(kind):
            members = [member for member in typing.get_args(kind) if member is not type(None)]
            if len(members) > 1:
                return kind
            kind = members[0]
        else:
            return kind


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _members(kind: Any) -> list[Any]:
    return [_plain(member) for member in typing.get_args(kind) if member is not type(None)]


def _tags(kind: Any) -> dict[str, Any]:
    """Tag -> dataclass of a union told apart by its `type` field; empty for other unions."""
    tags: dict[str, Any] = {}
    for member in _members(kind):
        hint = typing.get_type_hints(member).get("type") if dataclasses.is_dataclass(member) else None
        if typing.get_origin(hint) is not Literal:
            return {}
        tags |= dict.fromkeys(typing.get_args(hint), member)
    return tags


def _tagged(kind: Any, item: str | int) -> Any:
    return _tags(kind).get(str(item))


def _member_for(kind: Any, value: Any) -> Any:
    """The member of a union that a value of this kind was meant for, if there is one."""
    members = _members(kind)
    for member in members:
        origin = typing.get_origin(member)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(member):
            return member
        if isinstance(value, list | tuple) and origin is tuple:
            return member
        if isinstance(value, str) and (member is str or (origin is Literal and int not in members)):
            return member
        if isinstance(value, int) and not isinstance(value, bool) and member is int:
            return member
    return None


def _is_label_of(item: str | int, member: Any) -> bool:
    """Whether `item` is how pydantic names this union member in a `loc`."""
    origin = typing.get_origin(member)
    if origin is tuple:
        return str(item).startswith("tuple[")
    if origin is Literal:
        return str(item).startswith("literal[")
    if member is int:  # by its validators
        return str(item).startswith(("int", "function-"))
    return item == member.__name__


def describe(kind: Any) -> str:
    """What a value of this type looks like in YAML."""
    kind = _plain(kind)
    if _is_union(kind):
        if tags := _tags(kind):
            return f"a mapping with a type ({', '.join(tags)})"
        return " or ".join(dict.fromkeys(describe(member) for member in _members(kind)))
    origin = typing.get_origin(kind)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    if origin is tuple:
        return "a list"
    if dataclasses.is_dataclass(kind):
        return f"a mapping (keys: {', '.join(_keys(kind))})"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(kind, "a mapping")


def _keys(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _wording(entry: Any, place: _Place) -> str | None:
    """One pydantic error in our words; None if it only repeats another."""
    code, context, value = entry["type"], entry.get("ctx", {}), entry["input"]
    if place.misfit:
        return f"got {shown(place.value)}; expected {describe(place.type)}"
    if code == "unexpected_keyword_argument":
        keys = _keys(place.owner)
        hint = did_you_mean(str(place.path[-1]), keys) or f"; expected one of {', '.join(keys)}"
        return f"unknown key, got {shown(value)}{hint}"
    if code == "missing":
        required = _REQUIRED.get((getattr(place.owner, "__name__", ""), str(place.path[-1])))
        return f"missing; expected {required or describe(place.type)}"
    if code == "union_tag_not_found":
        return f"got {shown(value)}, which has no type; expected type to be one of {', '.join(_tags(place.type))}"
    if code == "union_tag_invalid":
        tags = _tags(place.type)
        hint = did_you_mean(str(context["tag"]), tags)
        return f"got type {context['tag']!r}; expected one of {', '.join(tags)}{hint}"
    if code == "literal_error":
        choices = [choice for choice in typing.get_args(place.type) if isinstance(choice, str)]
        return f"got {shown(value)}; expected {context['expected']}{did_you_mean(str(value), choices)}"
    if code in ("too_short", "too_long"):
        # Pydantic also says "too short" of a list whose items all failed.
        if code == "too_short" and len(value) >= context["min_length"]:
            return None
        limit = f"at least {context['min_length']}" if code == "too_short" else f"at most {context['max_length']}"
        return f"got {shown(value)}; expected {limit} item(s)"
    if code == "string_pattern_mismatch":
        return f"got {shown(value)}; expected letters, digits, '_' and '-', beginning with a letter or digit"
    expected = _EXPECTED.get(code) or entry["msg"].removeprefix("Input should be ")
    if code in ("not_a_bool", "model_attributes_type"):
        expected = describe(place.type)
    elif code.startswith(("greater_than", "less_than")):
        expected = f"{describe(place.type)} {expected}"
    if code == "string_type" and isinstance(value, int | float):
        expected += f" (in quotes: '{shown(value)}')"
    if code == "tuple_type" and isinstance(value, str):
        expected += f", as in [{value}]"
    return f"got {shown(value)}; expected {expected}"
