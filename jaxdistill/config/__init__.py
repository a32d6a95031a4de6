"""What may be written in a run's YAML, and how it becomes a resolved chain of stages."""

from jaxdistill.config.chain import Chain, ChainStage, GivenTeacher, build_chain
from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.config.describe import describe, loss_formula
from jaxdistill.config.load import load_run, run_from_dict
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm, JensenShannonTerm
from jaxdistill.config.model_schema import StudentConfig, TeacherConfig
from jaxdistill.config.reading import dump_yaml, parse_yaml, read_yaml
from jaxdistill.config.resolved import differences, fingerprint, resolved_dict
from jaxdistill.config.schema import Run, StageConfig, TrainConfig
from jaxdistill.config.teachers import ResolvedTeacher

__all__ = [
    "Chain",
    "ChainStage",
    "CrossEntropyTerm",
    "DataConfig",
    "DivergenceTerm",
    "GivenTeacher",
    "JensenShannonTerm",
    "ResolvedTeacher",
    "Run",
    "SourceConfig",
    "StageConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
    "build_chain",
    "describe",
    "differences",
    "dump_yaml",
    "fingerprint",
    "load_run",
    "loss_formula",
    "parse_yaml",
    "read_yaml",
    "resolved_dict",
    "run_from_dict",
]
