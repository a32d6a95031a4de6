"""What leaves the program: Hugging Face directories with a model card."""

from jaxdistill.export.huggingface import export_stage

__all__ = ["export_stage"]
