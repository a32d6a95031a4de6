"""Several steps in one dispatch: the same results as one by one, one program, and no wait between two log lines."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_encoder import ToyEncoder, make_batch

from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.data.stacking import groups, stack
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import make_mesh, scan_first
from jaxdistill.train import init_state, make_train_step
from jaxdistill.train.dispatch import Groups
from jaxdistill.train.metrics import fetch

STUDENT = ToyEncoder(hidden_size=16, dropout=0.1)
TEACHER = ToyEncoder(hidden_size=24)
OBJECTIVE = make_objective(
    [DivergenceTerm("forward_kl", weight=0.7, temperature=2.0), CrossEntropyTerm("cross_entropy", weight=0.3)], [1.0]
)
BATCHES = [make_batch(seed=seed) for seed in range(5)]


def make(devices, **options):
    optimizer = optax.adamw(1e-2)
    mesh = make_mesh(ParallelConfig(data=devices))
    step = make_train_step(
        student=STUDENT,
        teachers=[OnlineTeacher(TEACHER)],
        objective=OBJECTIVE,
        optimizer=optimizer,
        mesh=mesh,
        **options,
    )
    taught = step.put_params([jax.jit(TEACHER.init)(jax.random.key(7))])

    def start():
        return step.put_state(init_state(STUDENT, optimizer, jax.random.key(0), mesh))

    return step, start, taught


def host(tree):
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x), tree)


def assert_close(a, b, rtol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), host(a), host(b))


@pytest.mark.parametrize(
    ("strategy", "devices", "accumulate"),
    [("jit", 1, 1), ("jit", 8, 2), pytest.param("pmap", 8, 1, marks=pytest.mark.slow)],
    ids=["one", "mesh", "pmap"],
)
def test_many_steps_are_as_many_single_ones(strategy, devices, accumulate):
    """Five steps: one by one; three and two of four at once; a bad one among them is skipped at its own step."""
    step, start, taught = make(devices, strategy=strategy, accumulate=accumulate)
    batches = [dict(batch) for batch in BATCHES]
    state, single = start(), []
    for batch in batches:
        state, metrics = step(state, taught, batch)
        single.append(metrics)
    expected, (means, _) = step.get_state(state), fetch(single)
    assert step.trace_count == 1

    ends, logs = [], []
    for parts in ((3, 2), (1, 4)):
        state, pending, done = start(), [], 0
        for count in parts:
            state, metrics = step.many(state, taught, stack(batches[done : done + count], 4), count)
            pending.append(metrics)
            done += count
        ends.append(step.get_state(state))
        logs.append(fetch(pending))
    assert step.trace_count == 2  # one more program, whatever the counts
    assert_close((ends[0].params, ends[0].step), (expected.params, expected.step))
    jax.tree.map(np.testing.assert_array_equal, host(ends[0].params), host(ends[1].params))
    assert logs[0][0] == logs[1][0]
    assert logs[0][0] == pytest.approx(means, rel=1e-6)


def test_the_skipped_step_is_named():
    """The second of four has labels and tokens that make its loss infinite: an embedding row beyond the finite."""
    step, start, taught = make(1)
    state = start()
    poisoned = jax.tree.map(jnp.asarray, taught)
    table = poisoned[0]["embeddings"]["word"]
    poisoned[0]["embeddings"]["word"] = table.at[49].set(jnp.nan)
    batches = [{**batch, "input_ids": np.minimum(batch["input_ids"], 48)} for batch in BATCHES[:4]]
    batches[1]["input_ids"][0, 0] = 49
    state, metrics = step.many(state, poisoned, stack(batches, 4), 4)
    means, skipped = fetch([metrics])
    np.testing.assert_array_equal(skipped, [False, True, False, False])
    assert np.isfinite(means["loss"])
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (4, 1, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(host(state.params)))


def test_stacked_batches_must_divide_too():
    step, start, taught = make(8, accumulate=4)
    with pytest.raises(ConfigError, match=r"48 examples .* 8 .* × 4"):
        step.many(start(), taught, stack([make_batch(rows=48)], 2), 1)


def test_a_partial_scan_is_a_scan_over_fewer_rows():
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)

    def body(total, row):
        return total + row.sum(), row * 2

    scan = jax.jit(lambda count: scan_first(body, jnp.float32(0), rows, count))
    for count in (0, 1, 4, 6):
        total, doubled = scan(count)
        expected, twice = jax.lax.scan(body, jnp.float32(0), rows[:count])
        np.testing.assert_array_equal(total, expected)
        np.testing.assert_array_equal(doubled[:count], twice)
        assert not np.asarray(doubled[count:]).any()
    assert scan._cache_size() == 1


class Feed:
    """Batches of the given lengths; its position is how many were read."""

    def __init__(self, lengths, start=0):
        self.lengths, self.read = lengths, start

    def __next__(self):
        self.read += 1
        return make_batch(rows=4, length=self.lengths[self.read - 1], fillers=0, unlabelled=0, seed=self.read)

    def get_state(self):
        return self.read

    def close(self):
        self.lengths = []


def test_groups_have_one_shape_and_positions_of_what_was_given_out():
    lengths = [8, 8, 8, 4, 4, 8, 8, 8, 8, 8]
    feed, sizes, done = Groups(Feed(lengths), most=3), [], 0
    while done < len(lengths):
        group = feed.take(min(7, len(lengths)) - done if done < 7 else len(lengths) - done)
        assert len({batch["input_ids"].shape for batch in group}) == 1
        assert [batch["input_ids"].shape[1] for batch in group] == lengths[done : done + len(group)]
        done += len(group)
        assert feed.get_state() == done
        sizes.append(len(group))
    assert sizes == [3, 2, 2, 3]


def test_neighbours_of_one_shape_are_grouped():
    batches = [make_batch(rows=4, length=length, fillers=0, unlabelled=0) for length in (9, 9, 9, 5, 5, 9)]
    assert [len(group) for group in groups(batches, 2)] == [2, 1, 2, 1]
    assert [batch for group in groups(batches, 2) for batch in group] == batches
    assert list(groups([], 2)) == []
