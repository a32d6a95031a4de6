"""From files, hub data sets and named assets to shuffled, resumable batches of tokens: padded, or packed (`text`)."""

from jaxdistill.data import assets, text
from jaxdistill.data.augment import augment
from jaxdistill.data.batching import EvalBatches, bucket_lengths, eval_batches, steps_per_epoch, total_steps
from jaxdistill.data.cache import default_cache_dir
from jaxdistill.data.example_packing import packed_shapes, widest_packed
from jaxdistill.data.labels import encode_labels
from jaxdistill.data.pipeline import train_iterator
from jaxdistill.data.questions import QuestionRows, load_questions
from jaxdistill.data.rows import Rows, split_by_hash
from jaxdistill.data.sources import load_rows, load_texts
from jaxdistill.data.tagged import TaggedRows, encode_tags, load_tagged
from jaxdistill.data.tokenize import (
    TokenizedDataset,
    Tokenizer,
    check_same_tokens,
    check_vocabulary,
    load_tokenizer,
    tokenize,
)
from jaxdistill.data.windows import SpanDataset, tokenize_questions
from jaxdistill.data.words import WordDataset, tokenize_words

__all__ = [
    "EvalBatches",
    "QuestionRows",
    "Rows",
    "SpanDataset",
    "TaggedRows",
    "TokenizedDataset",
    "Tokenizer",
    "WordDataset",
    "assets",
    "augment",
    "bucket_lengths",
    "check_same_tokens",
    "check_vocabulary",
    "default_cache_dir",
    "encode_labels",
    "encode_tags",
    "eval_batches",
    "load_questions",
    "load_rows",
    "load_tagged",
    "load_texts",
    "load_tokenizer",
    "packed_shapes",
    "split_by_hash",
    "steps_per_epoch",
    "text",
    "tokenize",
    "tokenize_questions",
    "tokenize_words",
    "total_steps",
    "train_iterator",
    "widest_packed",
]
