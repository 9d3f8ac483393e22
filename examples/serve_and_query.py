"""Serve a task model in a process of its own, and query it.

python examples/serve_and_query.py --model MODEL_URI --image image.jpg

Without arguments: a segmenter fine-tuned for a few steps on drawn scenes.
"""

import argparse
from pathlib import Path

import clipmill
from clipmill.scenes import SceneConfig, write_ade20k


def tiny_model(store: str) -> tuple[str, Path]:
    """Fine-tune a segmenter on drawn scenes; its URI, and an image of them."""
    labels = Path(store) / "labels"
    for split, scenes in (("training", range(32)), ("validation", range(32, 40))):
        write_ade20k(SceneConfig(size=64), scenes, labels, split)
    config = clipmill.get_recipe(
        "linear-segmentation-tiny", clipmill.FinetuneConfig, ["train.steps=20"]
    )
    model = clipmill.finetune(config, "random:timm/test_byobnet", str(labels), store)
    return model, min(labels.rglob("*.jpg"))


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="URI of a segmentation or depth model")
    parser.add_argument("--image", type=Path, help="JPEG, PNG or WebP file")
    parser.add_argument("--store", default="out", help="folder or s3:// URI of the results")
    options = parser.parse_args()
    model, image = options.model, options.image
    if model is None:
        model, image = tiny_model(options.store)

    with clipmill.ServerProcess({"mine": model}) as server:
        client = clipmill.Client(server.url)
        about = client.metadata("mine")["parameters"]
        print(f"{server.url} serves {client.models()}: {about['task']}")
        (output_HW,) = client.dense("mine", [image.read_bytes()])
        print(f"{image.name}: {output_HW.shape} {output_HW.dtype}")
        for class_id in sorted(set(output_HW.flat)) if about["classes"] else []:
            share = (output_HW == class_id).mean()
            print(f"  {about['classes'][class_id]:<12} {share:6.1%}")


if __name__ == "__main__":
    main()
