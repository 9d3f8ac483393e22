"""Backends of CLIP image towers on a CPU: PyTorch and ONNX Runtime, in turns, random weights.

python benchmarks/serve_onnx.py --threads 2 --turns 5
"""

import argparse
import time

import numpy as np
import torch

from clipmill.models.clip import ClipEmbedder
from clipmill.models.towers import build_clip
from clipmill.pretrain.config import PretrainConfig
from clipmill.recipes.registry import get_recipe

RECIPES = {"ViT-B/16": "clip-vit-b16-12.8b", "MCi0": "clip-mci0-12.8b"}


def main() -> None:
    """Print the shortest time of a batch with each backend, and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models:
        config = get_recipe(RECIPES[name], PretrainConfig).model
        torch.manual_seed(0)
        tensors = build_clip(config).eval().state_dict()
        embedders = {
            "torch": ClipEmbedder(config, tensors),
            "onnx": ClipEmbedder(config, tensors, backend="onnx"),
        }
        side = config.vision.image_size
        for batch in options.batches:
            images = list(
                np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
            )
            outputs = {key: each.encode_images(images) for key, each in embedders.items()}
            wall: dict[str, list[float]] = {key: [] for key in embedders}
            busy: dict[str, list[float]] = {key: [] for key in embedders}
            for _ in range(options.turns):
                for key, each in embedders.items():
                    started, cpu = time.perf_counter(), time.process_time()
                    each.encode_images(images)
                    wall[key].append(time.perf_counter() - started)
                    busy[key].append(time.process_time() - cpu)
            best = {key: min(times) for key, times in wall.items()}
            cpu_best = {key: min(times) for key, times in busy.items()}
            difference = float(np.abs(outputs["torch"] - outputs["onnx"]).max())
            print(
                f"{name} at {side} px, batch {batch}, {options.threads} threads: "
                f"torch {best['torch'] * 1000:.0f} ms, onnx {best['onnx'] * 1000:.0f} ms, "
                f"onnx is {best['torch'] / best['onnx']:.2f}x as fast, "
                f"by CPU time {cpu_best['torch'] / cpu_best['onnx']:.2f}x; "
                f"embeddings differ by {difference:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
