"""Pretrain CLIP on a folder of images, each with a caption in a .txt file of the same name.

python examples/pretrain_on_pairs.py --images FOLDER --recipe clip-vit-b16-12m

Without arguments: a small tower, a few steps, on drawn scenes. A second run continues or reuses
what the first one made.
"""

import argparse
from pathlib import Path

import clipmill
from clipmill.scenes import SceneConfig, write_caption_folder


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, help="folder of images with .txt captions")
    parser.add_argument("--recipe", default="clip-tiny", help="a recipe's name")
    parser.add_argument("--store", default="out", help="folder or s3:// URI of the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="PATH=VALUE", help="overrides")
    options = parser.parse_args()
    overrides = options.set
    if options.images is None:
        options.images = Path(options.store) / "photos"
        write_caption_folder(SceneConfig(size=64), range(128), options.images, "rich")
        overrides = ["train.steps=20", "validation.every=0", *overrides]

    uri = clipmill.write_dataset(clipmill.ShardConfig(), str(options.images), options.store)
    dataset = clipmill.Dataset.open(uri)
    sample = clipmill.read_sample(dataset, 0)
    print(f"{dataset.num_samples} pairs; the first: {sample.image.size}, {sample.caption!r}")

    config = clipmill.get_recipe(options.recipe, clipmill.PretrainConfig, overrides)
    encoder = clipmill.pretrain_clip(
        config,
        uri,
        options.store,
        report=lambda done, total, message: print(f"{done}/{total} {message}"),
    )
    clip = clipmill.load_clip(encoder)
    cosine = clip.encode_images([sample.image]) @ clip.encode_texts([sample.caption]).T
    print(f"{encoder}: cosine of the first pair {cosine.item():.3f}")


if __name__ == "__main__":
    main()
