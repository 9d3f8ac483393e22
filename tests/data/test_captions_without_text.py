"""Captions in which no character shows are counted as empty, by every source."""

import json
from pathlib import Path

import pytest

from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.data.sources.base import has_text
from clipmill.errors import SourceError
from helpers.sources import jpeg, write_tar

BLANK = ["\u200b", "\0", " \u200b\ufeff\u2060\u00a0\n", "\u202e", "\ufffd"]


@pytest.mark.parametrize("text", [*BLANK, ""])
def test_blank(text: str) -> None:
    assert not has_text(text)
    assert not has_text(text.encode())


@pytest.mark.parametrize("text", ["a", ".", "\u200bx", "🐶", "犬", "❤\ufe0f", "0", "\ue000"])
def test_not_blank(text: str) -> None:
    assert has_text(text)


@pytest.mark.parametrize("caption", BLANK)
@pytest.mark.parametrize("kind", ["folder", "csv", "jsonl", "coco", "webdataset"])
def test_counted(tmp_path: Path, kind: str, caption: str) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    spec = str(tmp_path)
    if kind == "folder":
        (tmp_path / "0.txt").write_text(caption)
    elif kind == "csv":
        (tmp_path / "t.csv").write_text(f'path,caption\n0.jpg,"{caption}"\n')
        spec = f"{tmp_path}/t.csv"
    elif kind == "jsonl":
        (tmp_path / "t.jsonl").write_text(json.dumps({"path": "0.jpg", "caption": caption}))
        spec = f"{tmp_path}/t.jsonl"
    elif kind == "coco":
        value = {
            "images": [{"file_name": "0.jpg", "id": 1}],
            "annotations": [{"id": 1, "image_id": 1, "caption": caption}],
        }
        (tmp_path / "c.json").write_text(json.dumps(value))
        spec = f"coco:{tmp_path}/c.json?images={tmp_path}"
    else:
        write_tar(tmp_path / "t.tar", [("0.jpg", jpeg(0)), ("0.txt", caption.encode())])
        spec = f"{tmp_path}/t.tar"
    with pytest.raises(SourceError, match="1 empty_caption"):
        write_dataset(ShardConfig(), spec, str(tmp_path / "out"))
