"""Real tokens per CPU-second and peak memory: distilling a causal language model here and in the usual PyTorch loop.

    python scripts/bench_lm_vs_torch.py --teacher SMOLLM2_135M_DIR --text FILE [--variants jaxdistill,torch] [--json]

Same teacher (online), same blocks of text, a fresh student of the same shape (default: 31M parameters), loss
0.7·T²·KL + 0.3·CE at T = 2 over every token, gradients clipped to norm 1, AdamW (0.9, 0.95, decay 0.1), float32, one
pinned thread each. Every variant is a process of its own; the variants take turns for `--rounds` rounds, so that a
machine whose speed drifts slows all of them: compare ratios. Compilation and the first steps are left out of the time
on both sides. Needs the `parity` extra (torch).

Memory is the process's own high-water mark of resident memory: of the whole process, loading and compilation included;
less what the libraries take before anything is loaded; and of the timed steps alone.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.bench.processors import Stopwatch, as_options, run_in_turns

VARIANTS = ("jaxdistill", "jaxdistill-dense", "torch", "torch-compiled")
TEMPERATURE, KD_WEIGHT, LEARNING_RATE, WEIGHT_DECAY = 2.0, 0.7, 2e-4, 0.1
COLUMNS = {
    "tokens_per_cpu_s": "tokens/CPU-s",
    "peak_mb": "peak MB",
    "peak_over_libraries_mb": "… less libraries",
    "peak_of_steps_mb": "… of the steps",
}


def main() -> None:
    """Run the variants in turn and print ratios, or be one variant (`--variant`)."""
    arguments = _parse()
    if arguments.variant:
        measure = _measure_jax if arguments.variant.startswith("jaxdistill") else _measure_torch
        print(json.dumps(measure(arguments)))
        return
    kept = ("teacher", "text", "layers", "hidden", "intermediate", "heads", "kv_heads", "warm_up", "remat")
    with tempfile.TemporaryDirectory() as directory:
        blocks = Path(directory) / "blocks.npy"
        np.save(blocks, _blocks(arguments))
        shared = {"blocks": blocks, **{name: getattr(arguments, name) for name in kept}}
        variants = {name: as_options({"variant": name, **shared}) for name in arguments.variants.split(",")}
        results = run_in_turns(__file__, variants, rounds=arguments.rounds, cpu=arguments.cpu)
    if arguments.json:
        print(json.dumps(results))
    else:
        _print(results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, type=Path, help="Hugging Face directory of a Llama, float32 in use")
    parser.add_argument("--text", required=True, type=Path, help="UTF-8 text")
    parser.add_argument("--layers", type=int, default=8, help="of the student, as are the next four")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--remat", default="names", help="train.remat of our student: none, full, dots or names")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each turn")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpu", type=int, default=0, help="the processor every variant is pinned to")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _print(results: dict[str, list[dict[str, float]]]) -> None:
    """Medians over the rounds, and what the first variant's are of the others'."""
    medians = {
        variant: {name: statistics.median(turn[name] for turn in turns) for name in COLUMNS}
        for variant, turns in results.items()
    }
    first = next(iter(medians))
    print(f"{'':18}" + "".join(f"{title:>24}" for title in COLUMNS.values()) + f"   (× = {first}'s / this one's)")
    for variant, figures in medians.items():
        cells = "".join(f"{value:14.1f} ({medians[first][name] / value:5.2f}×)" for name, value in figures.items())
        print(f"{variant:18}{cells}")


class _Meter:
    """Memory of this process from the moment its libraries are loaded, and the time of the steps after the warm-up."""

    def __init__(self) -> None:
        self._libraries = _resident("VmRSS")

    def time(self, step: Callable[[np.ndarray], float], blocks: np.ndarray, *, warm_up: int) -> dict[str, float]:
        """Run `step`, which waits for its result and returns the loss, on every block [B, S]."""
        for block in blocks[:warm_up]:
            step(block)
        before = _resident("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from what is resident now
        loss, watch = 0.0, Stopwatch()
        for block in blocks[warm_up:]:
            loss = step(block)
        wall, cpu = watch.read()
        tokens, steps = blocks[warm_up:].size, _resident("VmHWM")
        peak = max(before, steps)
        return {
            "tokens_per_s": round(tokens / wall, 1),
            "tokens_per_cpu_s": round(tokens / cpu, 1),
            "peak_mb": round(peak, 1),
            "peak_over_libraries_mb": round(peak - self._libraries, 1),
            "peak_of_steps_mb": round(steps, 1),
            "libraries_mb": round(self._libraries, 1),
            "last_loss": round(loss, 4),
        }


def _resident(field: str) -> float:
    """VmRSS (now) or VmHWM (most since the last reset), in MB."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert match is not None, field
    return int(match[1]) * 1024 / 1e6


def _blocks(arguments: argparse.Namespace) -> np.ndarray:
    """Consecutive tokens of the text, int32 [steps, B, S]: tokenising is part of neither side's time or memory."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    steps = arguments.steps + arguments.warm_up
    needed = steps * arguments.batch_size * arguments.sequence
    ids = tokenizer(arguments.text.read_text(encoding="utf-8")[: 8 * needed])["input_ids"]
    if len(ids) < needed:
        sys.exit(f"{arguments.text}: {len(ids)} tokens, {needed} needed")
    return np.asarray(ids[:needed], np.int32).reshape(steps, arguments.batch_size, arguments.sequence)


def _shape(arguments: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": arguments.hidden,
        "intermediate_size": arguments.intermediate,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "num_key_value_heads": arguments.kv_heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }


def _measure_jax(arguments: argparse.Namespace) -> dict[str, float]:
    """The package's own step: teacher, student and update in one program, its loss fused or from whole logits."""
    from jaxdistill.host_memory import keep_freed_memory, release_freed_memory

    keep_freed_memory()  # as `jaxdistill run` does
    import jax

    from jaxdistill import models
    from jaxdistill.config import CrossEntropyTerm, DivergenceTerm, TrainConfig
    from jaxdistill.distill import OnlineTeacher, make_objective
    from jaxdistill.train import init_state, make_train_step
    from jaxdistill.train.optimizer import build_optimizer

    meter = _Meter()
    teacher = models.build(models.config_from_hf(arguments.teacher), task="causal_lm")
    shape = _shape(arguments, teacher.config.vocab_size)
    student = models.build(
        models.config_from_hf({"model_type": "llama", **shape}), task="causal_lm", remat=arguments.remat
    )
    train = TrainConfig(
        steps=10**6,
        batch_size=arguments.batch_size,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup=0,
        b2=0.95,
        weight_decay=WEIGHT_DECAY,
    )
    optimizer, _ = build_optimizer(train, 10**6)
    terms = (
        DivergenceTerm(type="forward_kl", weight=KD_WEIGHT, temperature=TEMPERATURE),
        CrossEntropyTerm(type="cross_entropy", weight=1 - KD_WEIGHT),
    )
    fused = "off" if arguments.variant.endswith("dense") else "on"
    step = make_train_step(
        student=student,
        teachers=[OnlineTeacher(teacher)],
        objective=make_objective(terms, (1.0,), fused=fused),
        optimizer=optimizer,
    )
    blocks = np.load(arguments.blocks)
    # compiled from shapes, before there are weights beside which the compiler would need its memory
    shapes = step.abstract_params([models.parameter_shapes(teacher)])
    step.lower(step.abstract_state(), shapes, _batch(blocks[0])).compile()
    release_freed_memory()
    taught = step.put_params((models.from_pretrained(arguments.teacher, task="causal_lm")[1],))
    state = init_state(student, optimizer, jax.random.key(0))
    release_freed_memory()

    def advance(block: np.ndarray) -> float:
        nonlocal state
        state, metrics = step(state, taught, _batch(block))
        total, count = jax.device_get(metrics["loss"])
        return float(total / count)

    return meter.time(advance, blocks, warm_up=arguments.warm_up)


def _batch(block: np.ndarray) -> dict[str, np.ndarray]:
    """A batch as `jaxdistill run` makes it: every row one document, whose last token has no label."""
    rows, length = block.shape
    return {
        "input_ids": block,
        "segment_ids": np.ones_like(block),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "labels": np.concatenate([block[:, 1:], np.full((rows, 1), -100, np.int32)], axis=1),
        "example_id": np.arange(rows, dtype=np.int32),
    }


def _measure_torch(arguments: argparse.Namespace) -> dict[str, float]:
    """Transformers models, whole logits of both, teacher in inference mode, fused AdamW: the usual loop."""
    import torch
    import torch.nn.functional as F  # noqa: N812  as everybody calls it
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    meter = _Meter()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_pretrained(arguments.teacher, dtype=torch.float32).eval()
    student = LlamaForCausalLM(LlamaConfig(**_shape(arguments, teacher.config.vocab_size))).train()
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
    )
    if arguments.variant.endswith("compiled"):
        teacher, student = torch.compile(teacher), torch.compile(student)

    def loss_of(tokens: Any) -> Any:
        with torch.inference_mode():
            teacher_logits = teacher(input_ids=tokens, use_cache=False).logits[:, :-1]
        logits = student(input_ids=tokens, use_cache=False).logits[:, :-1]
        ce = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        target = F.log_softmax(teacher_logits.clone() / TEMPERATURE, -1)
        kd = F.kl_div(F.log_softmax(logits / TEMPERATURE, -1), target, log_target=True, reduction="none")
        return KD_WEIGHT * TEMPERATURE**2 * kd.sum(-1).mean() + (1 - KD_WEIGHT) * ce

    def advance(block: np.ndarray) -> float:
        loss = loss_of(torch.from_numpy(block.astype(np.int64)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss.detach())

    return meter.time(advance, np.load(arguments.blocks), warm_up=arguments.warm_up)


if __name__ == "__main__":
    main()
