"""The public names of ``import clipmill``, and the example of each."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipmill
from clipmill.scenes import SceneConfig, write_ade20k, write_caption_folder

SOURCE = Path(clipmill.__file__)
SCENES = SceneConfig(size=64)
HEAD = [
    "linear-segmentation-tiny",
    clipmill.FinetuneConfig,
    ["train.steps=2"],
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with photos and captions, labels of ADE20K's layout, and an image."""
    folder = tmp_path_factory.mktemp("api")
    write_caption_folder(SCENES, range(24), folder / "photos", "terse")
    for split, indices in (("training", range(4)), ("validation", range(4, 6))):
        write_ade20k(SCENES, indices, folder / "labels", split)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "image.jpg")
    return folder


@pytest.fixture
def inside(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("CLIPMILL_CACHE", str(workspace / "cache"))
    monkeypatch.delenv("CLIPMILL_EVENTS", raising=False)
    return workspace


@pytest.fixture
def model(inside):
    config = clipmill.get_recipe(*HEAD)
    return clipmill.finetune(config, "random:timm/test_byobnet", "labels", "out")


def run_example(name, capsys, **names):
    """Run the examples in the docstring of a public name; they print nothing but results."""
    text = inspect.getdoc(getattr(clipmill, name))
    names |= {"clipmill": clipmill, "Image": Image, "Path": Path, "torch": torch}
    test = doctest.DocTestParser().get_doctest(text, names, f"clipmill.{name}", None, 0)
    assert test.examples, name
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=options, verbose=False)
    results = runner.run(test)
    assert results.failed == 0, capsys.readouterr().out
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize("name", sorted({*clipmill.__all__} - {"Client", "ServerProcess"}))
def test_the_example_of_every_name_runs(name, inside, capsys):
    run_example(name, capsys)


def test_the_examples_of_serving_run(model, inside, capsys):
    run_example("ServerProcess", capsys, model=model)
    with clipmill.ServerProcess({"segmentation": model}) as server:
        run_example("Client", capsys, url=server.url)


def test_every_name_has_a_docstring_and_is_no_submodule():
    for name in clipmill.__all__:
        text = inspect.getdoc(getattr(clipmill, name))
        assert text.split("\n")[0].endswith("."), name
        assert "Example:" in text, name
        # A submodule of that name would replace it once it is imported.
        assert not (SOURCE.parent / name).exists(), name
        assert not (SOURCE.parent / f"{name}.py").exists(), name


def test_checkers_and_the_lazy_import_see_the_same_names():
    tree = ast.parse(SOURCE.read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {name: f"clipmill.{module}" for name, module in clipmill._MODULES.items()}
    assert typed == lazy
    assert sorted(typed) == clipmill.__all__
    assert set(clipmill.__all__) <= set(dir(clipmill))
    for name, module in lazy.items():
        assert getattr(importlib.import_module(module), name) is getattr(clipmill, name)
        assert name in clipmill.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clipmill.nothing  # noqa: B018


def test_importing_clipmill_imports_nothing_else():
    code = "import sys; b = set(sys.modules); import clipmill; print(*set(sys.modules) - b)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert tops - sys.stdlib_module_names == {"clipmill"}
    assert done.stdout.count("clipmill") == 1


def test_the_example_of_the_readme_runs(inside):
    readme = (SOURCE.parents[2] / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    assert 6 <= len(example.splitlines()) <= 12
    # What needs a network or hours is replaced by what needs neither.
    for full, small in (
        ("open_clip:ViT-B-16/openai", "random:timm/test_byobnet"),
        ("linear-segmentation-vit-b16", "linear-segmentation-tiny"),
        ("clipmill.FinetuneConfig)", "clipmill.FinetuneConfig, ['train.steps=2'])"),
        ("ADE20K_FOLDER", "labels"),
    ):
        assert full in example
        example = example.replace(full, small)
    names = {}
    exec(example, names)
    assert names["features"].pooled.shape == (1, 256)
    assert names["prediction"]["classes"].shape == (64, 64)


def test_batches_are_functions_of_the_step(inside):
    uri = clipmill.write_dataset(clipmill.ShardConfig(samples_per_shard=10), "photos", "out")
    pairs = clipmill.PairDataset(uri, image_size=32, batch_size=8, seed=1)
    again = clipmill.PairDataset(clipmill.Dataset.open(uri), image_size=32, batch_size=8, seed=1)
    assert len(pairs) == 3
    assert torch.equal(pairs[4].images_B3HW, again[4].images_B3HW)
    assert sorted(uid for batch in pairs for uid in batch.uids) == sorted(
        clipmill.read_sample(clipmill.Dataset.open(uri), index).uid for index in range(24)
    )
    loader = torch.utils.data.DataLoader(again, batch_size=None, num_workers=1)
    assert [b.uids for b in loader] == [b.uids for b in pairs]
    ranks = [
        clipmill.PairDataset(uri, image_size=32, batch_size=8, seed=1, rank=r, world_size=2)[1]
        for r in (0, 1)
    ]
    assert ranks[0].uids + ranks[1].uids == pairs[1].uids


def test_a_sample_is_read_from_any_shard(inside):
    uri = clipmill.write_dataset(clipmill.ShardConfig(samples_per_shard=10), "photos", "out")
    dataset = clipmill.Dataset.open(uri)
    texts = {path.read_text() for path in Path("photos").glob("*.txt")}
    assert {clipmill.read_sample(dataset, index).caption for index in (0, 9, 10, 23, -1)} <= texts
    assert clipmill.read_sample(dataset, -1).uid == clipmill.read_sample(dataset, 23).uid
    with pytest.raises(IndexError, match="sample 24 of 24"):
        clipmill.read_sample(dataset, 24)
