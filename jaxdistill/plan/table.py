"""A plan for people: one table of figures, a line for what does not fit, and what of it is only modelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxdistill.plan.hlo import KINDS
from jaxdistill.plan.targets import GIB, Target


def print_plan(plans: Sequence[dict[str, Any]], target: Target, console: Console) -> None:
    """All stages beside one another."""
    title = f"compiled for {target.text} ({target.chip.title}), not run; bytes of one device"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for plan in plans:
        table.add_column(plan["stage"], justify="right")
    for label, show in _ROWS:
        cells = [show(plan) for plan in plans]
        if any(cells):
            table.add_row(label, *cells)
    console.print(table)
    for plan in plans:
        _print_shortage(plan, console)
    if any(plan.get("modelled") for plan in plans):
        console.print(
            "modelled: from data sheets, as if everything overlapped; a real step is slower, often by half. Nothing "
            "here was measured.",
            highlight=False,
        )
    if target.chip.remark:
        console.print(target.chip.remark, highlight=False)


def _print_shortage(plan: dict[str, Any], console: Console) -> None:
    memory = plan["memory"]
    if plan["fits"]:
        return
    needed = f"needs {_gib(memory['needed'])} GiB" if memory["needed"] else "needs more"
    console.print(
        f"{plan['stage']}: does not fit: {needed} of a device's {_gib(memory['limit'])}; settings that need less:",
        highlight=False,
    )
    for option in memory["settings"]:
        remark = f"; {option['remark']}" if option["remark"] else ""
        console.print(f"  {option['setting']} (saves about {_gib(option['saves'])} GiB{remark})", highlight=False)
    console.print(memory["verdict"], highlight=False)


def _memory(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda plan: _gib(plan["memory"][name]) if plan["memory"].get(name) is not None else ""


def _collective(kind: str) -> Callable[[dict[str, Any]], str]:
    def show(plan: dict[str, Any]) -> str:
        size = plan.get("collectives", {}).get("bytes", {}).get(kind)
        return f"{size / GIB:.3f}" if size else ""

    return show


def _bound(plan: dict[str, Any]) -> str:
    found = plan.get("collectives", {})
    return f"{found['total'] / GIB:.3f} ({found['over_bound']:.3f} ×)" if "over_bound" in found else ""


def _modelled(name: str, form: str) -> Callable[[dict[str, Any]], str]:
    def show(plan: dict[str, Any]) -> str:
        found = plan.get("modelled") or {}
        return format(found[name], form) if name in found else ""

    return show


def _count(flops: float | None) -> str:
    return f"{flops:.4g}" if flops else ""


def _logits(plan: dict[str, Any]) -> str:
    if "logits_sized" not in plan:
        return ""
    return ", ".join(plan["logits_sized"]) or "none"


_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("students, trained together", lambda plan: str(plan["students"]) if plan["students"] > 1 else ""),
    ("student parameters", lambda plan: f"{plan['parameters']['student']:,}"),
    ("teacher parameters", lambda plan: " + ".join(f"{count:,}" for count in plan["parameters"]["teachers"])),
    (
        "mesh data × fsdp × tensor",
        lambda plan: " × ".join(str(plan["mesh"][axis]) for axis in ("data", "fsdp", "tensor")),
    ),
    ("batch", lambda plan: " × ".join(map(str, plan["batch"]))),
    ("micro-batches", lambda plan: str(plan["accumulate"])),
    ("remat", lambda plan: plan["remat"]),
    ("fits", lambda plan: "yes" if plan["fits"] else "NO"),
    ("limit GiB", _memory("limit")),
    ("peak GiB", _memory("peak")),
    ("  teacher", _memory("teacher")),
    ("  student", _memory("student")),
    ("  optimizer", _memory("optimizer")),
    ("  batch", _memory("batch")),
    ("  activations, gradients, temporaries", _memory("working")),
    ("margin GiB", _memory("margin")),
    ("FLOPs a step, all devices", lambda plan: f"{plan['flops']['counted']:.4g}"),
    ("  over the formula", lambda plan: f"{plan['flops']['over_formula']:.3f} ×"),
    ("  compiled, one device, without kernels' own", lambda plan: _count(plan["flops"]["compiled_on_device"])),
    *((f"{kind} GiB", _collective(kind)) for kind in KINDS),
    ("all collectives GiB (over FSDP's bound)", _bound),
    ("arrays of tokens × vocabulary", _logits),
    ("compile CPU seconds", lambda plan: f"{plan['compile_seconds']:.0f}"),
    ("modelled: s a step at least", _modelled("seconds_per_step", ".3f")),
    ("  computing / memory / network", lambda plan: _parts(plan.get("modelled"))),
    ("modelled: tokens a day at most", _modelled("tokens_per_day", ".3g")),
    ("modelled: cost a day", _modelled("cost_per_day", ",.2f")),
    ("modelled: cost of a billion tokens at least", _modelled("cost_per_billion_tokens", ",.2f")),
)


def _parts(modelled: dict[str, Any] | None) -> str:
    if not modelled:
        return ""
    return " / ".join(f"{modelled[name]:.3f}" for name in ("compute", "memory", "network"))


_SEARCH_COLUMNS = (
    "data",
    "fsdp",
    "tensor",
    "remat",
    "batch",
    "cache",
    "kept GiB",
    "estimate GiB",
    "peak GiB",
    "answer",
)


def print_search(rows: Sequence[dict[str, Any]], target: Target, console: Console, *, most: int = 24) -> None:
    """The candidates of a search, best first; of those not tried, only so many that the table stays short."""
    title = f"settings for {target.text}, by the time they must take; batch: times what is written"
    table = Table(title=title, title_justify="left")
    for column in _SEARCH_COLUMNS:
        table.add_column(column, justify="left" if column in ("remat", "answer") else "right")
    shown = [row for place, row in enumerate(rows) if place < most or "peaks" in row]
    for row in shown:
        peaks = " ".join(_gib(peak) for peak in row.get("peaks", ()))
        settings = (row[name] for name in ("data", "fsdp", "tensor", "remat", "batch"))
        cells = (*map(str, settings), row["cache"] or "", _gib(row["kept"]), _gib(row["estimate"]), peaks)
        table.add_row(*cells, Text(row["answer"]))  # in a str, rich would read [brackets] as markup
    console.print(table)
    if len(shown) < len(rows):
        console.print(f"and {len(rows) - len(shown)} more", highlight=False)


def _gib(count: int | None) -> str:
    return "?" if count is None else f"{count / GIB:.2f}"
