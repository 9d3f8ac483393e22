"""Filters by name."""

from collections.abc import Mapping

from clipmill.data.filters.aspect_ratio import AspectRatioFilter
from clipmill.data.filters.caption_length import CaptionLengthFilter
from clipmill.data.filters.clip_score import ClipScoreFilter
from clipmill.data.filters.clip_top_fraction import ClipTopFractionFilter
from clipmill.data.filters.concept_balance import ConceptBalanceFilter
from clipmill.data.filters.contract import FilterConfig
from clipmill.data.filters.duplicate import ExactDuplicateFilter, NearDuplicateFilter
from clipmill.data.filters.image_size import ImageSizeFilter
from clipmill.data.filters.language import LanguageFilter

FILTERS: Mapping[str, type[FilterConfig]] = {
    "aspect-ratio": AspectRatioFilter,
    "caption-length": CaptionLengthFilter,
    "clip-score": ClipScoreFilter,
    "clip-top-fraction": ClipTopFractionFilter,
    "concept-balance": ConceptBalanceFilter,
    "exact-duplicate": ExactDuplicateFilter,
    "image-size": ImageSizeFilter,
    "language": LanguageFilter,
    "near-duplicate": NearDuplicateFilter,
}
