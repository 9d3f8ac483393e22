"""Recaptioning: a Parquet layer of captions beside a dataset's shards."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.config import Config
from clipmill.data.captioners import Captioner, CocaCaptioner, GenerateConfig
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.images import decode_rgb
from clipmill.data.layers import commit_layer, has_layer_shard, write_layer_shard
from clipmill.data.reader import read_shard
from clipmill.digest import digest_json
from clipmill.models.checkpoint import read_card
from clipmill.stages import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class RecaptionConfig(Config):
    """How a dataset is recaptioned."""

    generate: GenerateConfig = GenerateConfig()
    """How captions are drawn."""
    batch_size: int = 64
    """Pictures captioned together."""
    num_threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice."""


def recaption(
    config: RecaptionConfig,
    dataset: str,
    captioner: str,
    *,
    report: Report,
) -> str:
    """Caption each picture of the dataset with the model at ``captioner``; the layer's name.

    Shards that are captioned already are left as they are. Where the model says nothing, the real
    caption stands in, and the layer's column ``fallback`` says so.
    """
    opened = Dataset.open(dataset)
    card = read_card(captioner)
    key = digest_json([card.digest, config.generate.digest])
    layer = f"captions/{card.kind}-{key[:8]}"
    if layer in opened.layers:
        return layer
    report(0, opened.num_samples, "loading the captioner")
    model: Captioner = CocaCaptioner(captioner, config.generate, num_threads=config.num_threads)
    done = 0
    for index, shard in enumerate(opened.shards):
        if not has_layer_shard(opened, layer, index):
            table = _caption_shard(opened, index, model, config.batch_size)
            write_layer_shard(opened, layer, index, table)
        done += shard.num_samples
        report(done, opened.num_samples, "captioned")
    commit_layer(opened, layer, parents=(model.parent,), detail={"method": config.generate.method})
    return layer


def _caption_shard(dataset: Dataset, index: int, model: Captioner, batch_size: int) -> pa.Table:
    captions: list[str] = []
    with read_shard(dataset, index, cache_folder()) as reader:
        for start in range(0, len(reader), batch_size):
            rows = range(start, min(start + batch_size, len(reader)))
            captions += model.caption([decode_rgb(reader.image(r)) for r in rows], seed=index)
        shown = [[text or reader.caption(row)] for row, text in enumerate(captions)]
        fallback = [not text for text in captions]
        return pa.table({"uid": reader.uids, "captions": shown, "fallback": fallback})
