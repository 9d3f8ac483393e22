"""How strongly RangeAugment may change images (Mehta et al. 2022)."""

from dataclasses import dataclass

from clipmill.config import Config
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeAugmentConfig(Config):
    """How far images are driven from their originals."""

    start_psnr_decibels: float = 40.0
    """Target at the first step (CLIP-QC, Table 11)."""
    end_psnr_decibels: float = 20.0
    """Target at the last step (CLIP-QC, Table 11)."""
    weight: float = 100.0
    """Of the loss, which is over squared errors in units of 255 squared (ml-cvnets)."""
    chance: float = 0.5
    """Share of a batch that each operator is applied to (ml-cvnets)."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name in ("start_psnr_decibels", "end_psnr_decibels"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="above 0",
                    action=f"give {name} such a value",
                )
        if not 0 <= self.chance <= 1:
            raise ConfigError(
                f"chance was {self.chance}",
                expected="from 0 to 1",
                action="give chance such a value",
            )
