"""Zero-shot classification and retrieval on real files, against open_clip's own functions."""

import io
import json
import tarfile

import numpy as np
import open_clip
import pytest
import torch
from open_clip_train.zero_shot import accuracy
from PIL import Image
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.data.scoring.scorers import ClipScoreConfig, ClipTowers
from clipmill.errors import ArtifactError, ConfigError, SourceError
from clipmill.images import decode_rgb
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.retrieval import recall
from clipmill.models.towers import build_clip
from clipmill.recipes.registry import get_recipe
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.zero_shot import (
    RetrievalConfig,
    ZeroShotConfig,
    accuracies,
    class_embeddings,
    class_prompts,
    open_labeled_images,
    prompt_templates,
    retrieve,
    zero_shot,
)

CLIP = ClipConfig(
    embed_dim=8,
    vision=VisionConfig(image_size=16, patch_size=8, width=8, layers=1, head_width=8),
    text=TextConfig(context_length=24, width=8, heads=2, layers=1),
)
NAMES = ("red barn", "green_hill", "blue sea")


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A CLIP with random weights, as a checkpoint of ours."""
    torch.manual_seed(1)
    uri = str(tmp_path_factory.mktemp("store") / "clip")
    metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
    save_checkpoint(uri, metadata, build_clip(CLIP).state_dict())
    return uri


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(NAMES):
        for i in range(3 + label):
            path = tmp_path / "pictures" / "val" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg((label, i)))
    return tmp_path / "pictures"


def config(model, **changes):
    return ZeroShotConfig(clip=ClipScoreConfig(model=model), **changes)


@torch.no_grad()
def test_class_embeddings_are_open_clips(model):
    towers = ClipTowers(ClipScoreConfig(model=model, batch_size=5))
    templates = prompt_templates("openai-80", ())
    found = class_embeddings(towers, NAMES, templates)
    expected = open_clip.build_zero_shot_classifier(
        towers._model,
        tokenizer=towers._tokenize,
        classnames=NAMES,
        templates=open_clip.OPENAI_IMAGENET_TEMPLATES,
        num_classes_per_batch=2,
        device="cpu",
    )
    torch.testing.assert_close(torch.from_numpy(found), expected.T, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
def test_accuracies_are_open_clips():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(200, 12)).astype(np.float32)
    labels = generator.integers(0, 11, 200)  # the last class never occurs
    scores[np.arange(200), labels] += 1
    found = accuracies(scores, labels)
    top1, top5 = accuracy(torch.from_numpy(scores), torch.from_numpy(labels), topk=(1, 5))
    assert (found["top1"], found["top5"]) == (top1 / 200, top5 / 200)
    recalls = [
        sum(scores[i].argmax() == c for i in range(200) if labels[i] == c) / (labels == c).sum()
        for c in range(11)
    ]
    assert found["mean_per_class"] == pytest.approx(sum(recalls) / 11, abs=1e-9)


def test_a_tie_counts_against():
    assert accuracies(np.zeros((4, 6), np.float32), np.arange(4))["top5"] == 0


def test_a_folder_is_judged_as_open_clip_would(model, folder, tmp_path):
    uri = zero_shot(config(model), str(folder), str(tmp_path / "store"), report=silent)
    found = read_evaluation(uri)
    assert found.task == "zero-shot"
    assert found.model.uri == model
    towers = ClipTowers(ClipScoreConfig(model=model))
    classes = open_clip.build_zero_shot_classifier(
        towers._model,
        tokenizer=towers._tokenize,
        classnames=[n.replace("_", " ") for n in sorted(NAMES)],
        templates=open_clip.OPENAI_IMAGENET_TEMPLATES,
        device="cpu",
    ).numpy()
    hits = []
    for label, name in enumerate(sorted(NAMES)):
        for path in sorted((folder / "val" / name).iterdir()):
            image = towers.encode_images([decode_rgb(path.read_bytes())])
            hits.append((image @ classes)[0].argmax() == label)
    assert found.metrics["top1"] == pytest.approx(100 * np.mean(hits))
    assert found.metrics["top5"] == 100
    # Again: nothing is done; other sentences: another result.
    assert zero_shot(config(model), str(folder), str(tmp_path / "store"), report=fail) == uri
    other = config(model, prompts="plain")
    assert zero_shot(other, str(folder), str(tmp_path / "store"), report=silent) != uri


def write_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tars_give_what_the_folder_gives(model, folder, tmp_path):
    """Labels as numbers and as names; a broken picture and one without a label are counted."""
    samples = []
    for label, name in enumerate(sorted(NAMES)):
        for path in sorted((folder / "val" / name).iterdir()):
            key = f"{label}{path.stem}"
            text = str(label) if label else name
            samples += [(f"{key}.png", path.read_bytes()), (f"{key}.cls", text.encode())]
    samples += [("x1.png", b"broken"), ("x1.cls", b"1"), ("x2.png", jpeg(7)), ("x3.cls", b"0")]
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "0.tar", samples)
    (tars / "classnames.txt").write_text("\n".join(sorted(NAMES)))
    whole = zero_shot(config(model), str(folder), str(tmp_path / "store"), report=silent)
    found = zero_shot(config(model), str(tars), str(tmp_path / "store"), report=silent)
    metrics = read_evaluation(found).metrics
    assert read_evaluation(whole).metrics.items() <= metrics.items()
    skipped = {k: v for k, v in metrics.items() if k.startswith("skipped.")}
    assert skipped == {
        "skipped.unreadable_image": 1,
        "skipped.missing_label": 1,
        "skipped.missing_image": 1,
    }


def test_a_cut_tar_is_counted(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", jpeg(0)), ("1.cls", b"0"), ("2.png", jpeg(1))])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"2.png") + 700])
    found = list(open_labeled_images(str(tmp_path), ""))
    assert [getattr(f, "reason", "fine") for f in found] == ["fine", "truncated_tar"]


def test_a_label_that_is_no_class(model, tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", jpeg(0)), ("1.cls", b"3")])
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    with pytest.raises(SourceError, match="class '3'"):
        zero_shot(config(model, classes=str(names)), str(tmp_path), str(tmp_path), report=silent)
    with pytest.raises(SourceError, match="names no classes"):
        zero_shot(config(model), str(tmp_path), str(tmp_path), report=silent)


def numbers(classes, own, labels=None, **options):
    prompts = class_prompts(str(classes), own, **options)
    return prompts.words, [prompts.number(label) for label in labels or own]


def test_names_of_classes(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("n2\tthe dog\nn1\tthe cat\n")
    assert numbers(names, ("n1", "n2")) == (("the cat", "the dog"), [0, 1])
    assert numbers(names, (), ("n1", "n2")) == (("the dog", "the cat"), [1, 0])
    with pytest.raises(SourceError, match="names no class 'n3'"):
        class_prompts(str(names), ("n1", "n3"))
    names.write_text("cat\ndog\n")
    assert numbers(names, ("n1", "n2")) == (("cat", "dog"), [0, 1])
    with pytest.raises(SourceError, match="has 2 names, and the data has 3 classes"):
        class_prompts(str(names), ("n1", "n2", "n3"))
    with pytest.raises(SourceError, match="is not a file"):
        class_prompts("nowhere.txt", ())
    assert numbers("", ("green_hill",)) == (("green hill",), [0])


@pytest.mark.parametrize(
    ("lines", "own", "labels", "expected"),
    [
        (("zero", "one", "two"), ("one", "two"), None, [1, 2]),
        (("Two", "green hill", "one"), ("green_hill", "one", "two"), None, [1, 2, 0]),
        (("cat", "dog"), (), ("1", "cat", "dog"), [1, 0, 1]),  # tars without names of their own
    ],
)
def test_a_list_is_matched_by_name(tmp_path, lines, own, labels, expected):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(lines))
    assert numbers(names, own, labels) == (lines, expected)


@pytest.mark.parametrize("lines", [("zero", "one", "two"), ("one", "two", "one", "four")])
def test_a_longer_list_of_other_names_is_refused(tmp_path, lines):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(lines))
    with pytest.raises(SourceError, match=r"the data has 2 classes, of which '(three|one)'"):
        class_prompts(str(names), ("one", "three"))


def test_a_number_that_is_another_classs_name(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("1\n2\n3\n")
    assert numbers(names, (), ("0", "3")) == (("1", "2", "3"), [0, 2])
    with pytest.raises(SourceError, match="the label '1' is the name of class 0"):
        class_prompts(str(names), ()).number("1")


# Lines of open_clip's list, which is in the order of the wnids.
FLAMINGO, TENCH, GOLDFISH = ("n02007558", 130), ("n01440764", 0), ("n01443537", 1)


def test_subsets_of_imagenet_are_known_by_their_wnids():
    own = tuple(sorted(wnid for wnid, _ in (FLAMINGO, GOLDFISH)))
    assert numbers("imagenet", own) == (("goldfish", "flamingo"), [0, 1])
    words, found = numbers("imagenet", (), [wnid for wnid, _ in (FLAMINGO, TENCH, GOLDFISH)])
    assert (words, found) == (tuple(open_clip.IMAGENET_CLASSNAMES), [130, 0, 1])
    assert numbers("imagenet", (), ("130", "flamingo"))[1] == [130, 130]
    assert numbers("imagenet", ("flamingo", "goldfish"))[1] == [130, 1]
    whole = [f"{i:04d}" for i in range(1000)]  # folders in ImageNet's order, by other names
    assert numbers("imagenet", whole)[1] == list(range(1000))
    with pytest.raises(SourceError, match="of which 'n99999999' isn't in"):
        class_prompts("imagenet", ("n01440764", "n99999999"))


@pytest.mark.parametrize(
    ("folders", "lines"),
    [
        (("one", "two"), ("a", "one", "two")),
        (tuple(map(str, range(1, 11))), None),  # sorted as 1, 10, 2 ...
        (("n01440764", "n02007558"), "imagenet"),
    ],
)
def test_labels_of_folders_equal_an_own_computation(model, tmp_path, folders, lines):
    """Each image is scored with the words of its own class, whatever the order."""
    for number, name in enumerate(folders):
        for i in range(3):
            path = tmp_path / "data" / "val" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg((number, i)))
    (tmp_path / "data" / "val" / ".ipynb_checkpoints").mkdir()
    classes, words = "", sorted(folders)
    if lines == "imagenet":
        classes, words = "imagenet", ["tench", "flamingo"]
    elif lines:
        classes, words = str(tmp_path / "names.txt"), list(lines)
        (tmp_path / "names.txt").write_text("\n".join(lines))
    found = read_evaluation(
        zero_shot(
            config(model, classes=classes, prompts="plain"),
            str(tmp_path / "data"),
            str(tmp_path / "store"),
            report=silent,
        )
    )
    towers = ClipTowers(ClipScoreConfig(model=model))
    classes_CD = class_embeddings(towers, words, prompt_templates("plain", ()))
    hits = []
    for folder in folders:
        own = {"n01440764": "tench", "n02007558": "flamingo"}.get(folder, folder)
        for path in sorted((tmp_path / "data" / "val" / folder).iterdir()):
            image_D = towers.encode_images([decode_rgb(path.read_bytes())])[0]
            hits.append(words[int((classes_CD @ image_D).argmax())] == own)
    assert found.metrics["top1"] == pytest.approx(100 * np.mean(hits), abs=1e-6)
    assert sum(hits) > 0


def test_templates():
    for name, theirs in (
        ("openai-80", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("openai-7", open_clip.SIMPLE_IMAGENET_TEMPLATES),
    ):
        found = [template.replace("{}", "tench") for template in prompt_templates(name, ())]
        assert found == [template("tench") for template in theirs]
    assert prompt_templates("given", ("a {}",)) == ("a {}",)
    with pytest.raises(ConfigError, match="templates were empty"):
        prompt_templates("given", ())
    with pytest.raises(ConfigError, match="'a photo'"):
        prompt_templates("given", ("a photo",))


def test_nothing_to_judge(model, tmp_path):
    with pytest.raises(SourceError, match=r"has no CLASS/\*.jpg"):
        open_labeled_images(str(tmp_path), "val")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "1.png").write_bytes(jpeg(0))
    with pytest.raises(ConfigError, match=r"clip\.model was empty"):
        zero_shot(config(""), str(tmp_path), str(tmp_path), report=silent)
    save_checkpoint(
        str(tmp_path / "mae"), CheckpointMetadata(kind="mae", architecture={}, recipe={}), {}
    )
    with pytest.raises(ArtifactError, match="kind 'mae'"):
        zero_shot(config(str(tmp_path / "mae")), str(tmp_path), str(tmp_path), report=silent)


def coco(folder, num_images=4):
    (folder / "val2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, captions = [], []
    for i in range(num_images):
        name = f"{i:012d}.jpg"
        (folder / "val2014" / name).write_bytes(jpeg(i))
        images.append({"id": i, "file_name": name})
        captions += [
            {"id": 10 * i + k, "image_id": i, "caption": f"caption {k} of {i}"} for k in range(3)
        ]
    path = folder / "annotations" / "captions_val2014.json"
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    return path


def test_retrieval_on_coco_captions(model, tmp_path):
    """All captions of an image count, up to the limit."""
    path = coco(tmp_path / "coco")
    (tmp_path / "coco" / "val2014" / f"{3:012d}.jpg").write_bytes(b"broken")
    uri = retrieve(
        RetrievalConfig(clip=ClipScoreConfig(model=model), captions_per_image=2),
        str(path),
        str(tmp_path / "store"),
        report=silent,
    )
    metrics = read_evaluation(uri).metrics
    towers = ClipTowers(ClipScoreConfig(model=model))
    images = towers.encode_images([decode_rgb(jpeg(i)) for i in range(3)])
    texts = towers.encode_texts([f"caption {k} of {i}" for i in range(3) for k in range(2)])
    owners = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = recall(torch.from_numpy(images), torch.from_numpy(texts), owners)
    assert {k: metrics[k] for k in expected} == pytest.approx(
        {k: 100 * v for k, v in expected.items()}
    )
    assert (metrics["num_images"], metrics["num_captions"]) == (3, 6)
    assert metrics["skipped.unreadable_image"] == 1


def test_commands(model, folder, tmp_path):
    command = CliRunner()
    store = ["--store", str(tmp_path / "store"), "--json"]
    answer = command.invoke(app, ["eval", "zero-shot", model, "--data", str(folder), *store])
    assert answer.exit_code == 0, answer.output
    assert {"top1", "top5"} <= json.loads(answer.stdout)["metrics"].keys()
    path = coco(tmp_path / "coco")
    answer = command.invoke(app, ["eval", "retrieval", model, "--data", str(path), *store])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["metrics"]["num_captions"] == 12


def test_imagenets_recipe():
    assert get_recipe("zero-shot-imagenet", ZeroShotConfig).classes == "imagenet"
    assert get_recipe("zero-shot-imagenet", ZeroShotConfig).prompts == "openai-80"
