"""Token classification as a chain's task: sentences of words, a tag for each, measured by whole entities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdistill import data
from jaxdistill.config.data_schema import DataConfig
from jaxdistill.data.tagged import TaggedRows, encode_tags, found_tags, load_tagged
from jaxdistill.data.words import WordDataset, tokenize_words
from jaxdistill.errors import DataError
from jaxdistill.stages.inputs import read_splits
from jaxdistill.stages.loading import Loading
from jaxdistill.train.evaluate_positions import evaluate_tags, tag_logits
from jaxdistill.typing import Params


@dataclass(frozen=True)
class TaggedCorpus:
    """The sentences of every split; `tags`: int32 [W] of each split's words; `names`: of the tags in that order."""

    splits: dict[str, TaggedRows]
    tags: dict[str, np.ndarray]
    names: tuple[str, ...]
    named: bool = True

    @property
    def labels(self) -> TaggedCorpus:
        """Itself: it has names."""
        return self


@dataclass(frozen=True)
class Tagging:
    """What token classification reads and measures."""

    task: str = "token_classification"

    def read(self, config: DataConfig, loading: Loading) -> TaggedCorpus:
        """Sentences and tags of every split; a share of train is held out by hash where validation is left out."""
        rows = read_splits(config, load_tagged)
        names = config.label_names or _names(rows["train"], loading)
        return TaggedCorpus(rows, {split: encode_tags(part, names) for split, part in rows.items()}, names)

    def tokenize(
        self,
        corpus: TaggedCorpus,
        split: str,
        tokenizer: data.Tokenizer,
        config: DataConfig,
        *,
        max_length: int,
        truncate: bool,
    ) -> WordDataset:
        """Sentences as tokens, each word's tag on its first."""
        tags = corpus.tags[split]
        return tokenize_words(corpus.splits[split], tokenizer, tags, max_length=max_length, truncate=truncate)

    def logits(self, model: Any, params: Params, dataset: WordDataset, batches: Any, mesh: Any) -> np.ndarray:
        """Those at words' first tokens."""
        return tag_logits(model, params, dataset, batches, mesh)

    def measure(
        self,
        student: np.ndarray,
        teacher: np.ndarray | None,
        dataset: WordDataset,
        corpus: TaggedCorpus,
        config: DataConfig,
    ) -> dict[str, float]:
        """Entities' precision, recall and F1, words' accuracy, and how close to the teacher."""
        return evaluate_tags(student, teacher, dataset, corpus.names)


def _names(rows: TaggedRows, loading: Loading) -> tuple[str, ...]:
    """What the tags are called: as the source says, as a given model of these tags does, or as they are found."""
    if rows.tag_names is not None:
        return rows.tag_names
    found = found_tags(rows)
    for known in loading.inputs.given_names(saved_for="token_classification"):
        if len(known) == found if isinstance(found, int) else set(found) <= set(known):
            return known
    if isinstance(found, int):
        raise DataError(
            f"{rows.source}: tags are integers without names, of which entities cannot be told; list the names of 0 to "
            f"{found - 1} in data.label_names"
        )
    return found
