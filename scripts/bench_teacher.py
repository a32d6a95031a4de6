"""What a step costs when its teacher is kept, or shared: CPU time an example, MiniLM teacher, BertHash femto student.

    python scripts/bench_teacher.py --teacher MINILM_DIR --data SST2_TRAIN.tsv [--rounds 3]

    online    the teacher runs in every step
    cached    its logits are looked up (a later epoch with teacher_cache: memory or disk)
    four      four students in one step, one forward of the online teacher; CPU time is that of each student's example

Every variant is a process of its own on one pinned thread, and they take turns. Batches are those that `run` makes
(bucketed, several steps in one dispatch). Padding is not counted. Compilation and the first steps are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from jaxdistill.bench.processors import as_options, run_in_turns
from jaxdistill.bench.spread import spread

VARIANTS = ("online", "cached", "four")
STUDENTS = {"online": 1, "cached": 1, "four": 4}
FEMTO = {
    "model_type": "bert_hash",
    "projections": 5,
    "hidden_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 200,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
TOGETHER = 8
"""Steps of one dispatch."""


def main() -> None:
    """Run the variants in turn and print ratios, or be one of them (`--variant`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, type=Path, help="Hugging Face BERT directory")
    parser.add_argument("--data", required=True, type=Path, help="TSV with a header: label, sentence")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=67_349, help="rows of the data that are used")
    parser.add_argument("--examples", type=int, default=8192, help="at least so many are measured in each turn")
    parser.add_argument("--cpu", type=int, default=0, help="the processor every variant is pinned to")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments)))
        return
    shared = {name: getattr(arguments, name) for name in ("teacher", "data", "batch_size", "rows", "examples")}
    variants = {variant: as_options({"variant": variant, **shared}) for variant in VARIANTS}
    results = run_in_turns(__file__, variants, rounds=arguments.rounds, cpu=arguments.cpu)
    found = {
        variant: spread([figures["cpu_ms_per_example"] for figures in rounds]) for variant, rounds in results.items()
    }
    for variant, each in found.items():
        faster = found["online"]["median"] / each["median"]
        print(
            f"{variant:8} {each['median']:8.3f} CPU-ms an example ({each['min']:.3f} to {each['max']:.3f})   "
            f"{faster:5.1f}×"
        )


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """CPU time of training, per example and student."""
    from jaxdistill.host_memory import keep_freed_memory

    keep_freed_memory()  # as `jaxdistill run` does
    import jax
    import numpy as np

    from jaxdistill import data, models
    from jaxdistill.config import CrossEntropyTerm, DataConfig, DivergenceTerm, SourceConfig, TrainConfig
    from jaxdistill.data.stacking import stack
    from jaxdistill.distill import OnlineTeacher, make_objective
    from jaxdistill.distill.teacher import CachedTeacher
    from jaxdistill.parallel import make_mesh
    from jaxdistill.train import init_state
    from jaxdistill.train.dispatch import Groups
    from jaxdistill.train.optimizer import build_optimizer
    from jaxdistill.train.step import StepProgram, TrainStep
    from jaxdistill.train.swept import CommonObjective, SweptProgram, SweptState

    source = SourceConfig(path=str(arguments.data), limit=arguments.rows)
    rows = data.load_rows(DataConfig(text=("sentence",)), source)
    labels, _ = data.encode_labels(rows, None)
    tokenizer = data.load_tokenizer(str(arguments.teacher))
    dataset = data.tokenize(rows, [tokenizer], max_length=128, truncate=True, labels=labels)
    teacher, teacher_params = models.from_pretrained(arguments.teacher, task="classification", num_labels=2)
    student = models.build(models.config_from_hf({**FEMTO, "vocab_size": 30522}), num_labels=2)
    optimizer, _ = build_optimizer(TrainConfig(steps=10**6, learning_rate=1e-3), 10**6)
    count = STUDENTS[arguments.variant]

    def objective(temperature: float) -> Any:
        kl = DivergenceTerm(type="forward_kl", weight=0.5, temperature=temperature)
        return make_objective((kl, CrossEntropyTerm(type="cross_entropy", weight=0.5)), (1.0,))

    taught: Any = OnlineTeacher(teacher)
    if arguments.variant == "cached":  # what they are does not matter for the time
        taught, teacher_params = CachedTeacher(), {"logits": np.zeros((len(dataset), 2), np.float32)}
    mesh = make_mesh(devices=jax.devices()[:1])
    states = [init_state(student, optimizer, jax.random.key(seed), mesh) for seed in range(count)]
    if count == 1:
        state, program = states[0], StepProgram(student, (taught,), objective(2.0), optimizer, 1)
    else:
        objectives = [objective(1.0 + index) for index in range(count)]
        common = CommonObjective.of(objectives)
        state = SweptState.stacked(states, common.numbers(objectives), (1.0,) * count)
        program = SweptProgram(student, (taught,), common.objective, optimizer, 1)
    step = TrainStep(program, mesh, strategy="jit", donate=True)
    state, params = step.put_state(state), step.put_params((teacher_params,))
    size = arguments.batch_size
    lengths = data.bucket_lengths(dataset, steps=data.total_steps(len(dataset), size, epochs=5))
    feed = data.train_iterator(dataset, batch_size=size, seed=0, steps=10**6, lengths=lengths)
    groups = Groups(feed, most=TOGETHER)
    examples, begin, metrics = 0, 0.0, None
    warm_up = 128  # two shuffle windows: every length has been compiled
    taken = 0
    while examples < arguments.examples:
        batches = groups.take(TOGETHER)
        taken += len(batches)
        if taken > warm_up:
            if not begin:
                jax.block_until_ready(metrics)
                begin = time.process_time()
            examples += sum(int((batch["example_id"] >= 0).sum()) for batch in batches)
        state, metrics = step.many(state, params, stack(batches, TOGETHER), len(batches))
    jax.block_until_ready(metrics)
    seconds = time.process_time() - begin
    return {"cpu_ms_per_example": 1e3 * seconds / (examples * count), "examples": examples, "students": count}


if __name__ == "__main__":
    main()
