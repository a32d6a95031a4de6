"""What may be written about data: frozen dataclasses, validated by pydantic."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from jaxdistill.config.numbers import STRICT, Fraction, Integer, NonNegative, Number, Positive

SOURCES = ("train", "validation", "test")
"""The splits of a `DataConfig`."""

DATA_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
"""Extensions of the files that rows are read from."""

TEXT_FORMATS = (".txt", ".text")
"""Extensions of plain text, which language models read besides."""

TAGGED_FORMATS = (".txt", ".conll", ".bio", ".iob")
"""Extensions of files with a word and its tag a line, which token classification reads besides."""

LIST_FORMATS = (".json", ".jsonl", ".parquet", ".arrow")
"""Extensions of the files whose columns may hold lists."""

ASSET_SPLITS = {"minilm-l6": (), "sentiment": SOURCES}
"""Named assets, and the splits of those that are data sets; a model has none."""


@dataclass(frozen=True)
class SourceConfig:
    """Where rows come from: exactly one of a local file, a hub data set or a named asset.

    path: csv, tsv, json, jsonl, parquet or arrow file. hub: hub id, with `config` (subset) and `split`.
    asset: name from `jaxdistill fetch`, with `split`. limit: read only the first so many rows.
    """

    __pydantic_config__ = STRICT
    path: str | None = None
    hub: str | None = None
    asset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: Positive | None = None


@dataclass(frozen=True)
class UnlabelledConfig(SourceConfig):
    """More text for the teachers to label: a source of which only the text is read.

    text: its text columns, as many as `data.text` has (default: those). vocabulary: true, instead of a path, a hub id
    or an asset: every whole word that the student's tokenizer knows, one a row.
    """

    __pydantic_config__ = STRICT
    text: tuple[str, ...] | None = None
    vocabulary: bool = False


@dataclass(frozen=True)
class AugmentConfig:
    """Variants of the training text for the teachers to label (arXiv:1903.12136, arXiv:1909.10351).

    copies: variants of each row. mask, replace: probability that a word becomes the mask token, or another word of the
    training text. ngram: probability that only one to five consecutive words are kept.
    """

    __pydantic_config__ = STRICT
    copies: Positive = 1
    mask: Fraction = 0.05
    replace: Fraction = 0.1
    ngram: Annotated[Number, Field(ge=0, le=1)] = 0.25
    seed: NonNegative = 0


@dataclass(frozen=True)
class PromptConfig:
    """Columns of prompt and completion: a language model reads both, and its loss is taken on completions alone."""

    __pydantic_config__ = STRICT
    prompt: str
    completion: str


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens a masked language model has to find again, and what is put in their place (arXiv:1810.04805).

    probability: share of each row's tokens, special ones left out. mask, random: share of those that become the mask
    token, and any other token; the rest stay as they are. whole_words: all tokens of a word together.
    """

    __pydantic_config__ = STRICT
    probability: Annotated[Number, Field(gt=0, lt=1)] = 0.15
    mask: Annotated[Number, Field(ge=0, le=1)] = 0.8
    random: Annotated[Number, Field(ge=0, le=1)] = 0.1
    whole_words: bool = False


PACKINGS: dict[str, Literal["concat", "first_fit", "none"]] = {"causal_lm": "concat", "masked_lm": "first_fit"}
"""What a language model's documents are made rows by where nobody says."""


@dataclass(frozen=True)
class DataConfig:
    """Data of a run or, written in a stage, of that stage (only the keys written there differ).

    task: what the models do; keys that only another task reads are errors.
    text: one column, or two for a pair; masked_lm: one column; causal_lm: that, or {prompt: …, completion: …}.
    max_length: sequences are cut to so many tokens; left out, the models' own positions are the limit and a longer
    sequence is an error unless `truncate` is true. label_names: names of the labels in the order of their integers
    (default: the teacher's, or the values found).
    unlabelled: text without labels that stages with a teacher train on besides `train` (distillation terms count it,
    label terms do not); a text that is also in validation or test is left out.
    augment: variants of the training text, likewise without labels.
    validation_share: share of train carved off by hash when `validation` is left out.
    batching: `bucketed` groups examples of similar length, `padded` leaves them in shuffled order; `packed` does that
    too and puts several into a row, of which none sees another. An update has as many examples in each.
    shuffle_window: batches whose examples are grouped by length together (`bucketed`).
    on_bad_row: `error`, or `skip` (counted and reported).

    For causal_lm and masked_lm, `max_length` is the length of every sequence (left out: what all models have positions
    for). packing: `concat` joins documents and cuts the stream into sequences, `first_fit` packs whole documents (a
    longer one is cut), `none` gives each sequence one document; left out, `concat` for causal_lm and `first_fit` for
    masked_lm, whose separators around every document a cut would take away. masking: of masked_lm. sample_by: what a
    document is in a text file. streaming: read in file order without random access (a hub data set is not downloaded
    first), shuffled in a window of `shuffle_window` documents. repeat: start again when the documents are used up; with
    false, too few for `steps` is an error. workers: processes that tokenise (0: threads of this one).

    For token_classification, `tokens` and `tags` are the columns of words and of their tags, and label_names the tags.
    For question_answering, `question`, `context`, `answers` and `id` are columns of flat rows (SQuAD's nested JSON has
    names of its own). A context too long for max_length becomes several windows, which share `doc_stride` tokens.
    Answers are chosen among the n_best starts and ends of each window and have at most max_answer_length tokens.
    null_threshold: how much better than the best answer "no answer" must score to be given (left out: 0 where the
    training data has questions without an answer, otherwise it never is).
    """

    __pydantic_config__ = STRICT
    task: Literal["classification", "causal_lm", "masked_lm", "token_classification", "question_answering"] = (
        "classification"
    )
    train: SourceConfig | None = None
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    unlabelled: tuple[UnlabelledConfig, ...] = ()
    augment: AugmentConfig | None = None
    text: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] | PromptConfig = ("text",)
    label: str = "label"
    label_names: tuple[str, ...] | None = None
    max_length: Annotated[Integer, Field(ge=3)] | None = None
    truncate: bool | None = None
    batching: Literal["padded", "bucketed", "packed"] = "bucketed"
    shuffle_window: Positive = 64
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    on_bad_row: Literal["error", "skip"] = "error"
    packing: Literal["concat", "first_fit", "none"] | None = None
    masking: MaskingConfig = MaskingConfig()
    sample_by: Literal["line", "paragraph", "document"] = "paragraph"
    streaming: bool = False
    repeat: bool = True
    workers: NonNegative = 0
    tokens: str = "tokens"
    tags: str = "tags"
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    id: str = "id"
    doc_stride: NonNegative = 128
    n_best: Positive = 20
    max_answer_length: Positive = 30
    null_threshold: Number | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of text: as many as there are, prompt before completion."""
        return (self.text.prompt, self.text.completion) if isinstance(self.text, PromptConfig) else self.text
