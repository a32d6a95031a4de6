"""What the tests of the chain share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chain import TINY, VOCABULARY, chain_config, run, write_config, write_csv, write_tokenizer


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with train/dev/test csv files and a pretrained encoder without a classifier."""
    import jax

    from jaxdistill import models

    directory = tmp_path_factory.mktemp("material")
    write_csv(directory / "train.csv", 160, seed=0)
    write_csv(directory / "dev.csv", 48, seed=1)
    write_csv(directory / "test.csv", 48, seed=2)
    config = models.config_from_hf(
        {"model_type": "bert", "vocab_size": len(VOCABULARY), "max_position_embeddings": 64, **TINY}
    )
    model = models.build(config, task="masked_lm")
    models.save_pretrained(model, model.init(jax.random.key(0)), directory / "encoder")
    write_tokenizer(directory / "encoder")
    return directory


@pytest.fixture(scope="session")
def finished(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the whole tiny chain, trained without interruption."""
    output = tmp_path_factory.mktemp("finished") / "run"
    run(write_config(output.parent / "tiny.yaml", chain_config(material, output)))
    return output
