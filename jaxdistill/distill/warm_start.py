"""A student's start from its teacher: what is taken, by whichever of the two families they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jaxdistill.config.model_schema import WarmStartConfig
from jaxdistill.distill.decoder_start import check_decoder, start_decoder
from jaxdistill.distill.encoder_start import check_encoder, start_encoder
from jaxdistill.errors import ModelError
from jaxdistill.models import EncoderConfig, LlamaConfig, Model, ModelConfig
from jaxdistill.typing import Batch, Params


def warm_start(
    student_model: Model,
    student_params: Params,
    teacher_model: Model,
    teacher_params: Params,
    config: WarmStartConfig,
    *,
    calibration: Callable[[], Iterable[Batch]] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The student's parameters with what `config` names taken from the teacher, and a line on each thing taken.

    layers: student layer i (1-based) of L_s takes teacher layer i·L_t/L_s rounded to the nearest, ties up (`uniform`),
    the first or last L_s, or those listed (0-based). With them come pooler, classifier and heads of the same shape; a
    classifier's classes by their names where both have names.

    embeddings: `copy` takes word, position and token-type tables and their norm. `svd` takes the directions of largest
    variance of the teacher's centred word table: for a narrower plain table, word, position and token-type tables are
    projected on them and scaled to the standard deviation of the teacher's word table; for one as wide it is `copy`.
    For a factorised table (bert_hash) they are scaled to unit standard deviation, and its projection stays as
    initialised; but beside copied layers, which read the teacher's own coordinates, the projection is what makes the
    product nearest to the teacher's word embedding, and the other tables are copied.

    width: `importance` gives a narrower decoder the part of the teacher that matters most on calibration text, the
    embeddings included (`select_width`).

    Args:
      student_model, student_params: the fresh student.
      teacher_model, teacher_params: whom to copy from.
      config: what to copy.
      calibration: makes batches as the teacher reads them, of which the first few are looked at; only `width` asks.

    Returns:
      (parameters, report lines); nothing is modified in place, and float32 stays float32.

    Raises:
      ModelError: shapes that cannot be copied, saying which differ and what can be done.
    """
    check_warm_start(student_model.config, teacher_model.config, config)
    if config.width is not None and calibration is None:
        raise ModelError("warm_start.width: importance is measured on text, and none was given")
    params = dict(student_params)
    if isinstance(student_model.config, EncoderConfig):
        return params, start_encoder(student_model, params, teacher_model, teacher_params, config)
    batches = calibration() if calibration is not None and config.width is not None else ()
    return params, start_decoder(student_model, params, teacher_model, teacher_params, config, batches)


def check_warm_start(own: ModelConfig, theirs: ModelConfig, config: WarmStartConfig) -> None:
    """What `warm_start` needs of a student's and a teacher's shapes, before there are weights.

    Raises:
      ModelError: as `warm_start`.
    """
    match own, theirs:
        case EncoderConfig(), EncoderConfig():
            check_encoder(own, theirs, config)
        case LlamaConfig(), LlamaConfig():
            check_decoder(own, theirs, config)
        case _:
            raise ModelError(
                f"warm_start: the student is a {own.model_type} and the teacher a {theirs.model_type}; layers and "
                "embeddings are only taken from a model of the same family, encoder or decoder"
            )
