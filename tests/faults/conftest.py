"""Folders of pairs for the drills."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[[int], Path]:
    """Write so many pairs, and one picture that is none, to a folder."""

    def write(count: int) -> Path:
        folder = tmp_path / "source"
        folder.mkdir()
        random = np.random.default_rng(count)
        for i in range(count):
            pixels = random.integers(0, 256, (16, 16 + i % 3, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
            (folder / f"{i:03d}.txt").write_text(f"picture {i}")
        (folder / "broken.jpg").write_text("<html>")
        (folder / "broken.txt").write_text("broken")
        return folder

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "default-cache"))
