"""Word tokenizers made on the spot: one token a word, so that a test can say which tokens it expects."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_text import make_tokenizer

from jaxdistill.data import Tokenizer


@pytest.fixture(scope="session")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Has an end-of-sequence token (1) and adds no special token, as GPT-2's and SmolLM2's."""
    return make_tokenizer(tmp_path_factory.mktemp("ends"), template=None)


@pytest.fixture(scope="session")
def begins(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Puts a beginning-of-sequence token (2) before a text, as Llama's."""
    return make_tokenizer(tmp_path_factory.mktemp("begins"), template="<s> $A")


@pytest.fixture(scope="session")
def wraps(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Adds both by itself."""
    return make_tokenizer(tmp_path_factory.mktemp("wraps"), template="<s> $A </s>")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
