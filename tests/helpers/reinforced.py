"""DataCompDR's format, with augmentations by torchvision's own transforms."""

import gzip
import io
import json

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from clipmill.scenes import SceneConfig, draw

SIZE = 224
WIDTH = 1536


def scene(number, size):
    """A picture of this size, as a JPEG."""
    image = Image.fromarray(draw(SceneConfig(size=64, supersample=1), number).image_HW3)
    buffer = io.BytesIO()
    image.resize(size).save(buffer, "JPEG")
    return buffer.getvalue()


def augment(image, seed, probability=1.0):
    """Return torchvision's augmentation of a seed, and its parameters as raygen writes them.

    torchvision doesn't tell what it draws, so the same numbers are drawn again.
    """
    crop = transforms.RandomResizedCrop(SIZE, interpolation=transforms.InterpolationMode.BICUBIC)
    policy = transforms.RandAugment()
    torch.manual_seed(seed)
    result = crop(image)
    is_skipped = bool(torch.rand(1) > probability)
    result = result if is_skipped else policy(result)
    torch.manual_seed(seed)
    box = transforms.RandomResizedCrop.get_params(image, crop.scale, crop.ratio)
    torch.rand(1)
    if is_skipped:
        return result, [list(box), None]
    space = list(policy._augmentation_space(31, (SIZE, SIZE)).values())
    operations = []
    for _ in range(policy.num_ops):
        index = int(torch.randint(len(space), (1,)).item())
        magnitudes, is_signed = space[index]
        magnitude = float(magnitudes[policy.magnitude].item()) if magnitudes.ndim else 0.0
        if is_signed and torch.randint(2, (1,)):
            magnitude *= -1
        operations.append([index, magnitude])
    return result, [list(box), operations]


def reinforcement(number, image, *, num_augmentations=4, width=WIDTH, pth=False, url=""):
    """Members of a sample without its image and caption; 5 synthetic captions."""
    random = np.random.default_rng(number)
    key = f"{number:032x}"
    parameters = [augment(image, 1000 * number + k, 0.8)[1] for k in range(num_augmentations)]
    arrays = {
        "image_emb": random.normal(size=(num_augmentations, width)).astype(np.float32) / 40,
        "text_emb": random.normal(size=(6, width)).astype(np.float32) / 40,
    }
    buffer = io.BytesIO()
    if pth:
        tensors = {name: torch.tensor(value).bfloat16() for name, value in arrays.items()}
        torch.save(tensors, buffer)
        embeddings = ("pth.gz", gzip.compress(buffer.getvalue()))
    else:
        np.savez(buffer, **arrays)
        embeddings = ("npz", buffer.getvalue())
    texts = [f"synthetic {number} {k}" for k in range(5)]
    values = {
        "url.txt": (url or f"https://example.com/{number}.jpg").encode(),
        "syn.json": json.dumps({"syn_text": texts}).encode(),
        "paug.json": json.dumps({"param_aug": json.dumps(parameters)}).encode(),
        embeddings[0]: embeddings[1],
        "json": json.dumps({"uid": key, "sha256": "0" * 64}).encode(),
    }
    return [(f"{key}.{name}", data) for name, data in values.items()]
