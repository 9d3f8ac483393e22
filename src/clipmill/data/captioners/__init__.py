"""Captioners by address: an address and settings in, something that captions samples out.

================================= ================================================================
address                           captioner
================================= ================================================================
``URI``                           a CoCa trained by ``clipmill data train-captioner``
``open_clip:NAME/TAG``            a CoCa with weights that open_clip lists
``hf:ORG/NAME[@REVISION]``        an image-to-text model of transformers, or a CoCa, on the hub
``file:PATH[#open_clip/NAME]``    the same in a folder, or a file of a CoCa's weights
``vlm:URL``, ``rewrite:URL``      a model at a chat endpoint
``template:PATH``                 labels of the images, put into words
================================= ================================================================
"""

from collections.abc import Callable, Mapping

from clipmill.data.captioners.base import (
    REASONS,
    Captioner,
    CaptionInput,
    CaptionOutput,
)
from clipmill.data.captioners.chat import RewriteCaptioner, VlmCaptioner
from clipmill.data.captioners.coca import CocaCaptioner
from clipmill.data.captioners.config import (
    CaptionersConfig,
    ChatClientConfig,
    GenerateConfig,
    HuggingFaceConfig,
    RewriteConfig,
    TemplateConfig,
    VlmConfig,
)
from clipmill.data.captioners.public import HuggingFaceCaptioner, OpenClipCoca, find_captioner
from clipmill.data.captioners.template import TemplateCaptioner
from clipmill.errors import ClipmillError, ConfigError
from clipmill.lineage import Node, lineage
from clipmill.models.weights.addresses import parse_address
from clipmill.scenes.source import has_scenes_ancestor

__all__ = [
    "REASONS",
    "CaptionInput",
    "CaptionOutput",
    "Captioner",
    "CaptionersConfig",
    "ChatClientConfig",
    "CocaCaptioner",
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
    "knows_photos",
    "open_captioner",
]


# Captioners that aren't weights: how each is opened by what follows KIND:.
_OTHERS: Mapping[str, Callable[[str, CaptionersConfig], Captioner]] = {
    "rewrite": lambda uri, config: RewriteCaptioner(uri, config.rewrite, config.endpoint),
    "template": lambda uri, config: TemplateCaptioner(uri, config.template),
    "vlm": lambda uri, config: VlmCaptioner(uri, config.vlm, config.endpoint),
}
FORMS = (
    "the URI of a CoCa, open_clip:NAME/TAG, hf:ORG/NAME[@REVISION], file:PATH[#open_clip/NAME], "
    + ", ".join(f"{kind}:{'PATH' if kind == 'template' else 'URL'}" for kind in _OTHERS)
)


def captioner_kind(name: str) -> tuple[str, str]:
    """Return the scheme of a captioner's address and the rest; ``clipmill`` for a plain URI.

    Nothing is opened.

    Raises:
        ConfigError: it isn't such an address.
    """
    kind, colon, rest = name.partition(":")
    if kind in _OTHERS and colon:
        return kind, rest
    if kind in {"coca", "blip", "git", "huggingface"} and colon:
        raise _former_address_error(name, kind, rest)
    try:
        address = parse_address(name)
    except ConfigError as error:
        raise ConfigError(
            error.what, expected=FORMS, action="correct the captioner's address"
        ) from error
    if address.scheme in {"timm", "random"}:
        raise ConfigError(
            f"{name} writes no captions",
            expected=FORMS,
            action="choose a captioner, such as hf:Salesforce/blip-image-captioning-base, or train "
            "one with `clipmill data train-captioner`",
        )
    return address.scheme, name if address.scheme == "clipmill" else rest


def open_captioner(name: str, config: CaptionersConfig) -> tuple[str, Captioner]:
    """Return kind and captioner of an address; the kind is part of its layers' names.

    Loads no weights. Raises UserErrors, as :func:`captioner_kind` and the captioner's class say.
    """
    scheme, rest = captioner_kind(name)
    if scheme in _OTHERS:
        return scheme, _OTHERS[scheme](rest, config)
    threads = config.num_threads
    if scheme == "clipmill":
        return "coca", CocaCaptioner(name, config.generate, num_threads=threads)
    weights = find_captioner(parse_address(name))
    if isinstance(weights, OpenClipCoca):
        return "coca", CocaCaptioner(weights, config.generate, num_threads=threads)
    captioner = HuggingFaceCaptioner(
        weights.path,
        config.huggingface,
        source=weights.source,
        batch_size=config.batch_size,
        num_threads=threads,
    )
    known = [kind for kind in ("blip", "git") if captioner.model_type.startswith(kind)]
    return (known or ["huggingface"])[0], captioner


def knows_photos(captioner: Captioner) -> bool:
    """Return whether a captioner can describe photos.

    Public weights and endpoints can. A clipmill CoCa can't if procedural scenes are among its
    ancestors, or if its lineage can't be read.
    """
    if not isinstance(captioner, CocaCaptioner) or captioner.is_public:
        return True
    try:
        node = lineage(captioner.parents[0].uri)
    except ClipmillError:
        return False
    return not (has_scenes_ancestor(node) or _has_unknown(node))


def _has_unknown(node: Node) -> bool:
    return node.kind == "unknown" or any(_has_unknown(parent) for parent in node.parents)


def _former_address_error(name: str, kind: str, rest: str) -> ConfigError:
    """Return the error for an address of clipmill 0.1.0 and before."""
    model, at, file = rest.partition("@")
    if kind != "coca":
        now = f"file:{rest}"
    elif at and model.startswith("coca_"):
        now = f"file:{file}#open_clip/{model}"
    else:
        now = rest
    return ConfigError(
        f"captioners are no longer named by {kind}:",
        expected=FORMS,
        action=f"write {now} in place of {name}",
    )
