"""Next-token prediction: what of language modelling is a decoder's alone."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxdistill import data
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.data import text
from jaxdistill.stages.inputs import is_pretrained
from jaxdistill.stages.loading import Loading


class NextTokens:
    """Causal language models."""

    task: Literal["causal_lm"] = "causal_lm"

    def student_config(self, loading: Loading, stage: ChainStage, tokenizer: data.Tokenizer) -> Any:
        """A fresh student takes what it does not say from its teacher, or its special tokens from the tokenizer."""
        student = stage.config.student
        if is_pretrained(student):
            return loading.inputs.model_config(student)
        first = next(iter(stage.teachers), stage.warm_start_teacher)
        teacher = loading.teacher_config(first) if first else None
        if teacher is not None:
            return loading.student_config(stage, teacher=teacher)
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        return dataclasses.replace(loading.student_config(stage, vocab_size=tokenizer.max_id + 1), **ends)

    def has_head(self, loading: Loading, reference: ResolvedTeacher) -> bool:
        """Every decoder that loads."""
        return True

    def check_text(self, split: text.TextSplit) -> None:
        """Nothing that is not seen when the text is opened."""

    def named(self, metrics: dict[str, float]) -> dict[str, float]:
        """As they are."""
        return metrics
