"""Captioners at a chat endpoint: vision-language models, and rewriting of real captions."""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

from PIL import Image

from clipmill.config import canonical_json, digest_json
from clipmill.data.captioners.base import CaptionInput, CaptionOutput, make_output, sample_seed
from clipmill.data.captioners.chat_client import CancelledBatchError, ChatClient, check_url
from clipmill.data.captioners.config import ChatClientConfig, ChatConfig, RewriteConfig, VlmConfig
from clipmill.errors import BadSampleError, BadSampleReason, ConfigError
from clipmill.lineage import Parent

_QUOTES = {'"': '"', "'": "'", "\N{LEFT DOUBLE QUOTATION MARK}": "\N{RIGHT DOUBLE QUOTATION MARK}"}


class ChatCaptioner:
    """Captions by a model at the endpoint ``url``; ``content`` makes a request's message.

    Raises ConfigError where no model is named, or the URL can't be kept with the captions.
    """

    needs_images = False
    checkpoint_outputs = True

    def __init__(self, url: str, config: ChatConfig, client: ChatClientConfig) -> None:
        if not config.model:
            raise ConfigError(
                "no model was named",
                expected="the name of a model that the endpoint serves",
                action="set vlm.model or rewrite.model",
            )
        self._config = config
        self._client_config = client
        self._url = check_url(url)
        self._client: ChatClient | None = None
        # The URL doesn't determine the captions.
        self.identity = digest_json([type(self).__name__, config.digest])
        self.parents: tuple[Parent, ...] = ()
        self.detail: Mapping[str, str] = {
            "model": config.model,
            "endpoint": self._url,
            "prompt": canonical_json([config.system, config.prompt]),
            "sampling": canonical_json(
                {k: v for k, v in config.to_json().items() if k not in {"system", "prompt"}}
            ),
            "seed": str(config.seed),
        }

    def content(self, sample: CaptionInput) -> str | list[dict[str, Any]]:
        """Return the content of the user's message."""
        return self.prompt(sample)

    def prompt(self, sample: CaptionInput) -> str:
        """Return the prompt with the sample's real caption."""
        real = sample.caption[: self._config.max_caption_characters]
        return self._config.prompt.replace("{caption}", real)

    def caption(self, inputs: Sequence[CaptionInput]) -> Iterator[tuple[int, CaptionOutput]]:
        """Yield each sample's captions as they arrive; requests run concurrently.

        Raises BudgetError and ServerError, see :meth:`ChatClient.complete`; requests in
        flight are completed and yielded first.
        """
        client = self._client = self._client or ChatClient(self._url, self._client_config)
        stop = Event()
        pool = ThreadPoolExecutor(self._client_config.concurrency)
        fatal: BaseException | None = None
        try:
            futures = {
                pool.submit(self._caption_or_stop, client, sample, stop): index
                for index, sample in enumerate(inputs)
            }
            for future in as_completed(futures):
                trouble = future.exception()
                if trouble is None:
                    yield futures[future], future.result()
                elif fatal is None and not isinstance(trouble, CancelledBatchError):
                    fatal = trouble
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        if fatal is not None:
            raise fatal

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _caption_or_stop(
        self, client: ChatClient, sample: CaptionInput, stop: Event
    ) -> CaptionOutput:
        if stop.is_set():
            raise CancelledBatchError
        try:
            return self._caption_one(client, sample, stop)
        except BaseException:
            # At once, before this thread takes the next sample.
            stop.set()
            raise

    def _caption_one(self, client: ChatClient, sample: CaptionInput, stop: Event) -> CaptionOutput:
        config = self._config
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.content(sample)}]
        if config.system:
            messages.insert(0, {"role": "system", "content": config.system})
        texts: list[str] = []
        scores: list[float | None] = []
        try:
            # Some endpoints return fewer choices than requested.
            while len(texts) < config.num_captions:
                body = {
                    "model": config.model,
                    "messages": messages,
                    "n": config.num_captions - len(texts),
                    "max_tokens": config.max_tokens,
                    "temperature": config.temperature,
                    "top_p": config.top_p,
                    "seed": (sample_seed(config.seed, sample.uid) + len(texts)) % 2**31,
                    "stream": False,
                } | ({"logprobs": True} if config.logprobs else {})
                completion = client.complete(self._parameters(body), stop)
                texts += completion.texts
                scores += completion.scores
        except BadSampleError as error:
            if not texts:
                return CaptionOutput(reason=error.reason)
        captions = [clean_caption(text) for text in texts]
        accepted = ["" if self._is_refusal(text) else text for text in captions]
        output = make_output(accepted[: config.num_captions], scores[: config.num_captions])
        if not output.texts and any(captions):
            return CaptionOutput(reason=BadSampleReason.REFUSED)
        return output

    def _parameters(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the request's parameters as the endpoint takes them."""
        client = self._client_config
        return {
            client.renamed_parameters.get(name, name): value
            for name, value in body.items()
            if name not in client.omitted_parameters
        }

    def _is_refusal(self, text: str) -> bool:
        plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        return plain.startswith((*self._config.refusal_prefixes, *_REFUSAL_PREFIXES))


# Refusals by models, in addition to the prefixes that the config lists.
_REFUSAL_PREFIXES = (
    "sorry,",
    "sorry, but",
    "i apologize",
    "my apologies",
    "unfortunately, i",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i won't",
)

_REASONING = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)

_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok)\b[!,.]?\s*)?"
    r"(?:here(?:'s|\u2019s| is| are)\b[^:]{0,80}|(?:image )?caption|description|"
    r"rewritten caption):\s*",
    re.IGNORECASE,
)

_BOLD = re.compile(r"\*\*([^*]+)\*\*")


def clean_caption(text: str) -> str:
    """Return ``text`` on one line, without what isn't the caption.

    That is reasoning (``<think>...</think>``; all of the text if it never ends), NUL, a preamble
    ("Sure! Here is a caption:"), marks of bold text, and enclosing quotation marks.
    """
    text = _REASONING.sub("", text.replace("\0", ""))
    plain = _PREAMBLE.sub("", " ".join(text.split()), count=1)
    if bold := _BOLD.fullmatch(plain):
        plain = bold[1]
    if len(plain) > 2 and _QUOTES.get(plain[0]) == plain[-1]:
        inner = plain[1:-1]
        if plain[0] not in inner and plain[-1] not in inner:
            return inner.strip()
    return plain


class VlmCaptioner(ChatCaptioner):
    """Captions of images by a vision-language model; the real caption may guide it."""

    needs_images = True

    def __init__(self, url: str, config: VlmConfig, client: ChatClientConfig) -> None:
        super().__init__(url, config, client)
        self._max_side = config.max_side
        self._jpeg_quality = config.jpeg_quality

    def content(self, sample: CaptionInput) -> list[dict[str, Any]]:
        """Return the prompt and the image, as a data URL."""
        assert sample.image is not None
        image = sample.image.copy()
        image.thumbnail((self._max_side, self._max_side), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self._jpeg_quality)
        url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        return [
            {"type": "text", "text": self.prompt(sample)},
            {"type": "image_url", "image_url": {"url": url}},
        ]


class RewriteCaptioner(ChatCaptioner):
    """Rewrites of real captions by a language model that doesn't see the image (as in LaCLIP)."""

    def __init__(self, url: str, config: RewriteConfig, client: ChatClientConfig) -> None:
        super().__init__(url, config, client)
