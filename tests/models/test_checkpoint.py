"""Checkpoints: what is read is what was written, or an error that says what is wrong."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from clipmill.errors import ArtifactError, NotFoundError, StorageError
from clipmill.lineage import Parent, lineage
from clipmill.models.checkpoint import (
    CheckpointMetadata,
    has_checkpoint,
    load_checkpoint,
    read_embedding,
    read_metadata,
    save_checkpoint,
)
from clipmill.models.embedding_stats import EmbeddingStatistics
from clipmill.storage import join, read_bytes

DATA = Parent(role="dataset", uri="/data", digest="d" * 64)
CARD = CheckpointMetadata(
    kind="clip",
    architecture={"width": 3},
    recipe={"steps": 5},
    parents=(DATA,),
    metrics={"loss": 0.25},
    summary={"seen samples": "5"},
)
TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "count": torch.tensor(7),
}


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path):
    """A folder, and a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "model")
    request.getfixturevalue("s3")
    return f"s3://tests/{tmp_path.name}/model"


def test_round_trip(uri):
    assert not has_checkpoint(uri)
    saved = save_checkpoint(uri, CARD, TENSORS)
    assert has_checkpoint(uri)
    metadata, tensors = load_checkpoint(uri)
    size = len(read_bytes(join(uri, "model.safetensors")))
    expected = replace(CARD, uri=uri, tensors_sha256=saved.tensors_sha256, tensors_bytes=size)
    assert metadata == saved == expected
    assert read_metadata(uri) == saved
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


EMBEDDING = EmbeddingStatistics(mean=(0.1, -2.0), spread=0.3, num_images=64)


def test_statistics_of_embeddings_lie_beside_it(uri):
    """They change no digest, and a checkpoint without them is read as ever."""
    bare = save_checkpoint(uri, CARD, TENSORS)
    assert read_embedding(bare) is None
    saved = save_checkpoint(uri, CARD, TENSORS, EMBEDDING)
    assert saved == bare
    assert read_embedding(load_checkpoint(uri)[0]) == EMBEDDING


@pytest.mark.parametrize("change", [{"tensors_sha256": "0" * 64}, {"mean": None}, {"more": 1}])
def test_statistics_of_another_model(tmp_path, change):
    metadata = save_checkpoint(str(tmp_path), CARD, TENSORS, EMBEDDING)
    path = tmp_path / "embedding.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=r"embedding\.json isn't about the model next to it"):
        read_embedding(metadata)


def test_views_and_gradients_are_saved_as_plain_tensors(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4).requires_grad_()
    save_checkpoint(str(tmp_path), CARD, {"turned": whole.T, "row": whole[1]})
    _, tensors = load_checkpoint(str(tmp_path))
    assert torch.equal(tensors["turned"], whole.detach().T)
    assert torch.equal(tensors["row"], whole.detach()[1])


def test_files_are_plain_safetensors_and_json(tmp_path):
    saved = save_checkpoint(str(tmp_path), CARD, TENSORS)
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "model.json"}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == TENSORS.keys()
    value = json.loads((tmp_path / "model.json").read_text())
    assert value["digest"] == saved.digest
    assert value["tensors"]["bytes"] == (tmp_path / "model.safetensors").stat().st_size


def test_its_lineage_names_its_parents(tmp_path):
    node = lineage(save_checkpoint(str(tmp_path), CARD, TENSORS).uri)
    assert (node.kind, node.detail["seen samples"]) == ("clip", "5")
    assert [(p.role, p.uri, p.digest) for p in node.parents] == [("dataset", "/data", DATA.digest)]


def digest_of(tmp_path, metadata=CARD, tensors=TENSORS):
    return save_checkpoint(str(tmp_path), metadata, tensors).digest


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "coca"},
        {"architecture": {"width": 4}},
        {"recipe": {"steps": 6}},
        {"parents": ()},
        {"parents": (replace(DATA, digest="e" * 64),)},
        {"parents": (replace(DATA, role="captions"),)},
    ],
)
def test_digest_changes_with_what_the_model_is_made_of(tmp_path, change):
    assert digest_of(tmp_path, replace(CARD, **change)) != digest_of(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"loss": 0.5}},
        {"summary": {}},
        {"parents": (replace(DATA, uri="/moved"),)},
        {"uri": "/elsewhere"},
    ],
)
def test_digest_is_blind_to_places_and_figures(tmp_path, change):
    assert digest_of(tmp_path, replace(CARD, **change)) == digest_of(tmp_path)


def test_digest_changes_with_the_weights(tmp_path):
    nudged = {**TENSORS, "weight": TENSORS["weight"].clone()}
    nudged["weight"][0, 0] = torch.finfo(torch.float32).tiny
    assert digest_of(tmp_path, tensors=nudged) != digest_of(tmp_path)


def test_order_of_parents_and_tensors_is_nothing_to_it(tmp_path):
    other = Parent(role="captions", uri="/c", digest="c" * 64)
    turned = dict(reversed(TENSORS.items()))
    assert digest_of(tmp_path, replace(CARD, parents=(DATA, other))) == digest_of(
        tmp_path, replace(CARD, parents=(other, DATA)), turned
    )


def test_nothing_there(uri):
    with pytest.raises(NotFoundError):
        load_checkpoint(uri)
    with pytest.raises(NotFoundError):
        read_metadata(uri)


def test_weights_without_a_card_are_no_checkpoint(tmp_path):
    save_checkpoint(str(tmp_path), CARD, TENSORS)
    (tmp_path / "model.json").unlink()
    assert not has_checkpoint(str(tmp_path))
    with pytest.raises(NotFoundError):
        load_checkpoint(str(tmp_path))


def test_a_card_without_weights(tmp_path):
    save_checkpoint(str(tmp_path), CARD, TENSORS)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFoundError):
        load_checkpoint(str(tmp_path))


def _cut(data):
    return data[:-1]


def _flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def _flip_header(data):
    return data[:9] + bytes([data[9] ^ 1]) + data[10:]


@pytest.mark.parametrize("change", [_cut, _flip, _flip_header, lambda data: b""])
def test_changed_weights(tmp_path, change):
    save_checkpoint(str(tmp_path), CARD, TENSORS)
    path = tmp_path / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactError, match="has SHA-256"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("architecture", {"width": 9}, "doesn't match its digest"),
        ("recipe", {}, "doesn't match its digest"),
        ("digest", "f" * 64, "doesn't match its digest"),
        ("digest", 5, "doesn't match its digest"),
        ("digest", None, "isn't a checkpoint's JSON"),
        ("kind", None, "isn't a checkpoint's JSON"),
        ("parents", None, "isn't a checkpoint's JSON"),
        ("parents", [{"role": "dataset"}], "isn't a parent"),
        ("tensors", [], "isn't a checkpoint's JSON"),
        ("format", 2, "of format 2"),
    ],
)
def test_changed_card(tmp_path, key, value, said):
    """None takes the key out."""
    save_checkpoint(str(tmp_path), CARD, TENSORS)
    path = tmp_path / "model.json"
    metadata = {**json.loads(path.read_text()), key: value}
    path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))
    with pytest.raises(ArtifactError, match=said):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"model_type": "clip"}', '"text"'])
def test_foreign_json(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ArtifactError, match="isn't a checkpoint's JSON"):
        read_metadata(str(tmp_path))


def test_a_card_that_is_no_json(tmp_path):
    save_checkpoint(str(tmp_path), CARD, TENSORS)
    path = tmp_path / "model.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StorageError, match="isn't JSON"):
        read_metadata(str(tmp_path))
