"""What may be written about a number that changes with the optimizer step: weights, temperatures, progress."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, WrapValidator
from pydantic_core import PydanticCustomError

from jaxdistill.config.numbers import STRICT


def _number(value: Any) -> Any:
    """A plain number; the error says so by itself, whatever key it was read from."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PydanticCustomError("schedule_number", "Input should be a number")
    return value


_ScheduleNumber = Annotated[float, BeforeValidator(_number)]


@dataclass(frozen=True)
class Schedule:
    """A number as a function of the optimizer step.

    `linear` and `cosine` go from `start` to `end` (also written `from` and `to`), beginning `after` and taking `over`,
    each a share of the stage's steps (below 1) or a whole number of steps; `over` left out: until the stage ends.
    `steps` takes the first of `values` until the first moment of `at`, then the second, and so on.
    """

    __pydantic_config__ = STRICT
    schedule: Literal["linear", "cosine", "steps"]
    start: Annotated[_ScheduleNumber | None, Field(validation_alias=AliasChoices("start", "from"))] = None
    end: Annotated[_ScheduleNumber | None, Field(validation_alias=AliasChoices("end", "to"))] = None
    after: _ScheduleNumber = 0.0
    over: _ScheduleNumber | None = None
    values: tuple[_ScheduleNumber, ...] = ()
    at: tuple[_ScheduleNumber, ...] = ()

    @property
    def extremes(self) -> tuple[float, ...]:
        """Numbers between which all others lie; none if it says none."""
        return self.values or tuple(number for number in (self.start, self.end) if number is not None)


def _at_least_0(value: Any, handler: Any) -> Any:
    return _constant(value, handler, lambda number: 0 <= number < math.inf, "a number greater than or equal to 0")


def _above_0(value: Any, handler: Any) -> Any:
    return _constant(value, handler, lambda number: 0 < number < math.inf, "a number greater than 0")


def _from_0_to_1(value: Any, handler: Any) -> Any:
    return _constant(value, handler, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def _constant(value: Any, handler: Any, in_range: Callable[[float], bool], expected: str) -> Any:
    """A number, read here so that the error speaks of numbers alone; a schedule by pydantic, its range in `checks`."""
    if isinstance(value, Mapping | Schedule):
        return handler(value)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not in_range(number):
        raise PydanticCustomError(
            "scheduled_number", "Input should be {expected}", {"expected": f"{expected}, or a schedule"}
        )
    return number


Weight = Annotated[float | Schedule, WrapValidator(_at_least_0)]
Temperature = Annotated[float | Schedule, WrapValidator(_above_0)]
Progress = Annotated[float | Schedule, WrapValidator(_from_0_to_1)]
