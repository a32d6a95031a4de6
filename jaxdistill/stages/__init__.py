"""The chain: stages in order, each handed its teachers by checkpoint, resumed where it stopped, summed up."""

from jaxdistill.stages.build_caches import build_caches
from jaxdistill.stages.check import check
from jaxdistill.stages.execute import execute
from jaxdistill.stages.summary import Summary

__all__ = ["Summary", "build_caches", "check", "execute"]
