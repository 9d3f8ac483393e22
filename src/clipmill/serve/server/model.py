"""A served model as KServe sees it: one checkpoint under one name and version."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeAlias, TypeVar
from uuid import uuid4
import numpy as np
from clipmill.models.checkpoint import read_embedding
from clipmill.serve.protocol.request import InferenceInputs, parse_v1_instances, parse_v2_inputs
from clipmill.serve.server.batcher import Batcher
from clipmill.serve.protocol.images import DATATYPES, Source, decode_image
from clipmill.serve.config import ServingConfig
from clipmill.serve.kserve_compat import (
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    to_http_parameters,
)
from clipmill.serve.protocol.request import Options
from clipmill.serve.errors import BadRequestError, OverloadedError
from clipmill.serve.adapters.base import Item, load_model_adapter
from clipmill.lineage import Node
from clipmill.lineage import lineage as trace
from clipmill.telemetry import serving_metrics
import math
from typing import Any, Final
from numpy.typing import NDArray
from clipmill.models.embedding_stats import EmbeddingStatistics

P = ParamSpec("P")
T = TypeVar("T")
Payload: TypeAlias = InferRequest | dict[str, Any]
Answer: TypeAlias = InferResponse | dict[str, Any]


class KServeModel(Model):  # type: ignore[misc]  # KServe has no types
    """One checkpoint under one name. Ready once it has answered a first image."""

    def __init__(
        self, name: str, uri: str, config: ServingConfig, codec: Executor, version: str = ""
    ) -> None:
        """Load the checkpoint at ``uri``; ``codec`` runs what takes time and isn't inference.

        A version that isn't named is called by its digest's first 12 characters.

        Raises:
            NotFoundError: nothing lies there.
            ArtifactError: it is cut, changed, or of a kind that can't be served.
        """
        super().__init__(name)
        self.uri = uri
        self._config = config
        self._codec = codec
        self.served = load_model_adapter(uri)
        self.metadata = self.served.metadata
        self._ancestry = _without_places(trace(uri))
        self.digest = self.metadata.digest
        """What the checkpoint is; each answer says it."""
        self.version = version or self.digest[:12]
        side = config.warmup_side
        self.served.predict([self.served.prepare(np.zeros((side, side, 3), np.uint8))])
        training = read_embedding(self.metadata)
        self.drift = None if training is None else EmbeddingDrift(training)
        """How far images are from the training's, where the checkpoint knows those."""
        if self.drift is not None:
            self.served.watch(self.drift.add)
        self.batcher = Batcher(
            self.served.predict, model=name, config=config, bucket=self.served.bucket
        )
        self._num_leases = 0
        self._is_free = asyncio.Event()
        self._is_free.set()
        metrics = serving_metrics()
        self._preprocess_seconds = metrics.preprocess_seconds.labels(name)
        self._postprocess_seconds = metrics.postprocess_seconds.labels(name)
        self._pixels = metrics.image_pixels.labels(name)
        self._brightness = metrics.image_brightness.labels(name)
        self.ready = True

    async def healthy(self) -> bool:
        """Whether requests are answered now."""
        return bool(self.ready) and self.batcher.is_running

    @contextmanager
    def leased(self) -> Iterator[None]:
        """Keep the model from being retired while a request holds it."""
        self._num_leases += 1
        self._is_free.clear()
        try:
            yield
        finally:
            self._num_leases -= 1
            if not self._num_leases:
                self._is_free.set()

    async def retire(self) -> None:
        """Once nobody can reach it any more: answer those who hold it, then stop."""
        await self._is_free.wait()
        await self.batcher.__aexit__(None, None, None)
        self.ready = False

    async def offload(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work`` off the event loop, which stays free for probes."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._codec, lambda: work(*args, **kwargs))

    def get_input_types(self) -> list[dict[str, Any]]:
        """V2's description of the inputs."""
        return self.served.inputs()

    def get_output_types(self) -> list[dict[str, Any]]:
        """V2's description of the outputs."""
        return self.served.outputs()

    def validate(self, payload: object) -> object:
        """Leave it to ``predict``: KServe's own check looks at V1's outermost list alone."""
        return payload

    def lineage(self) -> dict[str, Any]:
        """What is served here, and what it was made of."""
        return {
            "name": self.name,
            "version": self.version,
            "task": self.served.kind,
            "digest": self.digest,
            "parents": [parent.to_json() for parent in self.metadata.parents],
            "ancestry": self._ancestry,
            "metrics": self.metadata.metrics,
            "summary": self.metadata.summary,
            **self.served.describe(),
        }

    async def predict(
        self,
        payload: Payload,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002  # KServe passes them
        response_headers: dict[str, str] | None = None,  # noqa: ARG002
    ) -> Answer:
        """Answer a V2 request with tensors, a V1 request with an object an instance.

        Raises:
            BadRequestError: it can't be understood or is beyond a limit.
            OverloadedError: there is no room for it now, or its deadline has passed.
        """
        return await self.respond(lambda: payload, lambda _, answer: answer)

    async def respond(
        self, read: Callable[[], Payload], write: Callable[[Payload, Answer], T]
    ) -> T:
        """What ``write`` makes of a request and its answer; errors as ``predict``'s, or ``read``'s.

        Both take as long as a body is large, so they run off the event loop, each together with
        what else does there: every change of threads costs a request a tenth of a millisecond.
        """
        started = asyncio.get_running_loop().time()
        limit = self._config.max_request_seconds
        try:
            async with asyncio.timeout_at(started + limit) as deadline:
                question = await self.offload(self._understood, read)
                seconds = question.options.deadline_seconds or limit
                deadline.reschedule(started + min(limit, seconds))
                results = await self._results(question)
                with self._postprocess_seconds.time():
                    return await self.offload(
                        lambda: write(question.payload, self._formed(question, results))
                    )
        except TimeoutError:
            raise OverloadedError(
                "deadline",
                "the deadline passed before the answer was there",
                retry_after_seconds=self._config.retry_after_seconds,
            ) from None

    def _understood(self, read: Callable[[], Payload]) -> "_Question":
        payload = read()
        options = Options.from_parameters(_parameters(payload))
        is_v1 = isinstance(payload, dict)
        asked = (parse_v1_instances if is_v1 else parse_v2_inputs)(payload, self._config)
        self.served.check(asked, options)
        if not is_v1:
            self._check_outputs(payload)
        is_decoded = not any(isinstance(source, bytes) for source in asked.sources)
        images = self._decode(asked.sources) if is_decoded else None
        return _Question(payload, asked, options, images)

    def _formed(self, question: "_Question", results: Sequence[Any]) -> Answer:
        payload, asked, options = question.payload, question.asked, question.options
        self.served.observe(self.name, results)
        if isinstance(payload, dict):
            return {"predictions": self.served.answer_each(asked, results, options)}
        tensors = self.served.answer(asked, results, options)
        return InferResponse(
            response_id=payload.id or str(uuid4()),
            model_name=self.name,
            model_version=self.version,
            infer_outputs=[
                InferOutput(
                    name=name,
                    shape=list(array.shape),
                    datatype=DATATYPES[array.dtype.name],
                    data=array,
                )
                for name, array in tensors.items()
            ],
            parameters={"digest": self.digest},
        )

    def _check_outputs(self, request: InferRequest) -> None:
        names = [str(output["name"]) for output in self.served.outputs()]
        for requested in request.request_outputs or ():
            if requested.name not in names:
                raise BadRequestError("protocol", f"there is no such output; there are {names}")

    async def _results(self, question: "_Question") -> list[Any]:
        asked, images = question.asked, question.images
        with self.batcher.admit(asked.num_items):
            if images is None:
                images = await self.offload(self._decode, asked.sources)
            words = self.served.words(asked, question.options)
            return await self.batcher.predict([*images, words] if words else images)

    def _decode(self, sources: Sequence[Source]) -> list[Item]:
        if not sources:
            return []
        with self._preprocess_seconds.time():
            return [self._prepared(source) for source in sources]

    def _prepared(self, source: Source) -> Item:
        image_HW3 = decode_image(source, self._config)
        self._pixels.observe(image_HW3.shape[0] * image_HW3.shape[1])
        # A few hundred pixels tell brightness as well as millions.
        step = max(1, min(image_HW3.shape[:2]) // 16)
        self._brightness.observe(float(image_HW3[::step, ::step].mean()) / 255)
        return self.served.prepare(image_HW3)


@dataclass(frozen=True, slots=True)
class _Question:
    """A request, understood."""

    payload: Payload
    asked: InferenceInputs
    options: Options
    images: list[Item] | None
    """None where there are files to decode, which waits for their admission."""


def _without_places(node: Node) -> dict[str, Any]:
    """A lineage by kind and digest: where its artifacts lie is no concern of a client."""
    return {
        "role": node.role,
        "kind": node.kind,
        "digest": node.digest,
        "detail": {name: text for name, text in node.detail.items() if name != "problem"},
        "parents": [_without_places(parent) for parent in node.parents],
    }


def _parameters(payload: Payload) -> dict[str, Any]:
    if isinstance(payload, dict):
        parameters = payload.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise BadRequestError("protocol", "'parameters' must be an object")
        return parameters
    parameters = dict(to_http_parameters(payload.parameters or {}))
    for output in payload.request_outputs or ():
        asked = to_http_parameters(output.parameters or {})
        parameters |= {name: value for name, value in asked.items() if name != "binary_data"}
    return parameters


_NUM_REMEMBERED: Final = 256
_NUM_NEEDED: Final = 16


class EmbeddingDrift:
    """Follows the mean of the last few hundred images. ``add``: one thread at a time."""

    def __init__(self, training: EmbeddingStatistics) -> None:
        self._training = training
        self._mean_C: NDArray[Any] = np.zeros(len(training.mean))
        self._num_images = 0

    def add(self, embeddings_BC: NDArray[Any]) -> None:
        """Count a batch in: a plain mean at first, then one that forgets exponentially."""
        for embedding_C in embeddings_BC[np.isfinite(embeddings_BC).all(axis=1)]:
            self._num_images += 1
            share = 1 / min(self._num_images, _NUM_REMEMBERED)
            self._mean_C = self._mean_C + share * (embedding_C - self._mean_C)

    def distance(self) -> float:
        """In spreads of the training's embeddings; NaN before there are enough images to tell.

        The mean of n images like the training's is about ``n ** -0.5`` away by chance.
        """
        if self._num_images < _NUM_NEEDED:
            return math.nan
        return self._training.distance(self._mean_C)
