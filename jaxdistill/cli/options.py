"""Options that only one kind of model has."""

from __future__ import annotations

from collections.abc import Mapping

from jaxdistill.errors import UserError


def refuse_options(options: Mapping[str, object], reason: str) -> None:
    """Refuse what was given of options that mean nothing for this model.

    Args:
      options: values by name; None, False and an empty tuple are what was not given.
      reason: what the model is.

    Raises:
      UserError: naming all that was given.
    """
    given = [name for name, value in options.items() if value is not None and value is not False and value != ()]
    if given:
        raise UserError(f"{reason}, for which {', '.join(given)} means nothing; leave it out")
