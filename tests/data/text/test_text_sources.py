"""Documents of every format, and what bad input gets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from made_text import documents_of, made_texts, open_one, rows_of, tokens_of, write_jsonl

from jaxdistill.config.data_schema import DataConfig, PromptConfig, SourceConfig
from jaxdistill.data import Tokenizer
from jaxdistill.data.text import TextSplit, open_split
from jaxdistill.data.text.records import TextSource
from jaxdistill.data.text.store import open_store
from jaxdistill.errors import DataError, ExternalError

TEXTS = made_texts([3, 5, 1, 8, 2])
TABLE = pa.table({"id": list(range(5)), "text": TEXTS})
WRITERS = {
    "a.csv": lambda path: pyarrow.csv.write_csv(TABLE, path),
    "a.tsv": lambda path: path.write_text("text\tid\n" + "".join(f"{text}\t0\n" for text in TEXTS)),
    "a.json": lambda path: path.write_text(json.dumps(TABLE.to_pylist())),
    "a.jsonl": lambda path: write_jsonl(path, TEXTS, id=range(5)),
    "a.parquet": lambda path: pyarrow.parquet.write_table(TABLE, path, row_group_size=2),
    "a.arrow": lambda path: pyarrow.feather.write_feather(TABLE, path),
    "a.txt": lambda path: path.write_text("\n".join(TEXTS)),
    "a.TEXT": lambda path: path.write_text("\r\n\n".join(TEXTS) + "\n \n", newline=""),
}


def _tokens(split: TextSplit) -> list[list[int]]:
    return documents_of(rows_of(split.eval_batches(batch_size=2)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(
    tmp_path: Path, cache: Path, ends: Tokenizer, name: str, streaming: bool
) -> None:
    WRITERS[name](tmp_path / name)
    settings: dict[str, Any] = {"sample_by": "line", "streaming": streaming}
    for _ in range(2):
        assert _tokens(open_one(tmp_path / name, ends, cache, **settings)) == sorted(map(tokens_of, TEXTS))
    data = DataConfig(task="causal_lm", train=SourceConfig(path=name, limit=3), validation_share=1e-9, **settings)
    if not streaming:
        with pytest.raises(DataError, match="leaves none for validation"):
            open_split(data, "train", ends, sequence_length=8, base_dir=tmp_path, cache_dir=cache)
    limited = DataConfig(task="causal_lm", test=SourceConfig(path=name, limit=3), **settings)
    split = open_split(limited, "test", ends, sequence_length=8, base_dir=tmp_path, cache_dir=cache)
    assert split is not None
    assert _tokens(split) == sorted(map(tokens_of, TEXTS[:3]))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_documents_of_text_files(tmp_path: Path, cache: Path, ending: str) -> None:
    lines = ["\ufeff one", "two ", "", " \t", "three", "", "", "four"]
    (tmp_path / "a.txt").write_text(ending.join(lines), encoding="utf-8", newline="")

    def documents(sample_by: Any) -> list[str]:
        data = DataConfig(task="causal_lm", sample_by=sample_by)
        store = open_store(TextSource(data, SourceConfig(path="a.txt"), tmp_path), cache_dir=cache)
        return [text for place in range(len(store)) for text in store.parts(place)]

    assert documents("line") == [" one", "two ", "three", "four"]
    assert documents("paragraph") == [" one\ntwo ", "three", "four"]
    assert documents("document") == [" one\ntwo \n\n \t\nthree\n\n\nfour"]


BAD = {
    "a.txt": (b"good\n\nb\xe4d\n\nfine\n", "line 3: text is not UTF-8"),
    "a.jsonl": (b'{"text": "good"}\n{"text": " "}\n{"text": "fine"}\n', "line 2: empty text"),
    "b.jsonl": (b'{"text": "good"}\n{"text": \n{"text": "fine"}\n', "line 2: malformed JSON"),
    "c.jsonl": (b'{"text": "good"}\n{"other": 1}\n{"text": "fine"}\n', "line 2: missing text"),
    "a.csv": (b"id,text\n1,good\n2\n3,fine\n", "line 3: 1 columns where the header has 2"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_or_skipped(
    tmp_path: Path, cache: Path, ends: Tokenizer, name: str, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="1 bad row of") as error:
        list(open_one(tmp_path / name, ends, cache, streaming=streaming).eval_batches(batch_size=1))
    assert reason in str(error.value)
    assert "on_bad_row=skip" in str(error.value)
    for _ in range(2):
        split = open_one(tmp_path / name, ends, cache, streaming=streaming, on_bad_row="skip")
        assert len(_tokens(split)) == 2
        assert split.describe()["skipped"] == (None if streaming else 1)
    if streaming:
        assert reason in caplog.text


def test_a_completion_may_not_be_empty_but_a_prompt_may(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["w1", "", "w3", "w4"], answer=["w5", "w6", "", "w7"])
    settings: dict[str, Any] = {"text": PromptConfig(prompt="text", completion="answer")}
    with pytest.raises(DataError, match=r"1 bad row of 4 \(line 3: empty text \(column 'answer'\)\)"):
        open_one(path, ends, cache, **settings)
    split = open_one(path, ends, cache, on_bad_row="skip", **settings)
    (batch,) = split.eval_batches(batch_size=1)
    assert batch["input_ids"][0].tolist() == [5, 9, 1, 10, 1, 8, 11, 1, *[0] * 8]
    assert batch["labels"][0].tolist() == [9, 1, -100, 1, -100, 11, 1, *[-100] * 9]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence\nx\n", "no column 'text', found 'sentence'"),
        ("a.jsonl", '{"txt": "x"}\n', "did you mean 'txt'?"),
        ("a.txt", "\n \n", "empty|no document"),
        ("a.jsonl", "", "empty|no document"),
        ("a.parquet", "PAR1 not really", "not a readable parquet file"),
        ("a.docx", "", "unknown extension '.docx'"),
    ],
)
def test_unusable_files(
    tmp_path: Path, cache: Path, ends: Tokenizer, name: str, content: str, message: str, streaming: bool
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        open_one(tmp_path / name, ends, cache, streaming=streaming)
    assert name in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_files_directories_and_columns_of_text(
    tmp_path: Path, cache: Path, ends: Tokenizer, streaming: bool
) -> None:
    for name in ("none.txt", "none.csv"):
        with pytest.raises(DataError, match=r"no such file \(looked for"):
            open_one(tmp_path / name, ends, cache, streaming=streaming)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="is a directory"):
        open_one(tmp_path / "folder.txt", ends, cache, streaming=streaming)
    (tmp_path / "a.txt").write_text("w1")
    with pytest.raises(DataError, match="no columns for a prompt and a completion"):
        open_one(tmp_path / "a.txt", ends, cache, streaming=streaming, text=PromptConfig("a", "b"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_sets(
    tmp_path: Path, cache: Path, ends: Tokenizer, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` reads a local directory of parquet files exactly as it reads a hub repository."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    made = datasets.Dataset.from_dict({"id": list(range(6)), "text": [*TEXTS, ""]})
    made.to_parquet(tmp_path / "set" / "train.parquet")

    def opened(**source: Any) -> TextSplit | None:
        test = SourceConfig(hub=str(tmp_path / "set"), **source)
        data = DataConfig(task="causal_lm", test=test, streaming=streaming, on_bad_row="skip")
        return open_split(data, "test", ends, sequence_length=8, cache_dir=cache)

    split, limited = opened(split="train"), opened(split="train", limit=2)
    assert split is not None
    assert limited is not None
    assert _tokens(split) == sorted(map(tokens_of, TEXTS))
    assert _tokens(limited) == sorted(map(tokens_of, TEXTS[:2]))
    assert split.fingerprint != limited.fingerprint
    with pytest.raises(DataError, match="needs a split, one of train"):
        opened()
    data = DataConfig(task="causal_lm", test=SourceConfig(hub="nobody/nothing", split="train"), streaming=streaming)
    with pytest.raises(ExternalError, match="give a local file as `path`"):
        open_split(data, "test", ends, sequence_length=8, cache_dir=cache)


def test_a_cache_that_is_damaged_or_cannot_be_written_is_only_slower(
    tmp_path: Path, cache: Path, ends: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    first = open_one(path, ends, cache)
    (stored,) = (cache / "documents").glob("*/documents.arrow")
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    again = open_one(path, ends, cache)
    assert "damaged" in caplog.text
    assert _tokens(first) == _tokens(again) == sorted(map(tokens_of, TEXTS))
    (tmp_path / "file").write_text("in the way")
    unstored = open_one(path, ends, tmp_path / "file")
    assert "cannot be written" in caplog.text
    assert _tokens(unstored) == sorted(map(tokens_of, TEXTS))
    assert unstored.fingerprint == first.fingerprint
    assert unstored.rows_per_epoch() == first.rows_per_epoch()
    documents = pickle.loads(pickle.dumps(unstored._documents))
    assert [documents[place] for place in range(5)] == [(text,) for text in TEXTS]
