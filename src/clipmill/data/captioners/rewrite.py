"""Rewrites of the real caption by a language model that never sees the image (LaCLIP's way)."""

from dataclasses import dataclass

from clipmill.data.captioners.chat import ChatCaptioner, ChatConfig
from clipmill.data.captioners.endpoint import EndpointConfig
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RewriteConfig(ChatConfig):
    """How a language model is asked to rewrite a caption."""

    prompt: str = (
        "Rewrite this image caption in other words, as one plain sentence. Keep every fact, add "
        "none, and answer with the sentence alone.\n\n{caption}"
    )
    """The user's message; ``{caption}`` is replaced by the real caption."""

    def __post_init__(self) -> None:
        """Refuse a prompt that doesn't hold what is to be rewritten (ConfigError)."""
        # Plain super() doesn't know the class that slots=True makes.
        ChatConfig.__post_init__(self)
        if "{caption}" not in self.prompt:
            raise ConfigError(
                f"prompt was {self.prompt!r}",
                expected="a text with {caption} where the real caption goes",
                action="add {caption} to rewrite.prompt",
            )


class RewriteCaptioner(ChatCaptioner):
    """Rewrites of real captions by the model at an endpoint."""

    def __init__(self, url: str, config: RewriteConfig, endpoint: EndpointConfig) -> None:
        super().__init__(url, config, endpoint)
