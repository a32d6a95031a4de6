"""The hand-made SVG: learning curves and the chain's diagram."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st
from run_fixture import CONFIG, summary

from jaxdistill.report.chain import chain_nodes
from jaxdistill.report.chart import Series, line_chart, log_ticks, ticks
from jaxdistill.report.diagram import Node, chain_diagram
from jaxdistill.report.table import summary_rows

SVG = "{http://www.w3.org/2000/svg}"
finite = st.floats(-1e6, 1e6)


def boxes(svg: str) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of every node of a diagram."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        x, y, width, height = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
        found[group.find(f"{SVG}title").text] = (x, y, x + width, y + height)
    return found


@st.composite
def chains(draw) -> list[Node]:
    count = draw(st.integers(1, 9))
    return [
        Node(
            name=f"n{k}",
            label=f"n{k}",
            kind="stage",
            teachers=tuple(f"n{t}" for t in draw(st.sets(st.integers(0, k - 1), max_size=3))) if k else (),
        )
        for k in range(count)
    ]


@given(finite, finite, st.integers(3, 8))
def test_ticks_are_few_round_and_cover_the_range(a, b, most):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high, most=most)
    step = found[1] - found[0]
    assert 2 <= len(found) <= most + 1
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= high - 1e-6 * step


@given(st.floats(1e-3, 1e12), st.floats(1e-3, 1e12))
def test_logarithmic_ticks_are_few_positive_and_cover_the_range(a, b):
    low, high = min(a, b), max(a, b)
    found = log_ticks(low, high)
    assert 2 <= len(found) <= 7
    assert 0 < found[0] <= low * (1 + 1e-6)
    assert found[-1] >= high * (1 - 1e-6)
    assert found == sorted(set(found))


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(-1e3, 1e3)), min_size=1, max_size=50))
def test_every_point_lies_inside_the_chart(points):
    root = ElementTree.fromstring(line_chart([Series("a", "loss", points, dots=True)], label="x"))
    _, _, width, height = map(float, root.get("viewBox").split())
    drawn = [
        tuple(map(float, pair.split(",")))
        for line in root.iter(f"{SVG}polyline")
        for pair in line.get("points").split()
    ]
    assert len(drawn) == len(points)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in drawn)


def test_a_higher_value_stands_higher_and_a_later_step_further_right():
    root = ElementTree.fromstring(line_chart([Series("a", "loss", [(10, 0.2), (20, 0.9), (30, 0.5)])], label="x"))
    (x1, y1), (x2, y2), (x3, y3) = (
        tuple(map(float, pair.split(","))) for pair in root.find(f"{SVG}polyline").get("points").split()
    )
    assert x1 < x2 < x3
    assert y2 < y3 < y1


def test_points_that_are_not_finite_are_left_out_and_no_point_gives_no_chart():
    holes = [(1, math.nan), (2, 1.0), (3, math.inf), (4, 2.0)]
    root = ElementTree.fromstring(line_chart([Series("a", "loss", holes)], label="x"))
    assert len(root.find(f"{SVG}polyline").get("points").split()) == 2
    assert line_chart([Series("a", "loss", [(1, math.nan)])], label="x") == ""
    assert line_chart([], label="x") == ""


def test_very_long_curves_are_thinned_and_keep_their_mean():
    points = [(step, float(step)) for step in range(100_000)]
    svg = line_chart([Series("a", "loss", points)], label="x")
    assert len(ElementTree.fromstring(svg).find(f"{SVG}polyline").get("points").split()) <= 300


@settings(max_examples=60)
@given(chains())
def test_diagrams_have_every_box_once_without_overlap_and_an_arrow_per_teacher(nodes):
    svg = chain_diagram(nodes)
    found = boxes(svg)
    assert set(found) == {node.name for node in nodes}
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(found.values(), 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1
    _, _, width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    assert all(left >= 0 and right <= width and top >= 0 and low <= height for left, top, right, low in found.values())
    assert svg.count('class="edge"') == sum(len(node.teachers) for node in nodes)
    assert all(found[name][2] <= found[node.name][0] for node in nodes for name in node.teachers)


def test_the_chain_has_controls_and_stages_to_come():
    nodes = {node.name: node for node in chain_nodes(summary_rows(summary()), CONFIG)}
    assert {name: node.kind for name, node in nodes.items()} == {
        "org/large": "given",
        "assistant": "stage",
        "student": "stage",
        "direct": "control",
        "scratch": "control",
        "tiny": "pending",
    }
    assert nodes["tiny"].teachers == ("student",)
    assert nodes["direct"].teachers == ("org/large",)


def test_a_teacher_given_as_the_key_of_a_seed_is_its_stage():
    content = summary()
    content["stages"].append({**content["stages"][-1], "name": "next", "key": "next", "teacher": ["student/seed-0"]})
    nodes = {node.name: node for node in chain_nodes(summary_rows(content), "")}
    assert nodes["next"].teachers == ("student",)


def test_a_configuration_that_cannot_be_read_adds_no_stage():
    for config in ("", "a: [", "stages: 3", "- x", "stages: [1, {no: name}]"):
        assert len(chain_nodes(summary_rows(summary()), config)) == 5
