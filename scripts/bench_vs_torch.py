"""Real training examples per CPU-second: a distillation step here against the PyTorch + Transformers loop users write.

    python scripts/bench_vs_torch.py --teacher MINILM_DIR --data SST2_TRAIN.tsv [--students mini,tiny,femto,L6H384]

Same shape of teacher (online), same rows, same examples per update, same dropout, AdamW, one pinned thread each. On the
other side: scaled-dot-product attention, the teacher in inference mode, fused AdamW, batches tokenised and padded ahead
(to the batch's longest row, or all to 128), eager and through `torch.compile`. On this side: what `jaxdistill run`
does, reading and padding included. Every variant is a process of its own; the variants take turns for `--rounds`
rounds, so that a machine whose speed drifts slows all of them. Padding is not counted: an example is an example,
whatever it was padded to. Compilation and the first steps are left out on both sides. Neither side's speed depends on
the weights, so our teacher and student have fresh ones.

With `--length N` every row is cut and padded to N tokens on both sides: the same shapes, which compares the arithmetic
alone. The variant `bound` then says what is left to gain: the step's matrix products, each by itself and as often as
the step computes it, and AdamW's update from ready gradients. A step of these kernels cannot be faster, whatever
becomes of everything else in it. Needs the `parity` extra (torch). Prints a table, or the figures with --json.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxdistill.bench.processors import Stopwatch, as_options, run_in_turns
from jaxdistill.bench.spread import ratio

SHAPES = {"L6H384": (6, 384, 12, 1536), "mini": (4, 256, 4, 1024), "tiny": (2, 128, 2, 512), "femto": (2, 50, 2, 200)}
VARIANTS = ("jaxdistill", "torch-pad128", "torch-dynamic", "torch-pad128-compiled", "torch-dynamic-compiled")
SAME_SHAPES = ("jaxdistill", "torch", "torch-compiled", "bound")
LONGEST, LEARNING_RATE, KD_WEIGHT = 128, 1e-4, 0.5
TURN = 64  # our batches that are sorted by length together: a fair mix
SAME_LENGTH_TURN = 8  # where all have one length
CALLS = 100  # of a single product or update, timed together

Figures = dict[str, float]


def main() -> None:
    """Run the variants in turn and print ratios, or be one variant (`--variant`)."""
    arguments = _parse()
    if arguments.variant:
        measure = {"jaxdistill": _measure_jax, "bound": _measure_bound}.get(arguments.variant, _measure_torch)
        print(json.dumps(measure(arguments)))
        return
    names = (arguments.variants or ",".join(SAME_SHAPES if arguments.length else VARIANTS)).split(",")
    kept = ("teacher", "teacher_shape", "data", "batch_size", "dropout", "length", "seconds")
    shared = {name: getattr(arguments, name) for name in kept}
    results: dict[str, dict[str, list[Figures]]] = {}
    for student in arguments.students.split(","):
        print(f"# {student}", file=sys.stderr, flush=True)
        variants = {name: as_options({"variant": name, "student": student, **shared}) for name in names}
        results[student] = run_in_turns(__file__, variants, rounds=arguments.rounds, cpu=arguments.cpu)
    if arguments.json:
        print(json.dumps(results))
    else:
        _print(results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, type=Path, help="Hugging Face BERT directory")
    parser.add_argument("--teacher-shape", choices=SHAPES, help="a fresh teacher of this shape instead")
    parser.add_argument("--data", required=True, type=Path, help="TSV with a header: label, sentence")
    parser.add_argument("--students", default="L6H384,mini,tiny,femto")
    parser.add_argument("--student", help=argparse.SUPPRESS)
    parser.add_argument("--variants", help=f"of {', '.join((*VARIANTS, *SAME_SHAPES[1:]))}")
    parser.add_argument("--variant", choices=dict.fromkeys((*VARIANTS, *SAME_SHAPES)), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.0, help="of the student, on both sides")
    parser.add_argument("--length", type=int, help="cut and pad every row to so many tokens, on both sides")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of each turn")
    parser.add_argument("--cpu", type=int, default=0, help="the processor every variant is pinned to")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _print(results: dict[str, dict[str, list[Figures]]]) -> None:
    columns = f"{'ex/CPU-s':>9} {'min':>8} {'max':>8} {'ex/s':>8} {'jaxdistill is':>14} {'least':>7} {'most':>7}"
    print(f"{'student':8} {'variant':24} {columns}")
    for student, variants in results.items():
        ours = [figures["examples_per_cpu_s"] for figures in variants.get("jaxdistill", [])]
        for variant, rounds in variants.items():
            cpu = [figures["examples_per_cpu_s"] for figures in rounds]
            wall = statistics.median(figures["examples_per_s"] for figures in rounds)
            line = f"{student:8} {variant:24} {statistics.median(cpu):9.1f} {min(cpu):8.1f} {max(cpu):8.1f} {wall:8.1f}"
            if ours:
                times = ratio(ours, cpu)
                line += f" {times['ratio']:13.2f}× {times['min']:7.2f} {times['max']:7.2f}"
            print(line)


def _figures(*, examples: int, steps: int, wall: float, cpu: float) -> Figures:
    """Rates of a process; its CPU-seconds are those of all its threads."""
    return {
        "examples_per_s": round(examples / wall, 1),
        "examples_per_cpu_s": round(examples / cpu, 1),
        "step_cpu_ms": round(1e3 * cpu / steps, 3),
        "steps": steps,
    }


def _measure_jax(arguments: argparse.Namespace) -> Figures:
    """A stage of a run: its own pipeline, its own compiled step."""
    runner = _runner(arguments)
    batches = SAME_LENGTH_TURN if arguments.length else TURN
    runner.settled_turn(batches)
    turns: list[Any] = []
    while sum(turn.wall for turn in turns) < arguments.seconds:
        turns.append(runner.settled_turn(batches))
    runner.close()
    return _figures(
        examples=sum(turn.examples for turn in turns),
        steps=sum(turn.steps for turn in turns),
        wall=sum(turn.wall for turn in turns),
        cpu=sum(turn.cpu for turn in turns),
    )


def _measure_bound(arguments: argparse.Namespace) -> Figures:
    """The step's matrix products one after another, and its update, and nothing else."""
    from jaxdistill.train.flops import matmuls

    runner = _runner(arguments)
    (batch,) = runner.batches.ready(1, most=1).take(1)
    placed = runner.step.put_batch(batch)
    products = matmuls(runner.step.jaxpr(runner.state, runner.teacher_params, placed))
    seconds = sum(times * _product_seconds(product) for product, times in products.items())
    seconds += _update_seconds(runner, placed)
    examples, _ = runner.job.feed.sizes(batch)
    runner.close()
    return _figures(examples=examples, steps=1, wall=seconds, cpu=seconds)


def _product_seconds(product: Any) -> float:
    """CPU-seconds of a matrix product on operands that are in the processor's caches, if they fit."""
    import jax
    import jax.numpy as jnp

    operands = (product.left, product.right)
    left, right = (jax.random.normal(jax.random.key(0), shape).astype(dtype) for shape, dtype in operands)
    multiply = jax.jit(
        lambda left, right: jax.lax.dot_general(
            left, right, product.dimension_numbers, preferred_element_type=product.result
        )
    )
    nothing = jax.jit(lambda left, right: jnp.zeros((), left.dtype))
    return max(0.0, _call_seconds(multiply, left, right) - _call_seconds(nothing, left, right))


def _call_seconds(function: Any, *arguments: Any) -> float:
    """CPU-seconds of a call, the least of several turns."""
    return _seconds(lambda _: function(*arguments), None)


def _update_seconds(runner: Any, batch: Any) -> float:
    """CPU-seconds of the optimizer's update in place, from gradients that are ready."""
    import jax
    import jax.numpy as jnp

    from jaxdistill.models.init import take
    from jaxdistill.train.job import make_step
    from jaxdistill.train.rows import BatchRows

    _, optimizer, _ = make_step(runner.job, runner.step.mesh)
    path = runner.job.student.word_table
    params = jax.tree.map(jnp.copy, runner.state.params)
    rows = BatchRows.of(path, take(params, path), batch["input_ids"])
    taken = params if rows is None else rows.taken(params)
    ready = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3), taken)
    gradients = ready if rows is None else rows.gradient(ready)

    def update(params: Any, state: Any, gradients: Any) -> Any:
        changes, state = optimizer.update(gradients, state, params, finite=jnp.bool_(True), grad_norm=jnp.float32(1))
        return jax.tree.map(jnp.add, params, changes), state

    in_place = jax.jit(update, donate_argnums=(0, 1))
    return _seconds(lambda before: in_place(*before, gradients), (params, optimizer.init(params)))


def _seconds(step: Callable[[Any], Any], value: Any) -> float:
    """CPU-seconds of a step, which is given what the step before has returned; the least of several turns."""
    import jax

    value = jax.block_until_ready(step(value))
    turns = []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(CALLS):
            value = step(value)
        jax.block_until_ready(value)
        turns.append((time.process_time() - begin) / CALLS)
    return min(turns)


def _runner(arguments: argparse.Namespace) -> Any:
    """What times a stage's step, as `jaxdistill run` would train it."""
    from jaxdistill.host_memory import keep_freed_memory

    keep_freed_memory()  # as `jaxdistill run` does
    from rich.console import Console

    from jaxdistill import data
    from jaxdistill.bench.runner import StepRunner
    from jaxdistill.config import build_chain, run_from_dict
    from jaxdistill.parallel import use_compilation_cache
    from jaxdistill.stages.prepare import Preparation
    from jaxdistill.train.stage_step import StageStep

    use_compilation_cache(data.default_cache_dir() / "compiled")
    preparation = Preparation(build_chain(run_from_dict(_run(arguments))), Console(quiet=True), untrained=True)
    preparation.survey()
    job = preparation.task.job(preparation.surveys["student"])
    if arguments.length:
        feed: Any = job.feed
        job = dataclasses.replace(job, feed=dataclasses.replace(feed, lengths=(arguments.length,)))
    return StepRunner(StageStep(job))


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration of a teacher and a student, of which only the student is trained, for ever."""
    train = {"steps": 10**6, "batch_size": arguments.batch_size, "learning_rate": LEARNING_RATE, "max_grad_norm": None}
    loss = [
        {"type": "forward_kl", "weight": KD_WEIGHT},
        {"type": "cross_entropy", "weight": 1 - KD_WEIGHT},
    ]
    shape = arguments.teacher_shape
    teacher = {"pretrained": str(arguments.teacher)} if shape is None else {"architecture": "bert", **_shape(shape)}
    dropout = {"hidden_dropout_prob": arguments.dropout, "attention_probs_dropout_prob": arguments.dropout}
    student = {"architecture": "bert", **_shape(arguments.student), **dropout}
    return {
        "name": "bench",
        "tokenizer": str(arguments.teacher),
        "data": {
            "train": {"path": str(arguments.data)},
            "text": ["sentence"],
            "max_length": arguments.length or LONGEST,
            "truncate": True,
        },
        "parallel": {"data": 1},
        "stages": [
            {"name": "teacher", "teacher": None, "student": teacher, "train": train},
            {"name": "student", "teacher": "teacher", "student": student, "train": train, "loss": loss},
        ],
    }


def _shape(name: str) -> dict[str, Any]:
    """A shape by Hugging Face's names."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return dict(zip(names, SHAPES[name], strict=True))


def _measure_torch(arguments: argparse.Namespace) -> Figures:
    """Transformers models with everything that makes the usual loop fast."""
    import torch
    import torch.nn.functional as F  # noqa: N812  as everybody calls it
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    teacher, student = _torch_models(arguments)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, fused=True)
    compiled = arguments.variant.endswith("compiled")
    if compiled:
        dynamic = "dynamic" in arguments.variant
        teacher, student = torch.compile(teacher, dynamic=dynamic), torch.compile(student, dynamic=dynamic)
    batches = _torch_batches(arguments, tokenizer, count=400)
    warm_up = 32 if compiled else 8
    watch, examples, steps = Stopwatch(), 0, 0
    for index, (encoded, labels) in enumerate(itertools.cycle(batches)):
        if index == warm_up:
            watch = Stopwatch()
        elif index > warm_up and watch.read()[0] > arguments.seconds:
            break
        with torch.inference_mode():
            taught = teacher(**encoded).logits
        logits = student(**encoded).logits
        target = F.softmax(taught.clone(), -1)  # what inference mode made cannot be kept for a backward pass
        kd = F.kl_div(F.log_softmax(logits, -1), target, reduction="batchmean")
        loss = (1 - KD_WEIGHT) * F.cross_entropy(logits, labels) + KD_WEIGHT * kd
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if index >= warm_up:
            examples, steps = examples + len(labels), steps + 1
    wall, cpu = watch.read()
    return _figures(examples=examples, steps=steps, wall=wall, cpu=cpu)


def _torch_models(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The teacher, for evaluation, and a fresh student."""
    from transformers import AutoModelForSequenceClassification, BertConfig

    def fresh(shape: str, dropout: float) -> Any:
        rates: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = BertConfig(vocab_size=30522, **rates, **_shape(shape))
        return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")

    if arguments.teacher_shape is None:
        teacher = AutoModelForSequenceClassification.from_pretrained(
            arguments.teacher, num_labels=2, attn_implementation="sdpa"
        )
    else:
        teacher = fresh(arguments.teacher_shape, 0.0)
    return teacher.eval(), fresh(arguments.student, arguments.dropout).train()


def _torch_batches(arguments: argparse.Namespace, tokenizer: Any, *, count: int) -> list[tuple[dict[str, Any], Any]]:
    """Ready batches: neither tokenising nor collating is part of this side's time."""
    import torch

    size, longest = arguments.batch_size, arguments.length or LONGEST
    padding = "longest" if "dynamic" in arguments.variant else "max_length"
    rows = list(itertools.islice(_rows(arguments.data), count * size))
    batches = []
    for start in range(0, len(rows) - size + 1, size):
        part = rows[start : start + size]
        texts = [text for _, text in part]
        encoded = tokenizer(texts, truncation=True, max_length=longest, padding=padding, return_tensors="pt")
        batches.append((dict(encoded), torch.tensor([label for label, _ in part])))
    return batches


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    """(label, sentence) in shuffled order."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            (int(row[0]), row[1]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row[0] in "01"
        ]
    random.Random(0).shuffle(rows)
    return iter(rows)


if __name__ == "__main__":
    main()
