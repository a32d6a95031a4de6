"""Tables of what was measured: names are shown as they are."""

from __future__ import annotations

import io

from rich.console import Console

from jaxdistill.bench.spread import ratio, spread
from jaxdistill.bench.tables import print_inference, print_stages

RATES = ("examples_per_second", "examples_per_cpu_second", "tokens_per_second", "tokens_per_cpu_second", "step_seconds")


def shown(show, result) -> str:
    stream = io.StringIO()
    show(result, Console(file=stream, width=200))
    return stream.getvalue()


def test_brackets_of_an_override_are_no_markup():
    def row(variant):
        return {
            "variant": variant,
            "students": 1,
            **dict.fromkeys(RATES, spread([1.0])),
            "real_token_share": 1.0,
            "flops": {"step": 1.0},
            "flops_per_second": spread([1.0]),
            "share_of_matmul_peak": spread([1.0]),
            "matmul_peak_flops_per_second": 1.0,
            "compile_seconds": {"cold": 1.0, "cached": 1.0},
            "planned_bytes": {"peak": 1},
            "against_first": dict.fromkeys(RATES, ratio([1.0], [1.0])),
            "parts": None,
        }

    variants = ("data.text=[sentence]", "data.text=[title]")
    stage = {"stage": "small", "steps": 1, "variants": [row(variant) for variant in variants]}
    text = shown(print_stages, {"stages": [stage], "repeats": 1, "device_peak_bytes": None, "process_peak_bytes": 1})
    assert [text.count(variant) for variant in variants] == [3, 3]


def test_brackets_of_a_directory_are_no_markup():
    cell = dict.fromkeys(("p50_ms", "p95_ms"), 1.0) | dict.fromkeys(
        ("examples_per_second", "examples_per_cpu_second"), spread([1.0])
    )
    cell |= dict.fromkeys(("faster_than_first", "faster_than_first_cpu"), ratio([1.0], [1.0]))
    model = {"name": "runs[old]/small", "architecture": "bert L1 H8", "parameters": 1, "bytes": 1}
    model["cells"] = [{"batch": 1, "length": 8, **cell}]
    text = shown(print_inference, {"models": [model], "task": "classification", "shapes": [[1, 8]]})
    assert text.count("runs[old]/small") == 2
