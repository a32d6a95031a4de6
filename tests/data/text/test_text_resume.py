"""An iterator goes on exactly where another one stood: in every packing, streamed or not, in another process too."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_text import made_texts, open_one, write_jsonl

from jaxdistill.data import Tokenizer
from jaxdistill.errors import CheckpointError

LENGTHS = [3, 40, 1, 7, 15, 16, 17, 2, 70, 33, 5, 9, 1, 1, 30] * 5
PACKINGS = ("concat", "first_fit", "none")


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _assert_goes_on_everywhere(make: Any, steps: int, *, is_canonical: bool = True) -> None:
    """Reads all batches, then again from after each of them in a fresh iterator, and in one that was used before."""
    iterator = make()
    states, batches = [iterator.get_state()], []
    for batch in iterator:
        batches.append(batch)
        states.append(iterator.get_state())
    assert len(batches) == steps
    used = make()
    next(used)
    for step, state in enumerate(states):
        assert json.loads(json.dumps(state)) == state
        assert len(json.dumps(state)) < 2000
        for again in (make(), used):
            again.set_state(json.loads(json.dumps(state)))
            assert again.get_state() == state
            # Several: a wrong state can give one right batch.
            following = [next(again) for _ in range(min(3, steps - step))]
            assert all(map(_same, following, batches[step:]))
            if is_canonical and step + 3 < steps:
                assert again.get_state() == states[step + 3]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packing", PACKINGS)
def test_position_is_restored_after_every_step(
    tmp_path: Path, cache: Path, ends: Tokenizer, packing: str, streaming: bool
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", made_texts(LENGTHS))
    split = open_one(path, ends, cache, packing=packing, streaming=streaming, shuffle_window=40)
    steps = 12  # more than an epoch
    assert open_one(path, ends, cache, packing=packing).rows_per_epoch() < 12 * steps
    _assert_goes_on_everywhere(lambda: split.train_iterator(batch_size=12, seed=1, steps=steps), steps)


def test_position_is_restored_without_repeat(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    """The last batch is completed by filler rows, and after it there is nothing."""
    path = write_jsonl(tmp_path / "a.jsonl", made_texts(LENGTHS))
    steps = -(-open_one(path, ends, cache).rows_per_epoch() // 13)
    for streaming in (False, True):
        split = open_one(path, ends, cache, streaming=streaming, repeat=False)
        make = functools.partial(split.train_iterator, batch_size=13, seed=1, steps=steps)
        _assert_goes_on_everywhere(make, steps)


FORMATS = ("txt", "csv", "parquet", "arrow", "json")


@pytest.mark.parametrize("kind", FORMATS)
def test_streams_of_every_format_are_entered_where_they_were_left(
    tmp_path: Path, cache: Path, ends: Tokenizer, kind: str
) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.feather
    import pyarrow.parquet

    texts = made_texts([5, 20, 1, 9] * 5)
    path = tmp_path / f"a.{kind}"
    table = pa.table({"text": texts})
    match kind:
        case "txt":
            path.write_text("\n\n".join(texts))
        case "csv":
            pyarrow.csv.write_csv(table, path)
        case "parquet":
            pyarrow.parquet.write_table(table, path, row_group_size=5)
        case "arrow":
            pyarrow.feather.write_feather(table, path)
        case _:
            path.write_text(json.dumps(table.to_pylist()))
    split = open_one(path, ends, cache, streaming=True, shuffle_window=3)
    _assert_goes_on_everywhere(lambda: split.train_iterator(batch_size=5, seed=1, steps=8), 8)


@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
def test_hub_streams_are_entered_where_they_were_left(
    tmp_path: Path, cache: Path, ends: Tokenizer, process: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` streams a local directory of parquet files as it streams a hub repository."""
    import datasets

    from jaxdistill.config.data_schema import DataConfig, SourceConfig
    from jaxdistill.data.text import open_split

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    texts = made_texts([5, 20, 1, 9] * 8)
    for part in range(2):
        made = datasets.Dataset.from_dict({"id": list(range(16)), "text": texts[part * 16 : (part + 1) * 16]})
        made.to_parquet(tmp_path / "set" / f"train-{part}-of-2.parquet")
    source = SourceConfig(hub=str(tmp_path / "set"), split="train")
    data = DataConfig(task="causal_lm", test=source, streaming=True, shuffle_window=3)
    split = open_split(data, "test", ends, sequence_length=16, cache_dir=cache)
    assert split is not None
    index, count = process
    make = functools.partial(split.train_iterator, seed=1, process_index=index, process_count=count)
    # `datasets` has several descriptions of one position.
    _assert_goes_on_everywhere(lambda: make(batch_size=4 * count, steps=8), 8, is_canonical=False)


def test_a_position_of_another_layout_is_refused(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    split = open_one(write_jsonl(tmp_path / "a.jsonl", made_texts(LENGTHS)), ends, cache)
    state = split.train_iterator(batch_size=4, seed=0, steps=4, process_index=0, process_count=2).get_state()
    one = split.train_iterator(batch_size=4, seed=0, steps=4, process_index=0, process_count=1)
    with pytest.raises(CheckpointError, match="process_count 2 → 1"):
        one.set_state(state)


_OTHER_PROCESS = """
import json, sys
from pathlib import Path
import numpy as np
from jaxdistill.data import load_tokenizer
sys.path.insert(0, sys.argv[1])
from made_text import open_one

if __name__ == "__main__":
    asked = json.loads(sys.argv[2])
    path, tokenizer, cache, out = (Path(place) for place in asked["places"])
    split = open_one(path, load_tokenizer(tokenizer), cache, workers=2, **asked["settings"])
    iterator = split.train_iterator(batch_size=4, seed=1, steps=12)
    if asked["state"] is not None:
        iterator.set_state(asked["state"])
    batches = []
    for _ in range(asked["count"]):
        batches.append(next(iterator))
    arrays = {f"{name}-{place}": array for place, batch in enumerate(batches) for name, array in batch.items()}
    np.savez(out, state=json.dumps(iterator.get_state()), **arrays)
    iterator.close()
"""


@pytest.mark.long
@pytest.mark.slow
def test_workers_give_the_same_batches_and_go_on_in_another_process(
    tmp_path: Path, cache: Path, ends: Tokenizer
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", made_texts(LENGTHS))
    script = tmp_path / "other.py"  # a file, which the workers can import
    script.write_text(_OTHER_PROCESS)
    settings = {"packing": "first_fit", "streaming": True, "shuffle_window": 40}
    expected = list(open_one(path, ends, cache, **settings).train_iterator(batch_size=4, seed=1, steps=12))

    def batches(state: Any, count: int) -> tuple[Any, list[dict[str, np.ndarray]]]:
        out = tmp_path / "out.npz"
        places = [str(place) for place in (path, ends.name, cache, out)]
        asked = json.dumps({"places": places, "settings": settings, "state": state, "count": count})
        subprocess.run([sys.executable, script, str(Path(__file__).parent), asked], check=True, timeout=300)
        with np.load(out) as arrays:
            found = [{name: arrays[f"{name}-{place}"] for name in expected[0]} for place in range(count)]
            return json.loads(str(arrays["state"])), found

    state, first = batches(None, 5)
    _, rest = batches(state, 7)
    assert all(map(_same, first + rest, expected))
