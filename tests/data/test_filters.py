"""Each filter's verdict on rows whose scores are given."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.data.duplicates import ExactDuplicateFilter, NearDuplicateFilter
from clipmill.data.filters import (
    AspectRatioFilter,
    Block,
    CaptionLengthFilter,
    ClipScoreFilter,
    ClipTopFractionFilter,
    ConceptBalanceFilter,
    ImageSizeFilter,
    LanguageFilter,
)
from clipmill.data.select import FILTERS
from clipmill.errors import ConfigError

SYNTHETIC = "captions/s"


def block_of(columns, *, start=0, kind=None, place=None, uids=None):
    """A block of rows with these columns, by layer and name."""
    arrays = {
        layer: {name: pa.array(values) for name, values in found.items()}
        for layer, found in columns.items()
    }
    num_rows = len(next(iter(next(iter(arrays.values())).values())))
    return Block(
        start=start,
        num_rows=num_rows,
        kinds=("real", SYNTHETIC),
        caption_kind=np.array(kind or [0] * num_rows, np.uint8),
        caption_index=np.array(place or [0] * num_rows, np.uint16),
        columns=arrays,
        read_uids=lambda: uids or [f"u{start + row}" for row in range(num_rows)],
    )


def verdict(config, *blocks, alive=None):
    """Which rows of all blocks a filter keeps."""
    num_rows = sum(block.num_rows for block in blocks)
    alive = np.ones(num_rows, bool) if alive is None else np.array(alive)
    state = config.create_state(num_rows)
    for _ in range(state.num_passes):
        for block in blocks:
            state.observe(block, alive[block.rows])
        state.finish_pass()
    return [kept for block in blocks for kept in state.keep_mask(block).tolist()]


def sizes(*pairs):
    width, height = zip(*pairs, strict=True)
    return block_of({"score/image": {"width": list(width), "height": list(height)}})


def test_image_size():
    block = sizes((200, 500), (500, 199), (1, 1), (None, None), (200, 200))
    assert verdict(ImageSizeFilter(), block) == [True, False, False, False, True]
    assert verdict(ImageSizeFilter(min_side=1), block) == [True, True, True, False, True]


def test_aspect_ratio():
    block = sizes((300, 100), (100, 300), (301, 100), (100, 301), (None, None), (7, 7))
    assert verdict(AspectRatioFilter(), block) == [True, True, False, False, False, True]


def texts(*rows, **options):
    names = ("words", "characters", "language", "confidence")
    values = [None if row is None else dict(zip(names, row, strict=True)) for row in rows]
    return block_of({"score/text": {"real": values, **options}})


def test_caption_length():
    """DataComp: more than 2 words and more than 5 characters."""
    block = texts((3, 6, "", 0.0), (2, 60, "", 0.0), (3, 5, "", 0.0), None, (99, 999, "", 0.0))
    assert verdict(CaptionLengthFilter(), block) == [True, False, False, False, True]
    assert verdict(CaptionLengthFilter(max_words=50), block) == [True, *[False] * 4]


def test_language():
    block = texts((1, 1, "en", 0.9), (1, 1, "de", 0.9), (1, 1, None, None), (1, 1, "en", 0.2), None)
    assert verdict(LanguageFilter(), block) == [True, False, False, True, False]
    assert verdict(LanguageFilter(language="de"), block) == [False, True, False, False, False]
    assert verdict(LanguageFilter(min_confidence=0.5), block) == [True, *[False] * 4]


def scores(*real, start=0, **options):
    synthetic = options.pop("synthetic", [[0.0, 0.0]] * len(real))
    columns = {"real": pa.array(real, pa.float32()), SYNTHETIC: pa.array(synthetic)}
    return block_of({"score/clip": columns}, start=start, **options)


def test_clip_score():
    block = scores(0.7, 0.6999, None, 0.9, float("nan"))
    assert verdict(ClipScoreFilter(threshold=0.7), block) == [True, False, False, True, False]
    chosen = scores(0.9, 0.1, 0.1, kind=[1, 1, 0], place=[0, 1, 0], synthetic=[[0.1, 0.8]] * 3)
    config = ClipScoreFilter(threshold=0.5, captions="selected")
    assert verdict(config, chosen) == [False, True, False]


def test_the_chosen_captions_value_may_be_missing():
    """A table from elsewhere may have fewer scores than there are captions."""
    block = scores(
        0.9, 0.9, 0.9, kind=[1, 1, 0], place=[1, 1, 0], synthetic=[[1.0], [0.1, 1.0], []]
    )
    config = ClipScoreFilter(threshold=0.5, captions="selected")
    assert verdict(config, block) == [False, True, True]


def test_a_slice_of_a_column_is_read_as_itself():
    values = pa.array([[9.0], [0.1, 0.8], [0.2], []])
    block = Block(
        start=0,
        num_rows=2,
        kinds=("real", SYNTHETIC),
        caption_kind=np.array([1, 1], np.uint8),
        caption_index=np.array([1, 0], np.uint16),
        columns={"score/clip": {"real": pa.array([0.0, 0.0]), SYNTHETIC: values.slice(1, 2)}},
        read_uids=list,
    )
    assert block.caption_numbers("score/clip", "chosen").tolist() == [0.8, 0.2]


def test_clip_top_fraction_is_of_what_is_left():
    blocks = [scores(0.1, 0.9, 0.5), scores(0.7, 0.3, None, start=3)]
    config = ClipTopFractionFilter(fraction=0.4)
    # The place int(5 * 0.4) of five scores in descending order: the third is in, as in DataComp.
    assert verdict(config, *blocks) == [False, True, True, True, False, False]
    alive = [True, False, True, True, True, True]
    assert verdict(config, *blocks, alive=alive) == [False, True, True, True, False, False]
    assert verdict(ClipTopFractionFilter(fraction=1.0), *blocks)[-1] is False


@pytest.mark.parametrize("fraction", [0.0, 1.1, -1.0])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        ClipTopFractionFilter(fraction=fraction)


def concepts(*lists, start=0):
    column = pa.array(lists, pa.list_(pa.int32()))
    return block_of({"score/concepts": {"real": column}}, start=start)


def test_concept_balance_keeps_rare_ones_whole_and_drops_what_names_none():
    block = concepts([0], [], [0], [1], [0, 1])
    config = ConceptBalanceFilter(max_count=3)
    assert verdict(config, block) == [True, False, True, True, True]


def test_concept_balance_caps_frequent_ones():
    """Ten thousand name concept 0, of which a hundred name a rare one too."""
    lists = [[0, 1] if row % 100 == 0 else [0] for row in range(10_000)]
    blocks = [concepts(*lists[:3000]), concepts(*lists[3000:], start=3000)]
    kept = np.array(verdict(ConceptBalanceFilter(max_count=1000), *blocks))
    assert kept[::100].all()
    expected = 100 + 9_900 * 0.1
    assert abs(kept.sum() - expected) < 5 * np.sqrt(9_900 * 0.1 * 0.9)


def test_concept_balance_follows_metaclips_law():
    """Rows with several frequent concepts: a draw for each, kept if any succeeds."""
    lists = [[0, 1]] * 4000 + [[0]] * 4000
    kept = np.array(verdict(ConceptBalanceFilter(max_count=400), concepts(*lists)))
    chance = 1 - (1 - 400 / 8000) * (1 - 400 / 4000)
    assert abs(kept[:4000].mean() - chance) < 5 * np.sqrt(chance * (1 - chance) / 4000)


def test_concept_balance_is_monotone_and_seeded():
    block = concepts(*[[row % 7] for row in range(2000)])
    few, more, other = (
        np.array(verdict(ConceptBalanceFilter(max_count=count, seed=seed), block))
        for count, seed in ((50, 0), (100, 0), (50, 1))
    )
    assert not (few & ~more).any()
    assert (few != other).any()
    assert few.tolist() == verdict(ConceptBalanceFilter(max_count=50), block)


def test_concepts_that_only_refused_rows_name():
    block = concepts([0], [5])
    assert verdict(ConceptBalanceFilter(), block, alive=[True, False]) == [True, True]


def pictures(rows, start=0, uids=None):
    """Rows of (hash, width, height, score)."""
    hashes, width, height, score = zip(*rows, strict=True)
    content = [None if h is None else h.to_bytes(16, "big") for h in hashes]
    image = {
        "perceptual_hash": pa.array(hashes, pa.uint64()),
        "content_hash": pa.array(content, pa.binary(16)),
        "width": pa.array(width),
        "height": pa.array(height),
    }
    columns = {"score/image": image, "score/clip": {"real": pa.array(score, pa.float32())}}
    return block_of(columns, start=start, uids=uids)


PICTURES = [(7, 10, 10, 0.9), (7, 20, 20, 0.1), (1 << 40, 5, 5, 0.5), (6, 30, 30, 0.2)]


def test_duplicates_leave_the_largest():
    blocks = [pictures(PICTURES[:2]), pictures([*PICTURES[2:], (None,) * 4], start=2)]
    assert verdict(ExactDuplicateFilter(), *blocks) == [False, True, True, True, True]
    near = NearDuplicateFilter(distance=1)
    assert verdict(near, *blocks) == [False, False, True, True, True]
    assert verdict(NearDuplicateFilter(distance=0), *blocks) == [False, True, True, True, True]


def test_duplicates_leave_the_best_score():
    block = pictures(PICTURES)
    assert verdict(ExactDuplicateFilter(keep_best_by="score"), block) == [True, False, True, True]
    near = NearDuplicateFilter(distance=1, keep_best_by="score")
    assert verdict(near, block) == [True, False, True, False]


def test_refused_rows_hide_no_duplicate():
    block = pictures(PICTURES)
    kept = verdict(ExactDuplicateFilter(), block, alive=[True, False, True, True])
    assert kept[0]


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_of_equal_pictures_the_same_stays_in_any_order(order):
    uids = [f"u{number}" for number in order]
    kept = verdict(ExactDuplicateFilter(), pictures([(1, 2, 2, 0.0)] * 8, uids=uids))
    assert [uid for uid, k in zip(uids, kept, strict=True) if k] == [
        uid
        for uid, k in zip(
            [f"u{n}" for n in range(8)],
            verdict(ExactDuplicateFilter(), pictures([(1, 2, 2, 0.0)] * 8)),
            strict=True,
        )
        if k
    ]


@pytest.mark.parametrize("distance", [-1, 9])
def test_distance_out_of_range(distance):
    with pytest.raises(ConfigError, match="distance"):
        NearDuplicateFilter(distance=distance)


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_says_what_it_needs(name):
    settings = {
        "clip-score": {"threshold": 0.3},
        "score-range": {"layer": "score/nsfw", "max_score": 0.5},
    }
    required = FILTERS[name].from_json(settings.get(name, {})).required_columns
    assert required
    assert all(layer.startswith("score/") and columns for layer, columns in required.items())
