"""Masked-token prediction: what of language modelling is an encoder's alone (arXiv:1810.04805, arXiv:1910.01108).

The student that comes out is a general one: a stage of another run fine-tunes its Hugging Face directory.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxdistill import data, models
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.data import text
from jaxdistill.errors import DataError
from jaxdistill.stages.encoders import encoder_config
from jaxdistill.stages.loading import Loading
from jaxdistill.train.evaluate_text import as_masked

_LOOK_AT = 8
"""Rows at a time."""


class MaskedTokens:
    """Masked language models."""

    task: Literal["masked_lm"] = "masked_lm"

    def student_config(self, loading: Loading, stage: ChainStage, tokenizer: data.Tokenizer) -> Any:
        """A fresh student has its teacher's vocabulary, padding included; a pretrained one its own shape."""
        return encoder_config(loading, stage, tokenizer, vocab_size=tokenizer.max_id + 1)

    def has_head(self, loading: Loading, reference: ResolvedTeacher) -> bool:
        """Every stage's student has one; of a given model its weights tell."""
        return reference.stage is not None or not models.missing_head(loading.inputs.directory(reference), self.task)

    def check_text(self, split: text.TextSplit) -> None:
        """A token of the text that could be masked.

        Raises:
          DataError: there is none.
        """
        batches = iter(split.eval_batches(batch_size=_LOOK_AT))
        try:
            if any((batch["labels"] >= 0).any() for batch in batches):
                return
        finally:
            batches.close()
        raise DataError(
            f"{split.source}: the text is too short: not one of its tokens was chosen to be masked; give more or "
            "longer documents, or raise data.masking.probability"
        )

    def named(self, metrics: dict[str, float]) -> dict[str, float]:
        """A token is guessed from both sides: its perplexity is no causal model's."""
        return as_masked(metrics)
