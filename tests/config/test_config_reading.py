"""YAML files and overrides, before anything is interpreted."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxdistill.config import dump_yaml, parse_yaml, read_yaml
from jaxdistill.config.reading import apply_overrides
from jaxdistill.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3.", -3.0),
        ("-12", -12),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("off", "off"),
        ("No", "No"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("1e-4x", "1e-4x"),
        ("=", "="),
        ("'1e-4'", "1e-4"),
    ],
)
def test_scalars_are_read_by_yaml_1_2(text, value):
    read = parse_yaml(text, where="here")
    assert read == value
    assert type(read) is type(value)


def test_merge_keys_and_aliases_are_separate_copies():
    value = parse_yaml("a: &x {p: {q: 1}, r: 2}\nb: *x\nc: {<<: *x, r: 3}", where="here")
    assert value["c"] == {"p": {"q": 1}, "r": 3}
    value["a"]["p"]["q"] = 9
    assert value["b"] == {"p": {"q": 1}, "r": 2}
    assert value["c"]["p"] == {"q": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: key 'a' was already given on line 1; keep one of them"),
        ("s:\n  - {x: 1, y: 2, x: 3}\n", "line 2, column 18: key 'x' was already given on line 2"),
        ("a: [1, 2\nb: 3\n", "line 2, column 2: while parsing a flow sequence, expected ',' or ']'"),
        ("a:\n\t- 1\n", "line 2, column 1: "),
        ("3: x\n", "line 1, column 1: a key must be text"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1, column 4: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: expected a single document in the stream"),
        ("a: *b\n", "line 1, column 4: found undefined alias"),
        ("a: &a [*a]\n", "an alias refers to the value it stands in"),
        ("a: \x01\n", "not YAML: "),
        ("a: !!float x\n", "could not convert string to float"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert message in line
    assert "\n" not in line


def test_aliases_of_aliases_do_not_grow_without_end():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than 100000 values"):
        parse_yaml("\n".join(lines), where="here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a mapping with name, data and stages"),
        (b"# nothing\n", "is empty"),
        (b"- a\n- b\n", "got ['a', 'b']; expected a mapping"),
        (b"name: x\nkey: caf\xe9\n", "line 2: not UTF-8 text; save the file as UTF-8"),
    ],
)
def test_files_that_hold_no_configuration(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(path) == {"name": "x"}


def test_a_missing_file_names_the_nearest_and_a_directory_is_no_file(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"quikstart.yaml: no such file; did you mean 'quickstart.yaml'\?"):
        read_yaml(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigError, match="is a directory; expected a YAML file"):
        read_yaml(tmp_path)


_KEYS = st.text("abcxyz_", min_size=1, max_size=5)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3))


@settings(max_examples=60, deadline=None)
@given(_VALUES)
@example("\x85 \u2028 1e5 off")
@example("1e5")
@example("0o17")
def test_what_is_dumped_reads_back_the_same_here_and_by_yaml_1_1(value):
    text = dump_yaml(value)
    assert parse_yaml(text, where="here") == value
    assert yaml.safe_load(text) == value


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(_KEYS, _SCALARS, max_size=3), st.lists(_KEYS, min_size=1, max_size=4), _VALUES)
def test_an_override_creates_mappings_on_its_way_and_changes_nothing_else(raw, path, value):
    raw = {key: item for key, item in raw.items() if key != path[0]}
    before = dict(raw)
    assert apply_overrides(raw, [f"{'.'.join(path)}={dump_yaml(value)}"]) == []
    found = raw
    for key in path:
        found = found[key]
    assert found == value
    del raw[path[0]]
    assert raw == before


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_an_override_reaches_into_lists_by_index(items, data):
    index = data.draw(st.integers(0, len(items) - 1))
    raw = {"a": [{"b": item} for item in items]}
    assert apply_overrides(raw, [f"a.{index}.b=x"]) == []
    assert [item["b"] for item in raw["a"]] == [*items[:index], "x", *items[index + 1 :]]


def test_overrides_apply_in_order_and_take_stage_names_and_yaml_values():
    raw = {"stages": [{"name": "teacher"}, {"name": "student", "train": {"epochs": 3}}], "seed": None}
    overrides = [
        "stages.student.train.epochs=1",
        "stages.student.train.epochs=2",
        "stages.0.train.learning_rate=3e-4",
        "stages.student.repeat.seeds=[0, 1]",
        "stages.student.student={architecture: bert}",
        "seed=",
        "name=a=b",
    ]
    assert apply_overrides(raw, overrides) == []
    assert raw == {
        "stages": [
            {"name": "teacher", "train": {"learning_rate": 3e-4}},
            {
                "name": "student",
                "train": {"epochs": 2},
                "repeat": {"seeds": [0, 1]},
                "student": {"architecture": "bert"},
            },
        ],
        "seed": None,
        "name": "a=b",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("a..b=3", "expected key.path=value"),
        ("seed=[1", "line 1, column 3: while parsing a flow sequence"),
        ("seed={a: 1, a: 2}", "key 'a' was already given"),
        ("stages.2.name=x", "stages has 2 item(s), counted from 0; there is no stages.2"),
        ("stages.-1.name=x", "no stage is named '-1'"),
        ("stages.studnt.name=x", "no stage is named 'studnt' (stages: teacher, student); did you mean 'student'?"),
        ("seed.x=1", "seed is 3, which has nothing inside; expected a mapping or a list"),
        ("items.x=1", "items is a list; expected the index of an item (counted from 0), got 'x'"),
        ("stages.0.loss.0.weight=1", "stages.0.loss is not there, so it has no item 0; give the whole list"),
        ("new.deep.0.x=1", "new.deep is not there, so it has no item 0"),
    ],
)
def test_overrides_that_cannot_be_applied_change_nothing(override, message):
    raw = {"stages": [{"name": "teacher"}, {"name": "student"}], "seed": 3, "items": [1]}
    before = parse_yaml(dump_yaml(raw), where="copy")
    (problem,) = apply_overrides(raw, [override])
    assert str(problem).startswith(f"override {override!r}: ")
    assert message in str(problem)
    assert raw == before
