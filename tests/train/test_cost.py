"""The price of a compilation, which decides how many padded lengths a run compiles."""

from __future__ import annotations

from jaxdistill import models
from jaxdistill.distill.teacher import CachedTeacher, OnlineTeacher
from jaxdistill.train.cost import compile_steps


def _model(width: int, layers: int) -> models.Model:
    shape = {"num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 4 * width}
    return models.build({"model_type": "bert", "hidden_size": width, **shape}, num_labels=2)


def test_a_small_student_makes_many_steps_while_a_program_compiles() -> None:
    tiny, large = (compile_steps(_model(*shape), (), tokens=700, platform="cpu") for shape in ((64, 2), (768, 12)))
    assert tiny > 300
    assert large < 10


def test_a_teacher_in_the_step_makes_it_longer_and_a_cached_one_does_not() -> None:
    student, teacher = _model(64, 2), _model(384, 6)
    alone = compile_steps(student, (), tokens=700, platform="cpu")
    assert compile_steps(student, (CachedTeacher(),), tokens=700, platform="cpu") == alone
    assert compile_steps(student, (OnlineTeacher(teacher),), tokens=700, platform="cpu") < alone / 5


def test_the_word_table_costs_nothing() -> None:
    small, large = (
        models.build({"model_type": "bert", "hidden_size": 64, "vocab_size": size, "num_attention_heads": 4})
        for size in (100, 30000)
    )
    assert compile_steps(small, (), tokens=700) == compile_steps(large, (), tokens=700)
