"""How a CLIP model is judged without training."""

from dataclasses import dataclass

from clipmill.config import Config
from clipmill.data.scoring.clip import ClipScoreConfig
from clipmill.errors import ConfigError
from clipmill.tasks.zero_shot_prompts import PromptSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotConfig(Config):
    """Zero-shot classification."""

    clip: ClipScoreConfig = ClipScoreConfig()
    """The CLIP that is judged."""
    prompts: PromptSet = "openai-80"
    """Sentences whose mean embedding stands for a class (Radford et al. 2021, section 3.1.4)."""
    templates: tuple[str, ...] = ()
    """The sentences of ``prompts=given``, each with ``{}`` for the class's name."""
    classes: str = ""
    """Text file of class names, ``imagenet``, or empty for the data's own."""
    split: str = "val"
    """Folder of a picture folder's split; empty where the classes' folders are at the top."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig(Config):
    """Image-text retrieval."""

    clip: ClipScoreConfig = ClipScoreConfig()
    """The CLIP that is judged."""
    captions_per_image: int = 5
    """Most captions of an image that count (5: Karpathy and Fei-Fei's COCO split)."""
    num_images: int = 0
    """Images that are judged, from the first; 0 for all."""
    outside_fraction: float = 0.0
    """Judge only samples outside this fraction of a dataset, as ``view.fraction`` cuts it: those
    that an encoder trained on the fraction hasn't seen. 0 for all."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not 0 <= self.outside_fraction < 1:
            raise ConfigError(
                f"outside_fraction was {self.outside_fraction}",
                expected="0 to below 1",
                action="set it to the view.fraction that the encoder was trained on",
            )
