"""Scoring a real dataset: what the layers say, and that work is done once."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clipmill import stages
from clipmill.config import sha256_bytes
from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.scoring import score as score_module
from clipmill.data.scoring.score import ScoreConfig, score
from clipmill.data.scoring.scorers import (
    LANGUAGES,
    ClipScoreConfig,
    ConceptScoreConfig,
    ImageScoreConfig,
    TextScoreConfig,
    detect_language,
)
from clipmill.data.shards.read import read_shard
from clipmill.errors import ArtifactError, BadSampleError, BadSampleReason, ConfigError
from clipmill.images import decode_rgb
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.encoders import Normalize
from clipmill.models.preprocess import center_crop_resize
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import build_clip

CLIP = ClipConfig(
    embed_dim=8,
    vision=VisionConfig(image_size=16, patch_size=8, width=8, layers=1, head_width=8),
    text=TextConfig(context_length=12, vocab_size=600, width=8, heads=2, layers=1),
)
LAYER = "captions/test-1"
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 8,
        "heads": 2,
        "layers": 1,
    },
}


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def judge(tmp_path):
    torch.manual_seed(0)
    metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
    return save_checkpoint(str(tmp_path / "judge"), metadata, build_clip(CLIP).state_dict()).uri


@pytest.fixture(scope="module")
def tiny_open_clip(tmp_path_factory):
    """The name of an open_clip model small enough for a test."""
    path = tmp_path_factory.mktemp("models") / "tiny-of-the-tests.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return "tiny-of-the-tests"


def rows_of(dataset, layer, tmp_path):
    opened = Dataset.open(dataset.uri)
    return [
        row
        for index in range(len(opened.shards))
        for row in read_layer(opened, layer, index, tmp_path / "cache").to_pylist()
    ]


def samples_of(dataset, tmp_path):
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, tmp_path / "cache") as reader:
            for row in range(len(reader)):
                yield reader.uid(row), reader.image(row), reader.caption(row)


def test_measures_of_the_picture(make_dataset, tmp_path):
    dataset = make_dataset(count=10)
    (layer,) = score(ScoreConfig(image=ImageScoreConfig()), dataset.uri, report=silent)
    rows = rows_of(dataset, layer, tmp_path)
    for row, (uid, data, _) in zip(rows, samples_of(dataset, tmp_path), strict=True):
        image = decode_rgb(data)
        assert (row["uid"], row["width"], row["height"]) == (uid, *image.size)
        assert row["aspect"] == pytest.approx(max(image.size) / min(image.size))
        assert row["content_hash"].hex() == sha256_bytes(data)[:32]
    assert len({row["perceptual_hash"] for row in rows}) == 10


def test_measures_of_every_caption(make_dataset, add_captions, tmp_path):
    dataset = add_captions(make_dataset(count=6), LAYER)
    (layer,) = score(ScoreConfig(text=TextScoreConfig(), batch_size=3), dataset.uri, report=silent)
    rows = rows_of(dataset, layer, tmp_path)
    for row, (uid, _, caption) in zip(rows, samples_of(dataset, tmp_path), strict=True):
        synthetic = [f"synthetic {uid} {k}" for k in range(3)]
        for found, text in zip([row["real"], *row[LAYER]], [caption, *synthetic], strict=True):
            language, confidence = detect_language(text)
            assert found == {
                "words": len(text.split()),
                "characters": len(text),
                "language": language,
                "confidence": pytest.approx(confidence),
            }


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a brown dog lies on the green grass near the house", "en"),
        ("ein brauner Hund liegt auf dem grünen Gras vor dem Haus", "de"),
        ("un chien brun est couché sur l'herbe verte devant la maison", "fr"),
        ("一只棕色的狗躺在房子附近的绿草地上", "zh"),
        ("", "und"),
        ("12345", "zxx"),  # ISO 639: no linguistic content
    ],
)
def test_languages(text, language):
    assert detect_language(text)[0] == language


def test_language_can_be_left_out(make_dataset, tmp_path):
    dataset = make_dataset(count=3)
    config = ScoreConfig(text=TextScoreConfig(language=False))
    (layer,) = score(config, dataset.uri, report=silent)
    assert [row["real"]["language"] for row in rows_of(dataset, layer, tmp_path)] == [None] * 3


def test_concepts_of_every_caption(make_dataset, add_captions, tmp_path):
    (tmp_path / "concepts").write_text("synthetic\npicture\n2\n")
    dataset = add_captions(make_dataset(count=5), LAYER)
    config = ScoreConfig(concepts=ConceptScoreConfig(concepts=str(tmp_path / "concepts")))
    (layer,) = score(config, dataset.uri, report=silent)
    for row, (_, _, text) in zip(
        rows_of(dataset, layer, tmp_path), samples_of(dataset, tmp_path), strict=True
    ):
        assert row["real"] == ([1, 2] if text == "picture 2" else [1])
        assert row[LAYER] == [[0], [0], [0, 2]]
    (tmp_path / "concepts").write_text("synthetic\npicture\n")
    assert score(config, dataset.uri, report=silent) != (layer,)


def cosine(image_D, text_D):
    return torch.nn.functional.cosine_similarity(image_D, text_D, dim=-1).detach().item()


def test_clip_scores_are_the_models_similarities(make_dataset, add_captions, judge, tmp_path):
    dataset = add_captions(make_dataset(count=7), LAYER)
    config = ScoreConfig(clip=ClipScoreConfig(model=judge, batch_size=2), batch_size=3)
    (layer,) = score(config, dataset.uri, report=silent)
    torch.manual_seed(0)
    model, tokenize = build_clip(CLIP).eval(), Tokenizer.from_config(CLIP.text)
    rows = rows_of(dataset, layer, tmp_path)
    for row, (uid, data, caption) in zip(rows, samples_of(dataset, tmp_path), strict=True):
        pixels_HW3 = torch.from_numpy(center_crop_resize(decode_rgb(data), 16).copy())
        image_D = model.encode_image(Normalize()(pixels_HW3.permute(2, 0, 1)[None] / 255))
        texts = [caption, *(f"synthetic {uid} {k}" for k in range(3))]
        expected = [cosine(image_D, model.encode_text(tokenize([text]))) for text in texts]
        assert [row["real"], *row[LAYER]] == pytest.approx(expected, abs=1e-5)


def test_open_clip_scores_are_the_models_similarities(make_dataset, tiny_open_clip, tmp_path):
    torch.manual_seed(3)
    model, _, preprocess = open_clip.create_model_and_transforms(tiny_open_clip)
    weights = str(tmp_path / "weights.safetensors")
    save_file(model.state_dict(), weights)
    dataset = make_dataset(count=5)
    clip = ClipScoreConfig(model=f"file:{weights}#open_clip/{tiny_open_clip}")
    (layer,) = score(ScoreConfig(clip=clip), dataset.uri, report=silent)
    tokenize = open_clip.get_tokenizer(tiny_open_clip)
    model.eval()
    for row, (_, data, caption) in zip(
        rows_of(dataset, layer, tmp_path), samples_of(dataset, tmp_path), strict=True
    ):
        image_D = model.encode_image(preprocess(decode_rgb(data))[None])
        assert row["real"] == pytest.approx(
            cosine(image_D, model.encode_text(tokenize([caption]))), abs=1e-5
        )


def test_random_weights_depend_on_the_seed_alone(make_dataset, tiny_open_clip, tmp_path):
    dataset = make_dataset(count=3)
    clip = ClipScoreConfig(model=f"random:open_clip/{tiny_open_clip}")
    (layer,) = score(ScoreConfig(clip=clip), dataset.uri, report=silent)
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(tiny_open_clip)
    model.eval()
    uid, data, caption = next(samples_of(dataset, tmp_path))
    image_D = model.encode_image(preprocess(decode_rgb(data))[None])
    text_D = model.encode_text(open_clip.get_tokenizer(tiny_open_clip)([caption]))
    first = rows_of(dataset, layer, tmp_path)[0]
    assert first["uid"] == uid
    assert first["real"] == pytest.approx(cosine(image_D, text_D), abs=1e-5)
    seeded = ClipScoreConfig(model=clip.model, seed=1)
    assert score(ScoreConfig(clip=seeded), dataset.uri, report=silent) != (layer,)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_near(make_dataset, judge, tmp_path, precision):
    dataset = make_dataset(count=6)
    found = []
    for kind in ("fp32", precision):
        config = ScoreConfig(clip=ClipScoreConfig(model=judge, precision=kind))
        (layer,) = score(config, dataset.uri, report=silent)
        found.append([row["real"] for row in rows_of(dataset, layer, tmp_path)])
    assert found[0] != found[1]
    np.testing.assert_allclose(*found, atol=0.03)


def test_parts_by_several_workers_make_the_whole(make_dataset, add_captions, judge, tmp_path):
    dataset = add_captions(make_dataset(count=23), LAYER)
    config = ScoreConfig(
        image=ImageScoreConfig(), text=TextScoreConfig(), clip=ClipScoreConfig(model=judge)
    )
    # Two of them work on the same shards.
    spans = [(4, 6), (0, 2), (1, 4), (1, 4)]

    def part(span):
        return score(config, dataset.uri, report=silent, start=span[0], stop=span[1])

    assert part((4, 5)) == part((0, 1))
    assert Dataset.open(dataset.uri).layers.keys() == {LAYER}
    with ThreadPoolExecutor(4) as workers:
        names = list(workers.map(part, spans))
    assert len(set(names)) == 1
    files = sorted(Path(dataset.uri).glob("layers/score/*/*.parquet"))
    assert len(files) == 3 * 6
    written = [file.stat().st_mtime_ns for file in files]
    whole = score(config, dataset.uri, report=silent)
    assert whole == names[0]
    assert [file.stat().st_mtime_ns for file in files] == written
    assert Dataset.open(dataset.uri).layers.keys() == {LAYER, *whole}
    assert score(config, dataset.uri, report=fail) == whole
    for layer in whole:
        assert [r["uid"] for r in rows_of(dataset, layer, tmp_path)] == [
            uid for uid, _, _ in samples_of(dataset, tmp_path)
        ]


def test_what_is_known_of_a_layers_making(make_dataset, add_captions, judge):
    dataset = add_captions(make_dataset(count=3), LAYER)
    config = ScoreConfig(clip=ClipScoreConfig(model=judge))
    (layer,) = score(config, dataset.uri, report=silent)
    record = json.loads((Path(dataset.layer_uri(layer)) / "layer.json").read_text())
    assert [p["role"] for p in record["parents"]] == ["dataset", "judge"]
    assert record["parents"][1]["uri"] == judge
    # How it was computed is no part of the name; from which captions is.
    faster = ScoreConfig(clip=ClipScoreConfig(model=judge, batch_size=1), batch_size=1)
    assert score(faster, dataset.uri, report=fail) == (layer,)
    real = ScoreConfig(captions=("real",), clip=ClipScoreConfig(model=judge))
    assert score(real, dataset.uri, report=silent) != (layer,)
    short = ScoreConfig(captions=("captions/test", "real"), clip=ClipScoreConfig(model=judge))
    assert score(short, dataset.uri, report=fail) == (layer,)


def test_a_picture_that_does_not_decode_has_no_scores(make_dataset, judge, tmp_path, monkeypatch):
    dataset = make_dataset(count=6)
    bad = [data for _, data, _ in samples_of(dataset, tmp_path)][2]

    def decode(data):
        if data == bad:
            raise BadSampleError(BadSampleReason.UNREADABLE_IMAGE, "cut")
        return decode_rgb(data)

    monkeypatch.setattr(score_module, "decode_rgb", decode)
    config = ScoreConfig(image=ImageScoreConfig(), clip=ClipScoreConfig(model=judge))
    image, clip = score(config, dataset.uri, report=silent)
    lacks = [row["width"] is None for row in rows_of(dataset, image, tmp_path)]
    assert lacks == [False, False, True, False, False, False]
    assert lacks == [row["real"] is None for row in rows_of(dataset, clip, tmp_path)]
    assert rows_of(dataset, image, tmp_path)[2]["content_hash"].hex() == sha256_bytes(bad)[:32]


def test_an_empty_shard_has_the_columns(make_dataset, tmp_path):
    """All four items of the first shard are bad."""
    source = tmp_path / "source"
    dataset = make_dataset(count=8)
    for caption in sorted(source.rglob("*.txt"))[:4]:
        caption.write_text(" ")
    dataset = make_dataset_again(source, tmp_path)
    assert dataset.shards[0].num_samples == 0
    config = ScoreConfig(image=ImageScoreConfig(), text=TextScoreConfig())
    for layer in score(config, dataset.uri, report=silent):
        opened = Dataset.open(dataset.uri)
        tables = [read_layer(opened, layer, index, tmp_path / "cache") for index in (0, 1)]
        assert tables[0].schema == tables[1].schema


def test_from_a_store_within_a_bounded_cache(s3, make_dataset, tmp_path, monkeypatch):
    del s3
    dataset = make_dataset(count=12, store=f"s3://score-{os.getpid()}/store")
    most = max(shard.num_bytes for shard in dataset.shards)
    config = ScoreConfig(image=ImageScoreConfig(), text=TextScoreConfig(), cache_bytes=2 * most)
    score(config, dataset.uri, report=silent)
    copies = sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*") if f.is_file())
    assert copies <= 2 * most
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "other"))
    local = make_dataset(count=12)
    for layer in score(config, local.uri, report=silent):
        assert Dataset.open(dataset.uri).layers[layer] == Dataset.open(local.uri).layers[layer]


def make_dataset_again(source, tmp_path):
    from clipmill.data.shards.plan import ShardConfig
    from clipmill.data.shards.write import write_dataset

    return Dataset.open(
        write_dataset(ShardConfig(samples_per_shard=4), str(source), str(tmp_path / "s"))
    )


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (ScoreConfig(), ConfigError, "asks for no score"),
        (ScoreConfig(clip=ClipScoreConfig()), ConfigError, "clip.model was empty"),
        (ScoreConfig(concepts=ConceptScoreConfig()), ConfigError, "concepts.concepts was empty"),
        (ScoreConfig(captions=("captions/x",), text=TextScoreConfig()), ConfigError, "no layers"),
        (
            ScoreConfig(clip=ClipScoreConfig(model="open_clip:no-such")),
            ConfigError,
            "has no model named 'no-such'",
        ),
    ],
)
def test_mistakes(make_dataset, config, error, words):
    with pytest.raises(error, match=words):
        score(config, make_dataset(count=3).uri, report=silent)


def test_what_is_no_judge(make_dataset, tmp_path, tiny_open_clip):
    dataset = make_dataset(count=3)
    save_checkpoint(
        str(tmp_path / "m"), CheckpointMetadata(kind="task", architecture={}, recipe={}), {}
    )
    with pytest.raises(ArtifactError, match="kind 'task'"):
        score(
            ScoreConfig(clip=ClipScoreConfig(model=str(tmp_path / "m"))), dataset.uri, report=fail
        )
    for content in (b"not safetensors", None):
        path = tmp_path / "w.safetensors"
        path.write_bytes(content or b"")
        if content is None:
            save_file({"other": torch.zeros(1)}, path)
        clip = ClipScoreConfig(model=f"file:{path}#open_clip/{tiny_open_clip}")
        with pytest.raises(ArtifactError, match=r"can't be read as weights|has no image tower"):
            score(ScoreConfig(clip=clip), dataset.uri, report=silent)


def test_weights_apart_from_the_model_are_refused_with_the_new_form():
    with pytest.raises(ConfigError, match=r"file:w.pt#open_clip/ViT-B-32"):
        ClipScoreConfig(model="open_clip:ViT-B-32", weights="w.pt")


@pytest.mark.parametrize("name", ["batch_size", "num_threads", "cache_bytes"])
def test_values_out_of_range(name):
    with pytest.raises(ConfigError, match=name):
        ScoreConfig(**{name: 0})


def test_a_model_for_a_recipe_that_scores_by_none():
    with pytest.raises(ConfigError, match="add --recipe score-clip"):
        stages.score("score-basic", [], "dataset", "", model="open_clip:ViT-B-32/openai")


# Alt-texts written for this test, for the rates that TextScoreConfig.languages states.
ENGLISH = """\
a dog on the beach
golden retriever puppy
map of Europe 1914
Nike Air Force 1 low white
red vintage car parked outside
Modern kitchen with white cabinets
Man riding a bicycle in the rain
wedding cake with flowers
Sunset over the mountains
Black leather handbag
iPhone 13 Pro case, blue
Children playing football in the park
The Eiffel Tower at night
Chocolate chip cookies recipe
vector illustration of a cat
Portrait of a young woman smiling
old wooden door
Women's running shoes size 8
Living room interior design ideas
Free printable calendar 2021
Two people sitting at a table
New York City skyline
How to draw a horse step by step
Fresh strawberries in a bowl
snow covered trees in winter
Logo design for coffee shop
Blue butterfly on a flower
Vintage poster, 1950s
cat sleeping on sofa
Toyota Corolla 2015 front view
Hand drawn Christmas card
Business team shaking hands
Green tea cup
Abstract background with lines
Boys t-shirt, navy
A bowl of noodle soup
Large garden with pond
Silver necklace with heart pendant
Students in a classroom
White house with a red roof
grilled salmon with lemon
Stock photo of an airplane
Best hiking boots for men
The bride and groom dancing
Yellow taxi
Kids bedroom furniture set
Rocky coast of Maine
Happy birthday card
Samsung 55 inch TV
church of St Mary"""
OTHER = """\
ein Hund am Strand
Landkarte von Europa 1914
rotes altes Auto vor dem Haus
moderne Küche mit weißen Schränken
Mann auf dem Fahrrad im Regen
Hochzeitstorte mit Blumen
coucher de soleil sur les montagnes
sac à main en cuir noir
enfants jouant au football dans le parc
la tour Eiffel la nuit
recette de biscuits au chocolat
portrait d'une jeune femme souriante
vieille porte en bois
zapatos para correr de mujer talla 38
ideas para decorar la sala de estar
calendario gratis para imprimir 2021
dos personas sentadas en una mesa
fresas frescas en un plato
gato durmiendo en el sofá
logotipo para cafetería
farfalla blu su un fiore
tazza di tè verde
squadra di lavoro in ufficio
casa bianca con tetto rosso
studenti in aula
um cachorro na praia
sopa de macarrão em uma tigela
colar de prata com pingente
melhores botas para caminhada
een hond op het strand
oude houten deur
bruidstaart met bloemen
pies na plaży
stara drewniana brama
czerwony samochód przed domem
собака на пляже
старая деревянная дверь
красный автомобиль перед домом
海滩上的狗
红色老爷车
赤い古い車
海辺の犬
해변의 개
كلب على الشاطئ
बीच पर कुत्ता
σκύλος στην παραλία
kumsalda bir köpek
eski ahşap ev
en hund på stranden
pes na pláži
anjing di pantai
con chó trên bãi biển"""


def test_languages_of_short_captions() -> None:
    english, other = ENGLISH.splitlines(), OTHER.splitlines()
    for languages, expected in ((LANGUAGES, 45), ((), 39)):
        kept = [text for text in english if detect_language(text, languages)[0] == "en"]
        assert (len(kept), len(english)) == (expected, 50)
        assert not [text for text in other if detect_language(text, languages)[0] == "en"]
    with pytest.raises(ConfigError, match="xx"):
        detect_language("a dog", ("en", "xx"))
