"""Every format gives the same rows, and every kind of bad input one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.data import encode_labels, load_rows
from jaxdistill.errors import DataError, ExternalError

TEXTS = ['a "quoted, film', "un café très bon 🙂", "tab-free 'text'", 'ends with "']
LABELS = [0, 1, 1, 0]
DATA = DataConfig(text=("sentence",))


def _write_csv(path: Path) -> None:
    quoted = [text.replace('"', '""') for text in TEXTS]
    lines = ["id,sentence,label", *(f'{i},"{t}",{y}' for i, (t, y) in enumerate(zip(quoted, LABELS, strict=True)))]
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig", newline="")


def _write_tsv(path: Path) -> None:
    lines = ["label\tsentence", *(f"{y}\t{t}" for t, y in zip(TEXTS, LABELS, strict=True))]
    path.write_text("\n".join(lines), encoding="utf-8")


def _objects() -> list[dict]:
    return [{"sentence": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def _table() -> pa.Table:
    return pa.table({"label": LABELS, "sentence": TEXTS, "other": [None] * 4})


def _write_stream(path: Path) -> None:
    with pa.ipc.new_stream(path, _table().schema) as writer:
        writer.write_table(_table(), max_chunksize=3)


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.csv": _write_csv,
    "rows.TSV": _write_tsv,
    "rows.json": lambda path: path.write_text(json.dumps(_objects())),
    "data.json": lambda path: path.write_text(json.dumps({"version": 1, "data": _objects()}), encoding="utf-8-sig"),
    "rows.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, _objects())) + "\n\n"),
    "rows.parquet": lambda path: pyarrow.parquet.write_table(_table(), path, row_group_size=2),
    "file.arrow": lambda path: pyarrow.feather.write_feather(_table(), path),
    "stream.arrow": _write_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    rows = load_rows(DATA, SourceConfig(path=name), base_dir=tmp_path)
    assert rows.texts == (TEXTS,)
    assert list(rows.row_numbers) == ([2, 3, 4, 5] if name.lower().endswith(("csv", "tsv")) else [1, 2, 3, 4])
    labels, names = encode_labels(rows)
    assert labels.tolist() == LABELS
    assert names is None
    limited = load_rows(DATA, SourceConfig(path=str(tmp_path / name), limit=3))
    assert limited.texts == (TEXTS[:3],)


def _load(path: Path, content: str | bytes, data: DataConfig = DATA, **options: bool):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_rows(data, SourceConfig(path=str(path)), **options)


BAD_ROWS = {
    "rows.csv": [
        (b"id,sentence,label\n1,good,1\n2,,0\n3,fine,0\n", "line 3: empty text"),
        (b"id,sentence,label\n1,good,1\n2,bad\n3,fine,0\n", "line 3: 2 columns where the header has 3"),
        (b"sentence,label\ngood,1\nb\xe4d,0\nfine,0\n", "line 3: text is not UTF-8"),
        (b"sentence,label\ngood,1\nbad,\nfine,0\n", "line 3: missing label"),
        (b"sentence,label\ngood,1\nbad,-1\nfine,0\n", "line 3: label -1 means unlabelled"),
        (b"sentence,label\ngood,1.0\nbad,0.5\nfine,0.\n", "line 3: label is the number 0.5; expected an integer or a"),
        (b'sentence,label\n"go\nod",1\n"bad"!,-1\nfine,0\n', "line 4: malformed"),
        (b'sentence,label\ngood,1\nfine,0\n"never,0', "line 4: malformed (a quoted field never ends)"),
        (b'sentence,label\ngood,1\n"bad\nand "x,0\nfine,0\n', "expected after '\"', lines 3 to 4)"),
        (b"sentence,label\ngood,1\nbad,1234567890\nfine,-3\nfine,0\n", "line 4: label -3: integers count"),
    ],
    "rows.tsv": [
        (b"sentence\tlabel\ngood\t1\nno label\nfine\t0\n", "line 3: 1 columns where the header has 2"),
        (b"sentence\tlabel\ngood\t1\n\xff\xfe\t0\nfine\t0\n", "line 3: text is not UTF-8"),
        (b"sentence\tlabel\ngood\t1\n \t0\nfine\t0\n", "line 3: empty text"),
    ],
    "rows.json": [
        (b'[{"sentence": "good", "label": 1}, {"label": 0}]', "row 2: missing text"),
        (b'[{"sentence": "good", "label": 1}, {"sentence": 5, "label": 0}]', "row 2: text is a number"),
        (b'[{"sentence": "good", "label": 1}, {"sentence": "\\ud800", "label": 0}]', "row 2: text is not UTF-8"),
        (b'[{"sentence": "good", "label": 1}, {"sentence": "bad", "label": 0.5}]', "row 2: label is the number 0.5"),
        (b'[{"sentence": "good", "label": 1}, ["bad", 0]]', "row 2: a list where an object was expected"),
        (b'[{"sentence": "good", "label": 1}, {"sentence": "bad", "label": [1]}]', "row 2: label is a list"),
    ],
    "rows.jsonl": [
        (b'{"sentence": "good", "label": 1}\n{"sentence": "bad", "label": \n', "line 2: malformed JSON"),
        (b'{"sentence": "good", "label": 1}\n{"sentence": "b\xe4d", "label": 1}\n', "line 2: not UTF-8"),
        (b'{"sentence": "good", "label": 1}\n\n{"sentence": NaN, "label": 1}\n', "line 3: missing text"),
        (b'{"sentence": "good", "label": 1}\n{"sentence": "bad", "label": null}\n', "line 2: missing label"),
        (b'{"sentence": "good", "label": 1}\n' + b"[" * 100_000 + b"\n", "line 2: malformed JSON"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "reason"), [(name, *case) for name, cases in BAD_ROWS.items() for case in cases]
)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=r"1 bad row of|2 bad rows of") as error:
        _load(tmp_path / name, content)
    assert str(tmp_path / name) in str(error.value)
    assert reason in str(error.value)
    assert "on_bad_row=skip" in str(error.value)
    rows = _load(tmp_path / name, content, DataConfig(text=("sentence",), on_bad_row="skip"))
    assert rows.skipped >= 1
    assert "good" in rows.texts[0] or "go\nod" in rows.texts[0]
    assert "bad" not in rows.texts[0] or b"12345" in content
    assert len(rows) == len(rows.texts[0]) == len(rows.labels or ())


def test_integers_that_pandas_wrote_beside_missing_ones(tmp_path: Path) -> None:
    rows = _load(tmp_path / "rows.csv", "sentence,label\na,0.0\nb,1.0\nc,2\nd,-1.0\ne,\n", require_labels=False)
    assert encode_labels(rows)[0].tolist() == [0, 1, 2, -100, -100]
    named = DataConfig(text=("sentence",), label_names=("1.0", "0.5"))
    assert encode_labels(_load(tmp_path / "r.csv", "sentence,label\na,0.5\n", named), ("1.0", "0.5"))[0].tolist() == [1]


def test_arrow_bad_rows(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"b\xe4d", None, b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    table = pa.table({"sentence": text, "label": pa.array([1.0, 0.0, 1.0, None])})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="3 bad rows of 4") as error:
        load_rows(DATA, SourceConfig(path=str(tmp_path / "rows.parquet")))
    for reason in ("row 2: text is not UTF-8", "row 3: missing text", "row 4: missing label"):
        assert reason in str(error.value)
    rows = load_rows(
        DataConfig(text=("sentence",), on_bad_row="skip"), SourceConfig(path=str(tmp_path / "rows.parquet"))
    )
    assert (rows.texts, rows.labels, rows.skipped) == ((["good"],), [1], 3)


def test_only_the_first_bad_rows_are_spelt_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="20 bad rows of 20") as error:
        _load(tmp_path / "rows.csv", "sentence,label\n" + "x,\n" * 20)
    assert str(error.value) == (
        f"{tmp_path / 'rows.csv'}: 20 bad rows of 20 (line 2: missing label; line 3: missing label; line 4: missing "
        "label; and 17 more); correct them, or leave them out (data.on_bad_row=skip; evaluate: --skip-bad-rows)"
    )


def test_all_rows_bad_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 bad rows of 2"):
        _load(tmp_path / "rows.csv", "sentence,label\nx,\ny,\n", DataConfig(text=("sentence",), on_bad_row="skip"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "sentnce,label\nx,1\n", "no column 'sentence', found 'sentnce', 'label'; did you mean 'sentnce'?"),
        ("rows.csv", "sentence,lable\nx,1\n", "no column 'label'"),
        ("rows.jsonl", '{"text": "x", "label": 1}\n', "no column 'sentence'"),
        ("rows.csv", "", "empty file"),
        ("rows.csv", "sentence,label\n", "empty; expected at least one row"),
        ("rows.jsonl", "", "empty; expected at least one row"),
        ("rows.json", "[]", "empty; expected at least one row"),
        ("rows.csv", "sentence,label,label\nx,1,2\n", "'label' more than once"),
        ("rows.csv", "sentence,label\nx,1\n".encode("utf-16"), "not UTF-8"),
        ("rows.csv", 'sentence,label\nx,1\n"y,0\nz,1\n', "line 3: a quoted field never ends and takes in all lines"),
        ("rows.json", '[{"sentence": "x"\n "label"]', "line 2"),
        ("rows.json", '{"sentence": "x"}\n{"sentence": "y"}', "belongs in a .jsonl file"),
        ("rows.json", b'[\n"\xff"]', "line 2: not UTF-8"),
        ("rows.json", '{"rows": []}', "expected a list of objects"),
        ("rows.json", "[1, 2]", "the first, row 1, is: a number"),
        ("rows.parquet", "PAR1 not really", "not a readable parquet file"),
        ("rows.arrow", "ARROW1 not really", "not a readable arrow file"),
        ("rows.xlsx", "", "unknown extension '.xlsx'; supported are .csv"),
        ("rows", "", r"unknown extension '(none)'"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        _load(tmp_path / name, content)
    assert message in str(error.value)
    assert name in str(error.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file \(looked for"):
        load_rows(DATA, SourceConfig(path="none.csv"), base_dir=tmp_path)
    for name in ("folder.csv", "folder"):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match="is a directory"):
            load_rows(DATA, SourceConfig(path=name), base_dir=tmp_path)


def test_truncated_parquet_and_arrow(tmp_path: Path) -> None:
    for name in ("rows.parquet", "stream.arrow"):
        WRITERS[name](tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) - 100])
        with pytest.raises(DataError, match=name):
            load_rows(DATA, SourceConfig(path=str(tmp_path / name)))


def test_labels_may_be_absent_when_not_required(tmp_path: Path) -> None:
    rows = _load(tmp_path / "a.csv", "sentence\ngood\nbad\n", require_labels=False)
    assert rows.labels is None
    assert encode_labels(rows)[0].tolist() == [-100, -100]
    rows = _load(tmp_path / "b.csv", "sentence,label\ngood,1\nbad,-1\nfine,\n", require_labels=False)
    assert encode_labels(rows)[0].tolist() == [1, -100, -100]


def test_known_label_names_are_checked_row_by_row(tmp_path: Path) -> None:
    data = DataConfig(text=("sentence",), label_names=("negative", "positive"))
    with pytest.raises(DataError, match="did you mean 'positive'") as error:
        _load(tmp_path / "rows.csv", "sentence,label\na,positive\nb,postive\nc,2\n", data)
    assert "line 4: label 2 is not between 0 and 1" in str(error.value)


def test_pairs(tmp_path: Path) -> None:
    content = "premise\thypothesis\tlabel\na\tb\tyes\nc\t\tno\n"
    data = DataConfig(text=("premise", "hypothesis"), on_bad_row="skip")
    rows = _load(tmp_path / "rows.tsv", content, data)
    assert rows.texts == (["a"], ["b"])
    assert rows.skipped == 1


def test_class_labels_of_datasets_files_are_kept(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    made = datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]}, features=features)
    made.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    rows = load_rows(DATA, SourceConfig(path=str(arrow)))
    assert rows.label_names == ("negative", "positive")
    assert encode_labels(rows)[0].tolist() == [1, 0]
    # A teacher whose classes stand in the other order: matched by name.
    assert encode_labels(rows, ("positive", "negative"))[0].tolist() == [0, 1]


def test_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` reads a local directory of parquet files exactly as it reads a hub repository."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    made = datasets.Dataset.from_dict({"sentence": ["good", "bad", "none"], "label": [1, 0, -1]}, features=features)
    made.to_parquet(tmp_path / "set" / "train.parquet")
    hub = str(tmp_path / "set")
    with pytest.raises(DataError, match="row 3: label -1 means unlabelled"):
        load_rows(DATA, SourceConfig(hub=hub, split="train"))
    rows = load_rows(DATA, SourceConfig(hub=hub, split="train", limit=2))
    assert (rows.texts, rows.labels, rows.label_names) == ((["good", "bad"],), [1, 0], ("negative", "positive"))
    with pytest.raises(DataError, match="needs a split, one of train"):
        load_rows(DATA, SourceConfig(hub=hub))
    with pytest.raises(DataError, match="split"):
        load_rows(DATA, SourceConfig(hub=hub, split="validation"))


def test_hub_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(ExternalError, match="give a local file as `path`"):
        load_rows(DATA, SourceConfig(hub="nobody/nothing", split="train"))


def test_no_or_two_places() -> None:
    for source in (SourceConfig(), SourceConfig(path="a.csv", hub="b")):
        with pytest.raises(DataError, match="exactly one of path, hub and asset"):
            load_rows(DATA, source)
