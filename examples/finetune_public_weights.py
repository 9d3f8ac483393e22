"""Fine-tune public weights on your own labels, evaluate the model, and predict an image.

python examples/finetune_public_weights.py --encoder open_clip:ViT-B-16/openai \
    --data ADE20K_FOLDER --recipe linear-segmentation-vit-b16

Without arguments: a small encoder with random weights, a few steps, on drawn scenes.
"""

import argparse
from pathlib import Path

from PIL import Image

import clipmill
from clipmill.scenes import SceneConfig, write_ade20k


def draw_labels(folder: Path) -> Path:
    """Draw labeled scenes in ADE20K's layout: images/ and annotations/ by split."""
    for split, scenes in (("training", range(32)), ("validation", range(32, 40))):
        write_ade20k(SceneConfig(size=64), scenes, folder, split)
    return folder


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--encoder", default="random:timm/test_byobnet", help="docs/weights.md")
    parser.add_argument("--data", type=Path, help="folder in the task's layout: docs/tasks.md")
    parser.add_argument("--recipe", default="linear-segmentation-tiny", help="a recipe's name")
    parser.add_argument("--store", default="out", help="folder or s3:// URI of the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="PATH=VALUE", help="overrides")
    options = parser.parse_args()
    overrides = options.set
    if options.data is None:
        options.data = draw_labels(Path(options.store) / "labels")
        overrides = ["train.steps=20", *overrides]

    config = clipmill.get_recipe(options.recipe, clipmill.FinetuneConfig, overrides)
    model = clipmill.finetune(config, options.encoder, str(options.data), options.store)
    result = clipmill.read_evaluation(clipmill.evaluate(model, str(options.data), options.store))
    print(model)
    for name, value in result.metrics.items():
        print(f"  {name} {value:.3f}")

    predictor = clipmill.Predictor.open(model)
    image = next(iter(sorted(options.data.rglob("*.jpg"))))
    for name, array in predictor(Image.open(image)).items():
        print(f"{image.name}: {name} {array.shape} {array.dtype}")


if __name__ == "__main__":
    main()
