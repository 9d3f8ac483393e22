"""CLIP's byte-pair tokenizer, complete or cut to its most frequent merges.

Merges are ordered by frequency, so the first N of them are a smaller vocabulary of the same kind:
512 byte symbols, N merges, then start and end of text. Tiny recipes use a few thousand; the full
49,408 are CLIP's own and give open_clip's token ids exactly.
"""

import gzip
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from clipmill.errors import ConfigError
from clipmill.models.config import CLIP_VOCAB_SIZE, TextConfig

if TYPE_CHECKING:
    import torch


_NUM_BYTE_SYMBOLS = 512
_NUM_SPECIAL = 2
_LENGTH_STEP = 8
# The web has tens of millions of distinct words, and open_clip would cache all of them.
_MAX_CACHED_WORDS = 100_000
_MAX_CACHED_TEXTS = 1 << 14


class Tokenizer:
    """Text to token ids and back; immutable, picklable.

    With ``is_trimmed`` a batch is only as long as its longest text: a causal tower computes
    nothing else from what comes after a text's end.
    """

    def __init__(
        self,
        *,
        vocab_size: int = CLIP_VOCAB_SIZE,
        context_length: int = 77,
        is_trimmed: bool = False,
    ) -> None:
        if not _NUM_BYTE_SYMBOLS + _NUM_SPECIAL <= vocab_size <= CLIP_VOCAB_SIZE:
            raise ConfigError(
                f"vocab_size was {vocab_size}",
                expected=f"{_NUM_BYTE_SYMBOLS + _NUM_SPECIAL} to {CLIP_VOCAB_SIZE}",
                action="choose a size in that range",
            )
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.is_trimmed = is_trimmed
        self.pad_id = 0
        self.start_id = vocab_size - 2
        self.end_id = vocab_size - 1

    @classmethod
    def from_config(cls, config: TextConfig, *, is_padded: bool = False) -> Self:
        """Build the tokenizer of a text tower; ``is_padded`` always fills the context."""
        return cls(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            is_trimmed=config.is_causal and not is_padded,
        )

    def __call__(self, texts: Sequence[str]) -> "torch.Tensor":
        """Return token ids (B, T) int64: start, text cut to fit, end, then ``pad_id``.

        T is the context's length or, trimmed, a multiple of 8 (which matrix units like, and
        which keeps the number of shapes small) up to it.
        """
        tokens_BT: torch.Tensor = _bpe(self.vocab_size)(list(texts), self.context_length)
        if not self.is_trimmed or not len(tokens_BT):
            return tokens_BT
        longest = int((tokens_BT == self.end_id).int().argmax(dim=1).max()) + 1
        return tokens_BT[:, : -(-longest // _LENGTH_STEP) * _LENGTH_STEP].contiguous()

    def decode(self, tokens_T: "torch.Tensor") -> str:
        """Return the text between start and end."""
        ids = []
        for token in tokens_T.tolist():
            if token == self.end_id:
                break
            # The id of padding is also that of "!" within a word, which is far rarer.
            if token not in {self.start_id, self.pad_id}:
                ids.append(token)
        return str(_bpe(self.vocab_size).decode(ids)).strip()


class _BoundedBpeCache(dict[str, str]):
    """open_clip's cache of words in pieces, emptied (but for special tokens) when it is full."""

    def __init__(self, special: dict[str, str]) -> None:
        super().__init__(special)
        self._special = dict(special)

    def __setitem__(self, word: str, pieces: str) -> None:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
            self.update(self._special)
        super().__setitem__(word, pieces)


@lru_cache(maxsize=4)
def _bpe(vocab_size: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  # open_clip is untyped
    tokenizer = _simple_tokenizer(vocab_size)
    tokenizer.cache = _BoundedBpeCache(tokenizer.cache)
    # Cleaning a text takes longer than its pieces, and small datasets come again every epoch.
    tokenizer.encode = lru_cache(maxsize=_MAX_CACHED_TEXTS)(tokenizer.encode)
    return tokenizer


def _simple_tokenizer(vocab_size: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    if vocab_size == CLIP_VOCAB_SIZE:
        return SimpleTokenizer()
    header_and_merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    num_merges = vocab_size - _NUM_BYTE_SYMBOLS - _NUM_SPECIAL
    with tempfile.NamedTemporaryFile(suffix=".txt.gz") as file:
        kept = "\n".join(header_and_merges[: 1 + num_merges])
        Path(file.name).write_bytes(gzip.compress(kept.encode()))
        return SimpleTokenizer(bpe_path=file.name)
