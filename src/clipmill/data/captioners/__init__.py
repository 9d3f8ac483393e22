"""Captioners by kind: ``KIND:URI`` and their settings in, something that captions samples out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from clipmill.config import Config
from clipmill.data.captioners.coca import CocaCaptioner, GenerateConfig
from clipmill.data.captioners.contract import (
    REASONS,
    Captioner,
    CaptionInput,
    CaptionOutput,
)
from clipmill.data.captioners.endpoint import EndpointConfig
from clipmill.data.captioners.huggingface import HuggingFaceCaptioner, HuggingFaceConfig
from clipmill.data.captioners.rewrite import RewriteCaptioner, RewriteConfig
from clipmill.data.captioners.template import TemplateCaptioner, TemplateConfig
from clipmill.data.captioners.vlm import VlmCaptioner, VlmConfig
from clipmill.errors import ConfigError, suggestion

__all__ = [
    "CAPTIONERS",
    "REASONS",
    "CaptionInput",
    "CaptionOutput",
    "Captioner",
    "CaptionersConfig",
    "CocaCaptioner",
    "EndpointConfig",
    "GenerateConfig",
    "HuggingFaceCaptioner",
    "HuggingFaceConfig",
    "RewriteCaptioner",
    "RewriteConfig",
    "TemplateCaptioner",
    "TemplateConfig",
    "VlmCaptioner",
    "VlmConfig",
    "captioner_kind",
    "open_captioner",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionersConfig(Config):
    """Settings of every kind of captioner; only those of the kind that is opened count."""

    generate: GenerateConfig = GenerateConfig()
    """How ``coca`` draws captions."""
    huggingface: HuggingFaceConfig = HuggingFaceConfig()
    """How ``blip``, ``git`` and ``huggingface`` draw captions."""
    vlm: VlmConfig = VlmConfig()
    """What ``vlm`` asks."""
    rewrite: RewriteConfig = RewriteConfig()
    """What ``rewrite`` asks."""
    template: TemplateConfig = TemplateConfig()
    """What ``template`` writes."""
    endpoint: EndpointConfig = EndpointConfig()
    """How ``vlm`` and ``rewrite`` deal with their endpoint."""
    batch_size: int = 64
    """Samples captioned together."""
    num_threads: int = 0
    """CPU threads of a model; 0: PyTorch's choice, within the container's limit."""


def _coca(uri: str, config: CaptionersConfig) -> Captioner:
    return CocaCaptioner(uri, config.generate, num_threads=config.num_threads)


def _huggingface(uri: str, config: CaptionersConfig, *, kind: str) -> Captioner:
    return HuggingFaceCaptioner(
        uri,
        config.huggingface,
        kind=kind,
        batch_size=config.batch_size,
        num_threads=config.num_threads,
    )


CAPTIONERS: Mapping[str, Callable[[str, CaptionersConfig], Captioner]] = {
    "blip": partial(_huggingface, kind="blip"),
    "coca": _coca,
    "git": partial(_huggingface, kind="git"),
    "huggingface": partial(_huggingface, kind="huggingface"),
    "rewrite": lambda uri, config: RewriteCaptioner(uri, config.rewrite, config.endpoint),
    "template": lambda uri, config: TemplateCaptioner(uri, config.template),
    "vlm": lambda uri, config: VlmCaptioner(uri, config.vlm, config.endpoint),
}


def captioner_kind(name: str) -> tuple[str, str]:
    """Kind and URI of ``KIND:URI``; a URI alone is that of a CoCa checkpoint.

    Raises:
        ConfigError: there is no such kind.
    """
    kind, colon, uri = name.partition(":")
    if not colon or uri.startswith("//") or not kind.isalpha():
        return "coca", name
    if kind not in CAPTIONERS:
        raise ConfigError(
            f"there is no captioner of kind {kind!r}",
            expected=f"one of {', '.join(CAPTIONERS)}",
            action=suggestion(
                kind, CAPTIONERS, "write it as KIND:URI, or give the URI of a CoCa checkpoint"
            ),
        )
    return kind, uri


def open_captioner(name: str, config: CaptionersConfig) -> tuple[str, Captioner]:
    """Kind and captioner of what :func:`captioner_kind` reads.

    Imports no model library. Raises UserErrors, as the captioner's class says.
    """
    kind, uri = captioner_kind(name)
    return kind, CAPTIONERS[kind](uri, config)
