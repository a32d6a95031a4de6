"""What a row of a language model's data looks like: tokens shifted to labels, or hidden between separators."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxdistill.config.data_schema import PACKINGS, DataConfig, PromptConfig
from jaxdistill.data.text.encode import TextEncoder
from jaxdistill.data.text.masking import Masking, make_masking
from jaxdistill.data.text.words import Separators, WordEncoder
from jaxdistill.data.tokenize import Tokenizer
from jaxdistill.errors import ConfigError


@dataclass(frozen=True)
class RowFormat:
    """How documents become rows of `length` tokens, padded with `pad_id`.

    separators, masking: a masked language model's; None for a causal one.
    """

    encoder: TextEncoder | WordEncoder
    packing: Literal["concat", "first_fit", "none"]
    length: int
    pad_id: int
    separators: Separators | None = None
    masking: Masking | None = None

    @property
    def masked(self) -> tuple[Any, ...]:
        """What masks depend on besides the rows, as JSON; empty without."""
        return () if self.masking is None else dataclasses.astuple(self.masking.config)


def row_format(data: DataConfig, tokenizer: Tokenizer, length: int) -> RowFormat:
    """What a language model's data says, for rows of `length` tokens.

    Raises:
      ConfigError: a length that the separators alone fill.
      ModelError: a masked language model's tokenizer has no mask token.
    """
    packing = data.packing or PACKINGS[data.task]
    if data.task == "causal_lm":
        encoder = TextEncoder(tokenizer, is_prompted=isinstance(data.text, PromptConfig))
        return RowFormat(encoder, packing, length, tokenizer.pad_id)
    separators = Separators.of(tokenizer)
    if length <= separators.size:
        raise ConfigError(
            f"data.max_length: {length} tokens leave no room between the {separators.size} that the tokenizer puts "
            f"around every text; set at least {separators.size + 1}"
        )
    masking = make_masking(data.masking, tokenizer, length=length - separators.size, packed=packing != "none")
    encoder = WordEncoder(tokenizer, whole_words=data.masking.whole_words)
    return RowFormat(encoder, packing, length, tokenizer.pad_id, separators, masking)
