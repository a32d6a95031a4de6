"""Which tokens a document becomes, and which token each position is to predict."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import pytest
from made_text import BEGIN, END, FIRST_WORD, NO_LABEL

from jaxdistill.data import Tokenizer
from jaxdistill.data.text.encode import TextEncoder

W0, W1, W2, W3 = range(FIRST_WORD, FIRST_WORD + 4)
NO = NO_LABEL


def _documents(encoder: TextEncoder, *documents: tuple[str, ...]) -> list[tuple[list[int], list[int]]]:
    block = pickle.loads(pickle.dumps(encoder))(documents)
    tokens, offsets = block["tokens"], block["offsets"]
    return [
        (tokens[start:end, 0].tolist(), tokens[start:end, 1].tolist()) for start, end in itertools.pairwise(offsets)
    ]


def test_labels_are_the_following_tokens_of_the_same_document(ends: Tokenizer) -> None:
    encoder = TextEncoder(ends, is_prompted=False)
    assert _documents(encoder, ("w0 w1 w2",), ("w3",)) == [
        ([W0, W1, W2, END], [W1, W2, END, NO]),
        ([W3, END], [END, NO]),
    ]


@pytest.mark.parametrize("name", ["begins", "wraps"])
def test_special_tokens_are_the_tokenizers_own_and_the_end_stands_once(
    name: str, request: pytest.FixtureRequest
) -> None:
    encoder = TextEncoder(request.getfixturevalue(name), is_prompted=False)
    assert _documents(encoder, ("w0 w1",)) == [([BEGIN, W0, W1, END], [W0, W1, END, NO])]


def test_a_tokenizer_without_an_end_token_adds_none(tokenizer: Tokenizer) -> None:
    """BERT's: [CLS] … [SEP]."""
    ((ids, labels),) = _documents(TextEncoder(tokenizer, is_prompted=False), ("a film",))
    assert (ids[0], ids[-1], len(ids)) == (2, 3, 4)
    assert labels == [*ids[1:], NO]


def test_the_first_label_is_the_completions_first_token(ends: Tokenizer) -> None:
    encoder = TextEncoder(ends, is_prompted=True)
    assert _documents(encoder, ("w0 w1", "w2 w3"), ("", "w2 w3"), ("w0", "w1")) == [
        ([W0, W1, W2, W3, END], [NO, W2, W3, END, NO]),
        ([W2, W3, END], [W3, END, NO]),  # nothing stands before w2 that could predict it
        ([W0, W1, END], [W1, END, NO]),
    ]


@pytest.mark.parametrize("name", ["begins", "wraps"])
def test_prompt_and_completion_are_wrapped_once(name: str, request: pytest.FixtureRequest) -> None:
    encoder = TextEncoder(request.getfixturevalue(name), is_prompted=True)
    assert _documents(encoder, ("w0 w1", "w2"), ("", "w2")) == [
        ([BEGIN, W0, W1, W2, END], [NO, NO, W2, END, NO]),
        ([BEGIN, W2, END], [W2, END, NO]),
    ]


def test_the_boundary_is_exact_where_a_tokenizer_would_join_the_words(tmp_path: Path) -> None:
    """ "ab" is one token, and yet "a" is the prompt and "b" the completion."""
    import tokenizers

    from jaxdistill.data import load_tokenizer

    vocab = {"<pad>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}'
    )
    joined = load_tokenizer(tmp_path)
    assert _documents(TextEncoder(joined, is_prompted=False), ("ab",)) == [([4, 1], [1, NO])]
    assert _documents(TextEncoder(joined, is_prompted=True), ("a", "b")) == [([2, 3, 1], [3, 1, NO])]
