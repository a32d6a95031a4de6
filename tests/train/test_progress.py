"""What is shown while a stage trains."""

from __future__ import annotations

import io

from rich.console import Console

from jaxdistill.train.progress import StageProgress

VALUES = {"loss": 0.43214, "kd": 0.3, "ce": 1.25, "learning_rate": 1e-4, "accuracy": 0.5}


def shown(console: Console) -> str:
    with StageProgress("assistant", 1000, 400, console) as progress:
        progress.update(450, VALUES, 123.4, 45678.9)
        progress.note("assistant: step 450, validation accuracy 0.9 [sst2]")
        progress.update(1000, VALUES, 123.4, 45678.9)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_each_update_is_one_plain_line():
    first, note, last = shown(Console(file=io.StringIO(), width=40)).splitlines()
    assert first.startswith(
        "assistant: step 450/1000  loss 0.4321  kd 0.3000  ce 1.2500  lr 1.0e-04  123 examples/s  45679 tokens/s  0:"
    )
    assert note == "assistant: step 450, validation accuracy 0.9 [sst2]"
    assert last.endswith("0:00:00 left")


def test_a_terminal_gets_a_bar_that_fits_its_width():
    text = shown(Console(file=io.StringIO(), force_terminal=True, width=80))
    for part in ("assistant", "450/1000", "loss 0.4321", "lr 1.0e-04", "123 examples/s", "45679 tokens/s"):
        assert part in text
    assert "…" not in text
    assert "[sst2]" in text


def test_a_quiet_console_shows_nothing():
    assert shown(Console(file=io.StringIO(), quiet=True)) == ""
    assert shown(Console(file=io.StringIO(), force_terminal=True, quiet=True)) == ""


def shown_of_a_language_model(console: Console, values: dict[str, float]) -> str:
    with StageProgress("assistant", 1000, 400, console, counts_tokens=True) as progress:
        progress.update(450, values, 0.25, 73.4)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_language_model_is_shown_by_perplexity_and_tokens_a_second():
    values = {"loss": 4.5, "kd": 0.9, "ce": 3.6, "cross_entropy": 4.0, "learning_rate": 1e-4}
    (line,) = shown_of_a_language_model(Console(file=io.StringIO()), values).splitlines()
    assert "lr 1.0e-04  perplexity 54.5982  73.4000 tokens/s  0.2500 sequences/s  0:" in line
    text = shown_of_a_language_model(Console(file=io.StringIO(), force_terminal=True, width=80), values)
    assert "perplexity 54.5982" in text
    assert "…" not in text


def test_a_perplexity_that_nobody_measured_or_that_is_no_number_is_not_shown():
    for values in ({"loss": 4.5, "kd": 4.5}, {"loss": 1e4, "cross_entropy": 1e4}, {"cross_entropy": float("nan")}):
        assert "perplexity" not in shown_of_a_language_model(Console(file=io.StringIO()), values)
