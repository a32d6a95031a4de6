"""Progressive knowledge distillation of transformers in JAX.

Importing the package imports none of its parts: `from jaxdistill import losses` loads the losses alone.
"""

__version__ = "0.1.0"
