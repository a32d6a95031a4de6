from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_rows import WORDS, make_rows

from jaxdistill.data import check_vocabulary, load_tokenizer, tokenize
from jaxdistill.data.tokenize import Tokenizer
from jaxdistill.errors import DataError, ExternalError, ModelError

_RNG = np.random.default_rng(0)
TEXTS = [" ".join(_RNG.choice(WORDS, size)) for size in _RNG.integers(1, 30, 50)] + ["Unwatchable café!", "🙂 ##able"]
PAIRS = TEXTS[::-1]


def _lists(ragged) -> list[list[int]]:
    return [ragged.ids[a:b].tolist() for a, b in zip(ragged.offsets, ragged.offsets[1:], strict=False)]


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("max_length", [None, 12])
def test_same_tokens_as_transformers(
    tokenizer: Tokenizer, tokenizer_dir: Path, tmp_path: Path, pair: bool, max_length: int | None
) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    columns = (TEXTS, PAIRS) if pair else (TEXTS,)
    expected = theirs(*columns, truncation="longest_first" if max_length else False, max_length=max_length)
    rows = make_rows(*columns, labels=[0] * len(TEXTS))
    dataset = tokenize(rows, [tokenizer], max_length=max_length, truncate=True, cache_dir=tmp_path)
    (ragged,) = dataset.encodings
    assert _lists(ragged) == expected["input_ids"]
    assert dataset.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    if pair:
        assert ragged.types is not None
        assert ragged.types.tolist() == [t for types in expected["token_type_ids"] for t in types]
    else:
        assert ragged.types is None
    whole = theirs(*columns)["input_ids"]
    assert dataset.truncated == sum(len(ids) > (max_length or 10**6) for ids in whole)


def test_truncation_side_is_the_tokenizers_own(tokenizer_dir: Path, tmp_path: Path) -> None:
    import transformers

    wrapped = transformers.AutoTokenizer.from_pretrained(tokenizer_dir, truncation_side="left")
    expected = wrapped(TEXTS, truncation=True, max_length=6)["input_ids"]
    dataset = tokenize(make_rows(TEXTS), [Tokenizer(wrapped, "left")], max_length=6, truncate=True, cache_dir=tmp_path)
    assert _lists(dataset.encodings[0]) == expected


def test_too_long_is_an_error_unless_truncation_is_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = make_rows(["good", "good " * 20, "bad", "bad " * 30])
    with pytest.raises(DataError, match=r"made\.csv: 2 bad rows of 4 \(line 3: 22 tokens; .*\); more than 10") as error:
        tokenize(rows, [tokenizer], max_length=10, cache_dir=tmp_path)
    assert "data.truncate=true" in str(error.value)
    assert tokenize(rows, [tokenizer], max_length=32, cache_dir=tmp_path).truncated == 0


def test_second_time_from_the_cache(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(TEXTS, labels=[1] * len(TEXTS))
    first = tokenize(rows, [tokenizer], cache_dir=tmp_path)
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("tokenised again"))
    second = tokenize(rows, [tokenizer], cache_dir=tmp_path)
    assert _lists(first.encodings[0]) == _lists(second.encodings[0])
    assert first.fingerprint == second.fingerprint
    other = tokenize(make_rows(TEXTS, labels=[0] * len(TEXTS)), [tokenizer], cache_dir=tmp_path)
    assert other.fingerprint != first.fingerprint
    monkeypatch.undo()
    assert tokenize(make_rows(TEXTS[1:]), [tokenizer], cache_dir=tmp_path).fingerprint != first.fingerprint


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["ids-0.npy", "offsets-0.npy", "manifest.json"])
def test_damaged_cache_is_built_anew(tokenizer: Tokenizer, tmp_path: Path, damage, name: str) -> None:
    rows = make_rows(TEXTS)
    first = tokenize(rows, [tokenizer], cache_dir=tmp_path)
    expected = _lists(first.encodings[0])
    (file,) = tmp_path.glob(f"tokens/*/{name}")
    damage(file)
    again = tokenize(rows, [tokenizer], cache_dir=tmp_path)
    assert _lists(again.encodings[0]) == expected
    assert again.fingerprint == first.fingerprint
    assert len(list(tmp_path.glob("tokens/*"))) == len(list(tmp_path.glob("tokens/.*"))) + 1


def test_unwritable_cache_costs_time_only(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = make_rows(TEXTS)
    (tmp_path / "file").write_text("in the way")
    dataset = tokenize(rows, [tokenizer], cache_dir=tmp_path / "file")
    assert dataset.fingerprint == tokenize(rows, [tokenizer], cache_dir=tmp_path).fingerprint


def test_two_tokenizers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_whitespace_backend(), pad_token="<pad>", model_input_names=["input_ids", "attention_mask"]
    )
    wrapped.save_pretrained(tmp_path / "other")
    other = load_tokenizer(tmp_path / "other")
    dataset = tokenize(make_rows(TEXTS, PAIRS), [tokenizer, other], cache_dir=tmp_path)
    assert len(dataset.encodings) == 2
    assert dataset.encodings[1].types is None
    assert dataset.encodings[1].pad_id == 1
    sizes = [np.diff(encoding.offsets) for encoding in dataset.encodings]
    assert np.array_equal(dataset.lengths, np.maximum(*sizes))
    assert _lists(dataset.encodings[1]) == wrapped(TEXTS, PAIRS)["input_ids"]


def _whitespace_backend():
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<pad>": 1, "good": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return backend


def test_fingerprint_ignores_padding_and_truncation_and_processes(tokenizer_dir: Path, tokenizer: Tokenizer) -> None:
    import transformers

    wrapped = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    wrapped(TEXTS, padding=True, truncation=True, max_length=7)
    assert Tokenizer(wrapped, "used").fingerprint == tokenizer.fingerprint
    script = f"from jaxdistill.data import load_tokenizer; print(load_tokenizer({str(tokenizer_dir)!r}).fingerprint)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tokenizer.fingerprint


def test_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert _lists(again.encode(TEXTS)) == _lists(tokenizer.encode(TEXTS))


def test_vocabulary_check(tokenizer: Tokenizer) -> None:
    size = len(WORDS) + 5
    assert (tokenizer.vocab_size, tokenizer.max_id, tokenizer.pad_id) == (size, size - 1, 0)
    check_vocabulary(tokenizer, size, model="student")
    with pytest.raises(ModelError, match=f"ids up to {size - 1}, but the embedding of student has"):
        check_vocabulary(tokenizer, size - 1, model="student")


def test_no_tokenizer(tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ModelError, match="no tokenizer there"):
        load_tokenizer(tmp_path)
    with pytest.raises(ExternalError, match="offline, give a local directory"):
        load_tokenizer("nobody/nothing")
    shutil.copytree(tokenizer_dir, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "broken")


@pytest.mark.parametrize("config", [None, '{"hidden_size": 8}'])
def test_a_bert_directory_with_nothing_but_words(
    tokenizer: Tokenizer, tokenizer_dir: Path, tmp_path: Path, config: str | None
) -> None:
    """As BERT's first checkpoints are: neither tokenizer.json nor model_type."""
    shutil.copy(tokenizer_dir / "vocab.txt", tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert _lists(load_tokenizer(tmp_path).encode(TEXTS)) == _lists(tokenizer.encode(TEXTS))
