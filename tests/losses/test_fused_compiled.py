"""What the fused loss compiles to: no logits of all tokens, no more products than the dense loss, little memory."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_examples import DIVERGENCES, Example, dense, fused, random_example, value_and_gradients


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_nothing_has_tokens_times_classes_elements(divergence):
    tokens, classes = 64, 1009  # no other product of sizes collides with theirs
    text = (
        value_and_gradients(lambda e: fused(e, divergence=divergence)).lower(random_example(tokens, classes)).compile()
    )
    sizes = {int(np.prod([int(n) for n in dims.split(",")])) for dims in re.findall(r"\w\[([\d,]+)\]", text.as_text())}
    assert tokens // 4 * classes in sizes
    assert not [size for size in sizes if size >= tokens * classes]


@pytest.mark.parametrize("tokens", [64, 1000])
def test_products_are_the_dense_losses_own(tokens):
    classes, width, teacher_width = 101, 24, 40
    example = random_example(tokens, classes, width, teacher_width)
    needed = (6 * width + 2 * teacher_width) * tokens * classes
    counted = product_operations(jax.make_jaxpr(value_and_gradients(fused))(example).jaxpr)
    assert product_operations(jax.make_jaxpr(value_and_gradients(dense))(example).jaxpr) == needed
    assert needed <= counted <= 1.02 * needed
    forward = product_operations(jax.make_jaxpr(lambda e: fused(e)[0])(example).jaxpr)
    assert forward <= 1.02 * (2 * width + 2 * teacher_width) * tokens * classes


def product_operations(jaxpr, times=1):
    """Floating-point operations of all matrix products, those in a loop as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += (
                times * 2 * int(np.prod(equation.outvars[0].aval.shape)) * int(np.prod([left[i] for i in contracted]))
            )
        inner_times = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                total += product_operations(inner, inner_times)
    return total


def test_memory_at_a_large_vocabulary():
    """Compiled, not run: 8,192 tokens by 128,256 classes are 4.2 GB of float32, which dense losses need repeatedly."""
    tokens, classes, width = 8192, 128_256, 8

    def temporary(function):
        shapes = [(tokens, width), (width, classes), (tokens, width), (width, classes)]
        structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        example = Example(*structs, jax.ShapeDtypeStruct((tokens,), jnp.int32))
        return value_and_gradients(function).lower(example).compile().memory_analysis().temp_size_in_bytes

    assert temporary(fused) < 0.25 * temporary(textbook)
    assert temporary(fused) < 0.25 * temporary(lambda e: dense(e, where=None))


def textbook(example):
    """The least that whole logits of both models take: two softmaxes, nothing more accurate."""
    student, teacher = (x @ y for x, y in (example[:2], example[2:4]))
    log_p, log_q = (jax.nn.log_softmax(logits / 2.0) for logits in (teacher, student))
    kd = 4.0 * jnp.sum(jnp.exp(log_p) * (log_p - log_q))
    label = jnp.take_along_axis(student, example.labels[:, None], axis=-1)[:, 0]
    ce = jnp.sum(jax.nn.logsumexp(student, axis=-1) - label)
    return 0.7 * kd + 0.3 * ce, {}
