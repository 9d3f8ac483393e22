"""What rows a layer of each kind may hold."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.data.layers import validate_layer_table
from clipmill.errors import ArtifactError

WIDTH = 4


def embeddings(rows, width=WIDTH, kind=np.float16):
    values = pa.array(np.arange(rows * width).astype(kind))
    return pa.FixedSizeListArray.from_arrays(values, width)


def several(counts, **options):
    offsets = np.cumsum([0, *counts]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), embeddings(sum(counts), **options))


captions_of = st.one_of(
    st.none(), st.lists(st.one_of(st.none(), st.sampled_from(["", " ", "\n", "a dog", "x"])))
)


@given(st.lists(captions_of, max_size=5))
def test_captions(rows):
    table = pa.table({"captions": pa.array(rows, pa.list_(pa.string()))})
    lacking = [
        row
        for row, texts in enumerate(rows)
        if not texts or not all(text and text.strip() for text in texts)
    ]
    if not lacking:
        validate_layer_table("captions/x", 0, table)
        return
    with pytest.raises(ArtifactError, match=f"^row {lacking[0]} of shard 0"):
        validate_layer_table("captions/x", 0, table)


def test_captions_are_lists_of_strings():
    for column in (pa.array(["a"]), pa.array([[1]])):
        with pytest.raises(ArtifactError, match="a list of strings in each row"):
            validate_layer_table("captions/x", 0, pa.table({"captions": column}))


with_null = pa.array([[1.0] * WIDTH, None], pa.list_(pa.float16(), WIDTH))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (with_null, embeddings(2)),
        (pa.array([None, None], several([1]).type), embeddings(2)),
        (embeddings(2), embeddings(2)),
        (several([3, 1]), several([2, 5])),
        (several([0, 3]), embeddings(2)),
    ],
)
def test_teachers_embeddings(image, text):
    validate_layer_table("teacher/x", 0, pa.table({"image": image, "text": text}))


with_nan = pa.FixedSizeListArray.from_arrays(pa.array(np.array([1, np.nan] * 4, np.float16)), WIDTH)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": embeddings(2)}, "text of layer teacher/x was missing"),
        ({"image": embeddings(2, kind=np.float32), "text": embeddings(2)}, "image .* was fixed"),
        ({"image": pa.array([[1.0], [2.0]]), "text": embeddings(2)}, "image .* was list"),
        ({"image": embeddings(2), "text": embeddings(2, width=3)}, "text .* was 3 wide"),
        (
            {"image": pa.array([[None], []], several([1]).type), "text": embeddings(2)},
            "image .* was null, NaN or infinite",
        ),
        ({"image": with_nan, "text": embeddings(2)}, "image .* was null, NaN or infinite"),
    ],
)
def test_what_is_no_teacher(columns, words):
    with pytest.raises(ArtifactError, match=words):
        validate_layer_table("teacher/x", 0, pa.table(columns))


GOOD = {
    "keep": [True, False],
    "refused_by": pa.array([None, "size"], pa.string()),
    "caption": ["real", "real"],
    "caption_index": pa.array([0, 0], pa.int32()),
}


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("keep", None, "keep of layer select/x was missing"),
        ("keep", [1, 0], "keep of layer select/x was int64"),
        ("keep", [True, None], "keep of layer select/x was null in shard 3"),
        ("caption", pa.array(["real", None]), "caption of layer select/x was null"),
        ("caption_index", [0, 0], "caption_index of layer select/x was int64"),
    ],
)
def test_what_is_no_selection(column, value, words):
    validate_layer_table("select/x", 3, pa.table(GOOD))
    columns = (
        {**GOOD, column: value} if value is not None else {k: GOOD[k] for k in GOOD if k != column}
    )
    with pytest.raises(ArtifactError, match=words):
        validate_layer_table("select/x", 3, pa.table(columns))


def test_scores_are_free():
    validate_layer_table("score/x", 0, pa.table({"anything": [None, 1]}))
