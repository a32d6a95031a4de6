"""What was measured, as tables for a terminal and as a chart.

Names are `Text`: in a str, rich would read an override's [brackets] as markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxdistill.bench.bars import Bar, bar_chart
from jaxdistill.bench.spread import Spread
from jaxdistill.report.table import byte_size, compact, text_table


def print_stages(result: Mapping[str, Any], console: Console) -> None:
    """Tables of `bench_stages`: rates and times, then what they are a share of."""
    for stage in result["stages"]:
        console.print(_rates_table(stage, result["repeats"]))
        console.print(_work_table(stage))
        if len(stage["variants"]) > 1:
            console.print(_comparison_table(stage))
        for row in stage["variants"]:
            if row["parts"] is not None:
                console.print(_parts_line(row["parts"]), highlight=False)
            if "first_step_seconds" in row:
                console.print(_starts_line(row["first_step_seconds"]), highlight=False)
        console.print()
    console.print(_memory_line(result), highlight=False)


def stages_chart(result: Mapping[str, Any]) -> str:
    """Real tokens a second of every stage and variant, as SVG."""
    groups = [
        (
            stage["stage"],
            [
                Bar(row["variant"], row["tokens_per_second"], f"{row['tokens_per_second']['median']:,.0f}")
                for row in stage["variants"]
            ],
        )
        for stage in result["stages"]
    ]
    return bar_chart(f"real tokens a second ({_where(result)}; {result['repeats']} turns)", groups)


def print_inference(result: Mapping[str, Any], console: Console) -> None:
    """Tables of `bench_inference`: the models, and each one's forward pass at every batch size and length."""
    console.print(_models_table(result["models"]))
    language = result["task"] == "causal_lm"
    for batch, length in result["shapes"]:
        table = text_table(f"batch {batch} × {length} tokens", left=("model",))
        for title in (
            "p50 ms",
            "p95 ms",
            "tokens/s" if language else "examples/s",
            "… a CPU-second",
            "× the first",
            "× a CPU-s",
        ):
            table.add_column(title, justify="right")
        for model in result["models"]:
            cell = next(cell for cell in model["cells"] if (cell["batch"], cell["length"]) == (batch, length))
            kind = "tokens" if language else "examples"
            table.add_row(
                Text(model["name"]),
                f"{cell['p50_ms']:.3f}",
                f"{cell['p95_ms']:.3f}",
                _ranged(cell[f"{kind}_per_second"], "{:,.0f}".format),
                _ranged(cell[f"{kind}_per_cpu_second"], "{:,.0f}".format),
                _times(cell["faster_than_first"]),
                _times(cell["faster_than_first_cpu"]),
            )
        console.print(table)


def inference_chart(result: Mapping[str, Any]) -> str:
    """How many times as fast as the first model each one is, at every batch size and length, as SVG."""
    groups = []
    for index, (batch, length) in enumerate(result["shapes"]):
        faster = [(model["name"], model["cells"][index]["faster_than_first"]) for model in result["models"]]
        bars = [Bar(name, found | {"median": found["ratio"]}, f"{found['ratio']:.2f}×") for name, found in faster]
        groups.append((f"batch {batch} × {length} tokens", bars))
    return bar_chart(f"speed of the forward pass, of the first model's ({_where(result)})", groups)


def _rates_table(stage: Mapping[str, Any], repeats: int) -> Table:
    title = f"{stage['stage']}: median of {repeats} turns of {stage['steps']} steps (least – greatest)"
    table = text_table(title, left=("variant",))
    swept = any(row["students"] > 1 for row in stage["variants"])
    for heading in ("students",) * swept + ("examples/s", "… a CPU-second", "real tokens/s", "step ms"):
        table.add_column(heading, justify="right")
    for row in stage["variants"]:
        table.add_row(
            Text(row["variant"]),
            *(str(row["students"]),) * swept,
            _ranged(row["examples_per_second"], "{:,.1f}".format),
            _ranged(row["examples_per_cpu_second"], "{:,.1f}".format),
            _ranged(row["tokens_per_second"], "{:,.0f}".format),
            _ranged(row["step_seconds"], lambda seconds: f"{1e3 * seconds:,.2f}"),
        )
    return table


def _work_table(stage: Mapping[str, Any]) -> Table:
    table = text_table("what is done with it", left=("variant",))
    headings = (
        "real tokens",
        "GFLOP a step",
        "GFLOP/s",
        "of matmul peak",
        "compile s",
        "from cache s",
        "memory planned",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in stage["variants"]:
        table.add_row(
            Text(row["variant"]),
            f"{row['real_token_share']:.1%}",
            f"{row['flops']['step'] / 1e9:,.4g}",
            f"{row['flops_per_second']['median'] / 1e9:,.4g}",
            f"{row['share_of_matmul_peak']['median']:.1%} of {row['matmul_peak_flops_per_second'] / 1e9:,.1f}",
            f"{row['compile_seconds']['cold']:.2f}",
            f"{row['compile_seconds']['cached']:.2f}",
            byte_size(row["planned_bytes"]["peak"]),
        )
    return table


def _comparison_table(stage: Mapping[str, Any]) -> Table:
    table = text_table("times the first variant's", left=("variant",))
    kinds = {"examples/s": "examples_per_second", "… a CPU-second": "examples_per_cpu_second"}
    kinds |= {"real tokens/s": "tokens_per_second", "step time": "step_seconds"}
    for heading in kinds:
        table.add_column(heading, justify="right")
    for row in stage["variants"]:
        table.add_row(Text(row["variant"]), *(_times(row["against_first"][kind]) for kind in kinds.values()))
    return table


def _models_table(models: Sequence[Mapping[str, Any]]) -> Table:
    table = text_table("Models", left=("model", "architecture"))
    for heading in ("parameters", "of the first", "on disk", "of the first"):
        table.add_column(heading, justify="right")
    first = models[0]
    for model in models:
        table.add_row(
            Text(model["name"]),
            model["architecture"],
            compact(model["parameters"]),
            f"{model['parameters'] / first['parameters']:.1%}",
            byte_size(model["bytes"]),
            f"{model['bytes'] / first['bytes']:.1%}",
        )
    return table


def _parts_line(parts: Mapping[str, Spread]) -> str:
    share, over = parts["teacher_share"], parts.get("distillation_over_plain")
    said = (
        f"teachers' forward passes by themselves: {share['ratio']:.1%} of the step ({share['min']:.1%} – "
        f"{share['max']:.1%})"
    )
    if over is None:
        return said
    return f"{said}; the step takes {_times(over)} as long as plain training of the same student"


def _starts_line(starts: Mapping[str, float]) -> str:
    return (
        f"from its start to its first step: {starts['first']:.1f} s with nothing compiled before, "
        f"{starts['second']:.1f} s the second time ({starts['ratio']:.2f} of it)"
    )


def _memory_line(result: Mapping[str, Any]) -> str:
    device = result["device_peak_bytes"]
    told = "(a device does not say)" if device is None else f"by a device {byte_size(device)},"
    return f"most memory held: {told} by this process {byte_size(result['process_peak_bytes'])}"


def _ranged(found: Spread, write: Callable[[float], str]) -> str:
    return f"{write(found['median'])} ({write(found['min'])} – {write(found['max'])})"


def _times(found: Spread) -> str:
    return f"{found['ratio']:.2f}× ({found['min']:.2f} – {found['max']:.2f})"


def _where(result: Mapping[str, Any]) -> str:
    device = result["device"]
    return f"{device['count']} × {device['kind']}"
