"""The numbers a configuration holds, and the strictness with which pydantic reads it."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _not_a_bool(value: Any) -> Any:
    """Python's True is the integer 1, so pydantic would read `steps: true` as one step."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_bool", "Input should be a number")
    return value


Integer = Annotated[int, BeforeValidator(_not_a_bool)]
Number = Annotated[float, BeforeValidator(_not_a_bool)]
Positive = Annotated[Integer, Field(gt=0, lt=2**31)]  # counts and sizes are int32 on the device
NonNegative = Annotated[Integer, Field(ge=0)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]  # what every random generator takes
PositiveFloat = Annotated[Number, Field(gt=0)]
NonNegativeFloat = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]


def readable(count: float) -> str:
    """A number of parameters as people write it: 702M, 1.24B."""
    for unit, sign in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return f"{count / unit:.3g}{sign}"
    return f"{count:.0f}"
