"""Checking the fields of a configuration: problems are collected, so that the user sees all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard


class Checks:
    """Looks at `values` field by field; `problems` gets one line for every value that cannot be built."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.problems: list[str] = []

    def expect(self, name: str, valid: bool, expected: str) -> bool:
        """Whether the field is valid, as the caller found."""
        if not valid:
            self.problems.append(f"{name}={self.values[name]!r} (expected {expected})")
        return valid

    def whole(self, name: str, least: int) -> bool:
        """Whether the field is an integer of at least `least`."""
        value = self.values[name]
        valid = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return self.expect(name, valid, f"a whole number ≥ {least}")

    def positive(self, name: str) -> bool:
        """Whether the field is a number above 0."""
        value = self.values[name]
        return self.expect(name, is_number(value) and value > 0, "a number > 0")


def is_number(value: Any) -> TypeGuard[int | float]:
    """An integer or float that is no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
