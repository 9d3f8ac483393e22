"""The perceptual hash against its formula, and on pictures that are nearly the same."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dct

from clipmill.data.scoring.scorers import perceptual_hashes, small_gray


def picture(seed, size=(160, 120)):
    """Smooth, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def hash_of(*images):
    return perceptual_hashes([small_gray(image) for image in images])


def test_it_is_the_published_one():
    """Scipy's DCT over columns, then rows; the first 8 x 8 above their median, as ImageHash has."""
    for seed in range(20):
        image = picture(seed)
        small = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
        low = dct(dct(np.asarray(small, np.float64), axis=0), axis=1)[:8, :8]
        bits = "".join("1" if b else "0" for b in (low > np.median(low)).flatten())
        assert int(hash_of(image)[0]) == int(bits, 2)


def reencoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: reencoded(image, "JPEG", quality=60),
        lambda image: reencoded(image, "WEBP", quality=60),
        lambda image: image.resize((80, 60), Image.Resampling.BICUBIC),
        lambda image: image.resize((317, 233), Image.Resampling.BILINEAR),
        lambda image: image.point(lambda value: min(255, int(value * 1.1))),
    ],
    ids=["jpeg", "webp", "half as large", "larger", "brighter"],
)
def test_small_changes_move_few_bits(change):
    distances = [
        int(np.bitwise_count(np.bitwise_xor(*hash_of(picture(s), change(picture(s))))))
        for s in range(20)
    ]
    assert np.median(distances) <= 2
    assert max(distances) <= 8


def test_other_pictures_move_many():
    hashes = hash_of(*(picture(seed) for seed in range(30)))
    apart = [int(np.bitwise_count(hashes[i] ^ hashes[j])) for i in range(30) for j in range(i)]
    assert min(apart) > 8
    assert 28 < np.mean(apart) < 36


def test_flat_pictures_agree_whatever_their_gray():
    flat = [Image.new("RGB", (50 + g, 40), (g, g, g)) for g in (1, 100, 255)]
    assert len(set(hash_of(*flat).tolist())) == 1


def test_a_batch_is_its_pictures():
    images = [picture(seed) for seed in range(5)]
    assert hash_of(*images).tolist() == [int(hash_of(image)[0]) for image in images]
