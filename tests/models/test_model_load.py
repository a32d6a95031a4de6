"""Loading what people have: shards, old names, other dtypes, missing heads; and what is refused, all at once."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from saved_models import rewrite, same
from tiny_encoders import BERT_SHAPE, jit

from jaxdistill import models
from jaxdistill.errors import ExternalError, ModelError

CONFIG = BERT_SHAPE | {"model_type": "bert", "id2label": {"0": "no", "1": "yes"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(directory, model, parameters) of a classifier we wrote."""
    directory = tmp_path_factory.mktemp("saved") / "model"
    model = models.build(CONFIG)
    params = jit(model.init)(jax.random.key(3))
    models.save_pretrained(model, params, directory)
    return directory, model, params


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved directory to damage."""
    return shutil.copytree(saved[0], tmp_path / "copy")


def shard(directory, filename=None):
    """Split model.safetensors into two shards and an index; `filename` replaces the second one's name in the index."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    where = {}
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, directory / file)
        where |= dict.fromkeys(part, filename if filename and file == files[1] else file)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_round_trip(saved):
    directory, model, params = saved
    reports = []
    loaded, back = models.from_pretrained(directory, report=reports.append)
    assert loaded == model
    assert loaded.config.id2label == ("no", "yes")
    assert str(reports[0]) == ""
    same(params, back)


def test_the_weights_are_readable_by_whom_the_configuration_is(saved):
    directory, _, _ = saved
    modes = {(directory / name).stat().st_mode & 0o777 for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1


def test_shards(saved, copy):
    shard(copy)
    same(saved[2], models.from_pretrained(copy)[1])


def test_unprefixed_names_gamma_beta_and_buffers(saved, copy):
    def old(tensors):
        def name(key):
            key = key.removeprefix("bert.")
            if "LayerNorm" in key:
                key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            return key

        buffer = {"embeddings.position_ids": np.arange(24)[None]}
        return {name(key): value for key, value in tensors.items()} | buffer

    rewrite(copy, old)
    reports = []
    same(saved[2], models.from_pretrained(copy, report=reports.append)[1])
    assert str(reports[0]) == ""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_become_float32(saved, copy, dtype):
    rewrite(copy, lambda tensors: {name: value.astype(jnp.dtype(dtype)) for name, value in tensors.items()})
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.dtype(dtype)).astype(np.float32), saved[2])
    same(rounded, models.from_pretrained(copy)[1])


def test_report_names_what_is_new_and_what_is_ignored(saved, copy):
    def change(tensors):
        kept = {name: value for name, value in tensors.items() if not name.startswith("classifier")}
        return kept | {"cls.seq_relationship.weight": np.zeros((2, 16), np.float32)}

    rewrite(copy, change)
    reports = []
    _, params = models.from_pretrained(copy, num_labels=4, seed=5, report=reports.append)
    assert reports[0].newly_initialised == ("classifier.weight", "classifier.bias")
    assert reports[0].ignored == ("cls.seq_relationship.weight",)
    assert "classifier.weight" in str(reports[0])
    assert "cls.seq_relationship.weight" in str(reports[0])
    kernel = params["classifier"]["kernel"]
    assert kernel.shape == (16, 4)
    assert 0.1 < float(jnp.std(kernel)) < 0.3  # initializer_range is 0.2
    again = models.from_pretrained(copy, num_labels=4, seed=5)[1]
    np.testing.assert_array_equal(kernel, again["classifier"]["kernel"])
    other = models.from_pretrained(copy, num_labels=4, seed=6)[1]
    assert not np.array_equal(kernel, other["classifier"]["kernel"])


def test_classifier_becomes_a_masked_lm_with_a_new_head(saved):
    reports = []
    model, params = models.from_pretrained(saved[0], task="masked_lm", report=reports.append)
    assert model.task == "masked_lm"
    assert "cls.predictions.bias" in reports[0].newly_initialised
    assert set(reports[0].ignored) == {
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    }
    same(params["encoder"], saved[2]["encoder"])


def test_every_mismatch_is_listed_at_once(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 48, "vocab_size": 61}))
    reports = []
    with pytest.raises(ModelError) as error:
        models.from_pretrained(copy, report=reports.append)
    for name in (
        "bert.embeddings.word_embeddings.weight: [60, 16] in the checkpoint, [61, 16] in the model",
        "bert.encoder.layer.0.intermediate.dense.weight: [40, 16]",
        "bert.encoder.layer.1.output.dense.weight: [16, 40]",
    ):
        assert name in str(error.value)
    assert len(reports[0].mismatched) == 7  # the table, and three tensors of each of two layers


def test_another_number_of_labels_says_what_to_do(saved):
    with pytest.raises(ModelError, match=r"classifier\.weight: \[2, 16\].*\[3, 16\].*leave num_labels out\)"):
        models.from_pretrained(saved[0], num_labels=3)


def test_weights_of_another_architecture(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    with pytest.raises(ModelError, match=r"missing: roberta\.embeddings.*and \d+ more"):
        models.from_pretrained(copy)


def test_only_a_pickle(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin.*never read.*save_pretrained"):
        models.from_pretrained(copy)


@pytest.mark.parametrize(
    "outside", ["../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors", "x.bin", ".."]
)
def test_index_cannot_leave_the_directory(copy, outside):
    shard(copy, filename=outside)
    with pytest.raises(ModelError, match="beside the index"):
        models.from_pretrained(copy)


def test_missing_shard_and_missing_tensor(copy):
    shard(copy)
    path = copy / "model-00002-of-00002.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    save_file({name: value for name, value in tensors.items() if name != lost}, path)
    with pytest.raises(ModelError, match=f"not in the shard.*{lost}"):
        models.from_pretrained(copy)
    path.unlink()
    with pytest.raises(ModelError, match=r"shards not found: model-00002-of-00002\.safetensors"):
        models.from_pretrained(copy)


@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_truncated_file(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        models.from_pretrained(copy)


def test_quantised_weights_are_refused(copy):
    rewrite(copy, lambda tensors: tensors | {"classifier.weight": np.zeros((2, 16), np.int8)})
    with pytest.raises(ModelError, match=r"classifier\.weight is int8"):
        models.from_pretrained(copy)


def test_tied_decoder_saved_under_its_own_name(tmp_path):
    model = models.build(CONFIG, task="masked_lm")
    params = jit(model.init)(jax.random.key(0))
    models.save_pretrained(model, params, tmp_path)
    words, bias = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
    renamed = {words: "cls.predictions.decoder.weight", bias: "cls.predictions.decoder.bias"}
    rewrite(tmp_path, lambda tensors: {renamed.get(name, name): value for name, value in tensors.items()})
    same(params, models.from_pretrained(tmp_path, task="masked_lm")[1])


# --- where from ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "two words"])
def test_path_that_does_not_exist(path):
    with pytest.raises(ModelError, match="no such directory"):
        models.resolve(path)


def test_file_instead_of_a_directory(saved):
    with pytest.raises(ModelError, match="is a file"):
        models.resolve(saved[0] / "config.json")


def test_hub_id_without_network():
    """HF_HUB_OFFLINE is set for the tests."""
    with pytest.raises(ExternalError, match=r"no-such-owner/no-such-model.*local directory"):
        models.resolve("no-such-owner/no-such-model")


def test_directory_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: not found"):
        models.from_pretrained(tmp_path)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_saving_replaces_its_own_files_and_keeps_others(saved, copy):
    _, model, params = saved
    (copy / "notes.txt").write_text("mine")
    zeros = jax.tree.map(jnp.zeros_like, params)
    models.save_pretrained(model, zeros, copy)
    assert (copy / "notes.txt").read_text() == "mine"
    same(zeros, models.from_pretrained(copy)[1])
    assert sorted(path.name for path in copy.parent.iterdir()) == [copy.name]  # nothing staged is left


def test_saving_parameters_of_another_shape(saved, tmp_path):
    _, model, params = saved
    wrong = params | {"classifier": {"kernel": jnp.zeros((16, 3)), "bias": jnp.zeros(3)}}
    with pytest.raises(ModelError, match=r"classifier.*\(16, 3\).*expected \(16, 2\)"):
        models.save_pretrained(model, wrong, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_saving_where_a_file_stands(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExternalError, match="file"):
        models.save_pretrained(saved[1], saved[2], tmp_path / "file" / "model")


def test_tokenizer_is_written_beside_the_weights(saved, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))
    models.save_pretrained(saved[1], saved[2], tmp_path / "model", tokenizer=tokenizer)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }
