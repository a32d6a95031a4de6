"""Which of a teacher's layers a student of fewer layers starts from."""

from __future__ import annotations

from jaxdistill.errors import ModelError


def layer_indices(layers: str | tuple[int, ...], *, student: int, teacher: int) -> tuple[int, ...]:
    """The teacher layer (0-based) that each of `student` layers takes from `teacher` ones.

    Raises:
      ModelError: the student has more layers than the teacher, or the list does not fit.
    """
    if not isinstance(layers, str):
        if len(layers) != student or any(not 0 <= index < teacher for index in layers):
            raise ModelError(
                f"warm_start.layers: {list(layers)} must name one teacher layer in 0 … {teacher - 1} "
                f"for each of the student's {student} layers"
            )
        return tuple(layers)
    if student > teacher:
        raise ModelError(
            f"warm_start.layers: the student has {student} layers and the teacher only {teacher}; "
            "list a teacher layer for each student layer, or leave `layers` out"
        )
    match layers:
        case "first":
            return tuple(range(student))
        case "last":
            return tuple(range(teacher - student, teacher))
        case _:  # uniform; whole numbers, so that ties are exact
            return tuple((2 * i * teacher + student) // (2 * student) - 1 for i in range(1, student + 1))
