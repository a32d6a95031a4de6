"""Distillation proper: the objective, the teachers, and a student's start from its teacher."""

from jaxdistill.distill.objective import Metrics, Objective, make_objective
from jaxdistill.distill.teacher import CachedTeacher, OnlineTeacher, Teacher
from jaxdistill.distill.teacher_cache import compute_logits

__all__ = ["CachedTeacher", "Metrics", "Objective", "OnlineTeacher", "Teacher", "compute_logits", "make_objective"]
