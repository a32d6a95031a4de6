"""What a run needs of devices that are not here: its real steps, compiled for them and read, never run."""

from jaxdistill.plan.request import make_planning
from jaxdistill.plan.stage import Planning, plan_run
from jaxdistill.plan.targets import Target, open_target

__all__ = ["Planning", "Target", "make_planning", "open_target", "plan_run"]
