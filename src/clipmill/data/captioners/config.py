"""Settings of all captioners."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from clipmill.config import Config
from clipmill.errors import ConfigError

# open_clip's ``generate`` lets no caption end before this many.
MIN_TOKENS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig(Config):
    """Generation by a CoCa, named as in open_clip's ``generate``."""

    method: Literal["beam_search", "top_p", "top_k"] = "beam_search"
    """Deterministic beams, as open_clip 3.3 searches, or sampling."""
    num_captions: int = 1
    """Captions generated per sample; equal ones count once. Beam search gives one."""
    num_beams: int = 6
    """Beams of a search."""
    num_beam_groups: int = 3
    """Groups that the beams are divided among. open_clip searches each alike, so the search is that
    of ``num_beams / num_beam_groups`` beams."""
    top_p: float = 0.1
    """Sampling draws from the likeliest tokens whose probabilities add up to this."""
    top_k: int = 1
    """Sampling draws from this many of the likeliest tokens; 1 is greedy."""
    temperature: float = 1.0
    """Sampling divides logits by this, after the choice of tokens."""
    max_tokens: int = 40
    """Longest caption, tokens, start and end included."""
    seed: int = 0
    """Seed of sampling, with the sample's uid."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; ``auto`` is bf16 on a GPU and fp32 elsewhere."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing (ConfigError)."""
        several = self.method != "beam_search" and (self.method, self.top_k) != ("top_k", 1)
        for name, fits, expected in (
            ("num_captions", self.num_captions >= 1, "at least 1"),
            (
                "num_captions",
                self.num_captions == 1 or several,
                "1: neither beam search nor greedy decoding gives several",
            ),
            ("num_beams", self.num_beams >= 2, "at least 2; one beam is top_k with top_k=1"),
            (
                "num_beam_groups",
                self.num_beam_groups >= 1 and self.num_beams % self.num_beam_groups == 0,
                f"a divisor of num_beams, which is {self.num_beams}",
            ),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "above 0"),
        ):
            if not fits:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=expected,
                    action=f"set {name} to such a value",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceConfig(Config):
    """Generation by transformers' ``generate``."""

    method: Literal["beam_search", "top_p"] = "beam_search"
    """Deterministic beams, or nucleus sampling."""
    num_captions: int = 1
    """Captions per sample, at most ``num_beams`` of a beam search; equal ones count once."""
    num_beams: int = 3
    """Beams of a search; 1 is greedy."""
    top_p: float = 0.9
    """Sampling draws from the likeliest tokens whose probabilities add up to this."""
    temperature: float = 1.0
    """Sampling divides logits by this."""
    max_new_tokens: int = 30
    """Longest caption, tokens, without the prompt."""
    prompt: str = ""
    """Beginning of each caption (BLIP) or instruction; it is cut from captions that repeat it."""
    seed: int = 0
    """Seed of sampling, with the uid of the first sample of a batch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; ``auto`` is bf16 on a GPU and fp32 elsewhere."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing (ConfigError)."""
        most = self.num_beams if self.method == "beam_search" else self.num_captions
        for name, fits, expected in (
            ("num_captions", 1 <= self.num_captions <= most, f"1 to {most}"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("temperature", self.temperature > 0, "above 0"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
        ):
            if not fits:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=expected,
                    action=f"set {name} to such a value",
                )


_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatClientConfig(Config):
    """Access to a chat endpoint; it doesn't change captions, so it isn't stored with them."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "attempts": "max_attempts",
        "max_failures_in_a_row": "max_consecutive_failures",
    }

    key_variable: str = ""
    """Environment variable that holds the API key; empty for none."""
    key_file: str = ""
    """File that holds the API key, such as a mounted secret; empty for none."""
    concurrency: int = 8
    """Requests in flight at once."""
    requests_per_minute: float = 0.0
    """Most requests started per minute, retries included; 0 for no limit."""
    timeout_seconds: float = 60.0
    """Time for one attempt, from connecting to the last byte."""
    max_attempts: int = 5
    """Attempts per request, the first included."""
    backoff_seconds: float = 0.5
    """Longest wait before the second attempt; it doubles from one attempt to the next."""
    max_wait_seconds: float = 60.0
    """Longest wait before any attempt, seconds; a longer ``Retry-After`` ends the run."""
    max_requests: int = 0
    """Attempts per run; 0 for no limit."""
    max_total_tokens: int = 0
    """Tokens of prompts and completions per run; 0 for no limit."""
    max_consecutive_failures: int = 20
    """Consecutive samples that may fail before the run ends."""
    max_outage_seconds: float = 600.0
    """Longest wait for an endpoint that has answered before and is down (refused connections, 502,
    503, 504), such as during a restart."""
    renamed_parameters: dict[str, str] = field(default_factory=dict)
    """Names of request parameters that the endpoint spells otherwise, such as
    ``{"max_tokens": "max_completion_tokens"}``."""
    omitted_parameters: tuple[str, ...] = ()
    """Request parameters that the endpoint refuses, such as ``["n", "seed", "logprobs"]``."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and two sources of the key (ConfigError)."""
        if self.key_variable and self.key_file:
            raise ConfigError(
                "key_variable and key_file were both given",
                expected="one source of the key",
                action="leave one of them empty",
            )
        if self.key_variable and not _VARIABLE.fullmatch(self.key_variable):
            # Not shown: it may be a key.
            raise ConfigError(
                "key_variable isn't the name of an environment variable",
                expected="a name of capitals, digits and underscores, never the key itself",
                action="put the key into a variable, and set key_variable to the variable's name",
            )
        for name, least in (
            ("concurrency", 1),
            ("max_attempts", 1),
            ("max_consecutive_failures", 1),
            ("requests_per_minute", 0),
            ("backoff_seconds", 0),
            ("max_wait_seconds", 0),
            ("max_outage_seconds", 0),
            ("max_requests", 0),
            ("max_total_tokens", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=f"at least {least}",
                    action=f"set {name} to such a value",
                )
        required = {"model", "messages"} & {*self.renamed_parameters, *self.omitted_parameters}
        if required:
            raise ConfigError(
                f"{', '.join(sorted(required))} was renamed or omitted",
                expected="parameters that a chat completion doesn't need",
                action="leave model and messages as they are",
            )
        if self.timeout_seconds <= 0:
            raise ConfigError(
                f"timeout_seconds was {self.timeout_seconds}",
                expected="above 0",
                action="set timeout_seconds above 0",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatConfig(Config):
    """Prompt of a model at a chat endpoint, and its sampling."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "unwanted": "refusal_prefixes",
    }

    model: str = ""
    """The model's name, as the endpoint knows it."""
    system: str = ""
    """The system message; empty for none."""
    prompt: str = "{caption}"
    """The user's message; ``{caption}`` is replaced by the real caption, if it's there."""
    num_captions: int = 1
    """Captions per sample; equal ones count once."""
    max_tokens: int = 96
    """Longest completion, tokens."""
    temperature: float = 0.7
    """Sampling divides logits by this; 0 is greedy."""
    top_p: float = 0.95
    """Sampling draws from the likeliest tokens whose probabilities add up to this."""
    seed: int = 0
    """Seed of sampling, with the sample's uid, for endpoints that support it."""
    logprobs: bool = True
    """Request token log probabilities, which give a caption's score."""
    max_caption_characters: int = 1000
    """Longest real caption in the prompt, characters; longer ones are truncated."""
    refusal_prefixes: tuple[str, ...] = (
        "i'm sorry",
        "i am sorry",
        "i cannot",
        "i can't",
        "as an ai",
    )
    """Prefixes, in lower case, of completions that are refusals rather than captions."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, fits, expected in (
            ("num_captions", self.num_captions >= 1, "at least 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_caption_characters", self.max_caption_characters >= 1, "at least 1"),
        ):
            if not fits:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=expected,
                    action=f"set {name} to such a value",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class VlmConfig(ChatConfig):
    """Prompt of a vision-language model, and the images sent to it."""

    prompt: str = "Describe this image in one sentence of at most 30 words."
    """The user's message next to the image; ``{caption}`` is replaced by the real caption."""
    max_side: int = 512
    """Images are downscaled to this longer side, pixels."""
    jpeg_quality: int = 90
    """Quality of the JPEG that is sent."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        # Plain super() doesn't know the class that slots=True makes.
        ChatConfig.__post_init__(self)
        for name, least, most in (("max_side", 16, 8192), ("jpeg_quality", 1, 100)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=f"{least} to {most}",
                    action=f"set {name} to such a value",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class RewriteConfig(ChatConfig):
    """Prompt of a language model that rewrites captions."""

    prompt: str = (
        "Rewrite this image caption in other words, as one plain sentence. Keep every fact, add "
        "none, and answer with the sentence alone.\n\n{caption}"
    )
    """The user's message; ``{caption}`` is replaced by the real caption."""

    def __post_init__(self) -> None:
        """Refuse a prompt without ``{caption}`` (ConfigError)."""
        # Plain super() doesn't know the class that slots=True makes.
        ChatConfig.__post_init__(self)
        if "{caption}" not in self.prompt:
            raise ConfigError(
                f"prompt was {self.prompt!r}",
                expected="a text with {caption} where the real caption goes",
                action="add {caption} to rewrite.prompt",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateConfig(Config):
    """Templates that turn labels into captions."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "places": "include_positions",
    }

    templates: tuple[str, ...] = ("{objects}", "a picture of {objects}")
    """One caption each; ``{objects}`` is replaced by the list of objects."""
    include_positions: bool = True
    """Describe objects with boxes as on the left, in the middle or on the right."""
    max_objects: int = 5
    """Most kinds of objects in a caption, the largest or most frequent first."""

    def __post_init__(self) -> None:
        """Refuse templates without ``{objects}`` (ConfigError)."""
        if not self.templates or any("{objects}" not in text for text in self.templates):
            raise ConfigError(
                f"templates was {list(self.templates)}",
                expected="at least one text, each with {objects} in it",
                action="add {objects} to each template",
            )
        if self.max_objects < 1:
            raise ConfigError(
                f"max_objects was {self.max_objects}",
                expected="at least 1",
                action="set max_objects to at least 1",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionersConfig(Config):
    """Settings of every kind of captioner; only those of the opened kind are used."""

    generate: GenerateConfig = GenerateConfig()
    """Generation by a CoCa."""
    huggingface: HuggingFaceConfig = HuggingFaceConfig()
    """Generation by a model of transformers."""
    vlm: VlmConfig = VlmConfig()
    """Prompt of ``vlm``."""
    rewrite: RewriteConfig = RewriteConfig()
    """Prompt of ``rewrite``."""
    template: TemplateConfig = TemplateConfig()
    """Templates of ``template``."""
    endpoint: ChatClientConfig = ChatClientConfig()
    """Access to the endpoint of ``vlm`` and ``rewrite``."""
    batch_size: int = 64
    """Samples captioned together."""
    num_threads: int = 0
    """CPU threads of a model; 0: PyTorch's choice, within the container's limit."""
