"""Real training examples per CPU-second: a distillation step here against the PyTorch + Transformers loop users write.

    python scripts/bench_vs_torch.py --teacher MINILM_DIR --data SST2_TRAIN.tsv [--students mini,tiny,femto,L6H384]

Same teacher (online), same rows, same batch size, no dropout on either side, AdamW, one pinned thread each. Every
variant is a process of its own; the variants take turns for `--rounds` rounds, so that a machine whose speed drifts
slows all of them. Padding is not counted: an example is an example, whatever it was padded to. Compilation and the
first steps are left out on both sides. Needs the `parity` extra (torch). Prints a table and, with --json, the figures.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from one_processor import run_pinned

SHAPES = {"L6H384": (6, 384, 12, 1536), "mini": (4, 256, 4, 1024), "tiny": (2, 128, 2, 512), "femto": (2, 50, 2, 200)}
VARIANTS = ("jaxdistill", "torch-dynamic", "torch-pad128", "torch-dynamic-compiled")


def main() -> None:
    """Run the variants in turn and print ratios, or be one variant (`--variant`)."""
    arguments = _parse()
    if arguments.variant:
        measure = _measure_jax if arguments.variant == "jaxdistill" else _measure_torch
        print(json.dumps(measure(arguments)))
        return
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    variants = arguments.variants.split(",")
    for student in arguments.students.split(","):
        for turn in range(arguments.rounds):
            for variant in variants:
                figures = _spawn(arguments, variant, student)
                results.setdefault(student, {}).setdefault(variant, []).append(figures)
                print(f"# {student} {variant} round {turn + 1}: {figures}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(results))
    else:
        _print(results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, type=Path, help="Hugging Face BERT directory")
    parser.add_argument("--data", required=True, type=Path, help="TSV with a header: label, sentence")
    parser.add_argument("--students", default="L6H384,mini,tiny,femto")
    parser.add_argument("--student", help=argparse.SUPPRESS)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of each turn")
    parser.add_argument("--cpu", type=int, default=0, help="the processor every variant is pinned to")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _spawn(arguments: argparse.Namespace, variant: str, student: str) -> dict[str, float]:
    options = ["--variant", variant, "--student", student]
    options += ["--teacher", str(arguments.teacher), "--data", str(arguments.data)]
    options += ["--batch-size", str(arguments.batch_size), "--seconds", str(arguments.seconds)]
    return run_pinned(__file__, options, cpu=arguments.cpu)


def _print(results: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    print(f"{'student':8} {'variant':24} {'ex/CPU-s':>9} {'min':>8} {'max':>8} {'ex/s':>8} {'jaxdistill is':>14}")
    for student, variants in results.items():
        ours = [figures["examples_per_cpu_s"] for figures in variants.get("jaxdistill", [])]
        for variant, rounds in variants.items():
            cpu = [figures["examples_per_cpu_s"] for figures in rounds]
            wall = statistics.median(figures["examples_per_s"] for figures in rounds)
            ratio = statistics.median(a / b for a, b in zip(ours, cpu, strict=True)) if ours else float("nan")
            print(
                f"{student:8} {variant:24} {statistics.median(cpu):9.1f} {min(cpu):8.1f} {max(cpu):8.1f} {wall:8.1f} "
                f"{ratio:13.2f}×"
            )


class _Clock:
    """Counts examples, wall and CPU seconds (of the whole process, all threads) from `start` on."""

    def __init__(self, seconds: float) -> None:
        self.budget = seconds
        self.examples = 0
        self.steps = 0

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def over(self) -> bool:
        return time.perf_counter() - self.wall > self.budget

    def figures(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {
            "examples_per_s": round(self.examples / wall, 1),
            "examples_per_cpu_s": round(self.examples / cpu, 1),
            "steps": self.steps,
        }


def _rows(path: Path) -> list[tuple[int, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            (int(row[0]), row[1]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row[0] in "01"
        ]
    random.Random(0).shuffle(rows)
    return rows


def _measure_jax(arguments: argparse.Namespace) -> dict[str, float]:
    """The package's own path: bucketed batches from Grain, teacher and student in one compiled step."""
    from jaxdistill.host_memory import keep_freed_memory

    keep_freed_memory()  # as `jaxdistill run` does
    import jax

    from jaxdistill import data, models
    from jaxdistill.config import CrossEntropyTerm, DataConfig, DivergenceTerm, SourceConfig, TrainConfig
    from jaxdistill.distill import OnlineTeacher, make_objective
    from jaxdistill.train import init_state, make_train_step
    from jaxdistill.train.optimizer import build_optimizer

    layers, hidden, heads, intermediate = SHAPES[arguments.student]
    source = SourceConfig(path=str(arguments.data))
    rows = data.load_rows(DataConfig(text=("sentence",)), source)
    labels, _ = data.encode_labels(rows, None)
    tokenizer = data.load_tokenizer(str(arguments.teacher))
    dataset = data.tokenize(rows, [tokenizer], max_length=128, truncate=True, labels=labels)
    teacher, teacher_params = models.from_pretrained(arguments.teacher, task="classification", num_labels=2)
    student = models.build(
        models.config_from_hf(
            {
                "model_type": "bert",
                "vocab_size": 30522,
                "hidden_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": intermediate,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        ),
        task="classification",
        num_labels=2,
    )
    train = TrainConfig(steps=10**6, batch_size=arguments.batch_size, learning_rate=1e-4, max_grad_norm=None)
    optimizer, _ = build_optimizer(train, 10**6)
    terms = (DivergenceTerm(type="forward_kl", weight=0.5), CrossEntropyTerm(type="cross_entropy", weight=0.5))
    step = make_train_step(
        student=student,
        teachers=[OnlineTeacher(teacher)],
        objective=make_objective(terms, (1.0,)),
        optimizer=optimizer,
    )
    state = init_state(student, optimizer, jax.random.key(0))
    taught = step.put_params((teacher_params,))
    batches = data.train_iterator(
        dataset, batch_size=arguments.batch_size, seed=0, batching="bucketed", shuffle_window=64, steps=10**6
    )
    clock = _Clock(arguments.seconds)
    metrics: dict[str, Any] = {}
    for _ in range(64):  # a shuffle window: every length has been compiled
        state, metrics = step(state, taught, next(batches))
    jax.block_until_ready(metrics)
    clock.start()
    while not clock.over():
        for _ in range(64):  # whole shuffle windows: a fair mix of lengths
            batch = next(batches)
            clock.examples += int((batch["example_id"] >= 0).sum())
            clock.steps += 1
            state, metrics = step(state, taught, batch)
        jax.block_until_ready(metrics)
    return clock.figures()


def _measure_torch(arguments: argparse.Namespace) -> dict[str, float]:
    """Transformers models, batch-maximum or fixed padding, `no_grad` teacher, AdamW: the usual loop."""
    import torch
    import torch.nn.functional as F  # noqa: N812  as everybody calls it
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers, hidden, heads, intermediate = SHAPES[arguments.student]
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    teacher = BertForSequenceClassification.from_pretrained(arguments.teacher, num_labels=2).eval()
    student = BertForSequenceClassification(
        BertConfig(
            vocab_size=30522,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).train()
    if arguments.variant.endswith("compiled"):
        teacher, student = torch.compile(teacher, dynamic=True), torch.compile(student, dynamic=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    batches = _torch_batches(arguments, tokenizer, count=400)
    clock, warm_up = _Clock(arguments.seconds), 8
    for index in itertools.count():
        if index == warm_up:
            clock.start()
        elif index > warm_up and clock.over():
            break
        encoded, labels = batches[index % len(batches)]
        with torch.no_grad():
            teacher_logits = teacher(**encoded).logits
        logits = student(**encoded).logits
        kd = F.kl_div(F.log_softmax(logits, -1), F.softmax(teacher_logits, -1), reduction="batchmean")
        loss = 0.5 * F.cross_entropy(logits, labels) + 0.5 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss)
        if index >= warm_up:
            clock.examples += len(labels)
            clock.steps += 1
    return clock.figures()


def _torch_batches(arguments: argparse.Namespace, tokenizer: Any, *, count: int) -> list[tuple[dict[str, Any], Any]]:
    """Ready batches: neither tokenising nor collating is part of this side's time."""
    import torch

    rows, size = _rows(arguments.data), arguments.batch_size
    padding = "max_length" if "pad128" in arguments.variant else "longest"
    batches = []
    for index in range(min(count, len(rows) // size)):
        part = rows[index * size :][:size]
        texts = [text for _, text in part]
        encoded = tokenizer(texts, truncation=True, max_length=128, padding=padding, return_tensors="pt")
        batches.append((dict(encoded), torch.tensor([label for label, _ in part])))
    return batches


if __name__ == "__main__":
    main()
