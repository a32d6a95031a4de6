"""The data of causal language models: documents tokenised on the fly and packed into rows of a fixed length."""

from jaxdistill.data.text.split import EvalBatches, TextSplit, open_split

__all__ = ["EvalBatches", "TextSplit", "open_split"]
