"""A served model as KServe sees it: one checkpoint under one name and version.

Shapes: B batch, C embedding width.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeVar, overload
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import ArtifactError
from clipmill.lineage import Node, lineage
from clipmill.models.checkpoint import read_embedding, read_metadata
from clipmill.models.embedding_stats import EmbeddingStatistics
from clipmill.serve.adapters.base import Item, ModelAdapter
from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import OverloadedError, RejectReason
from clipmill.serve.kserve_compat import InferOutput, InferResponse, Model
from clipmill.serve.protocol.bodies import (
    Payload,
    RequestBody,
    Response,
    ResponseBody,
    decompress,
    encode_response,
    num_bytes,
    parse_request,
    require_fitting_size,
)
from clipmill.serve.protocol.grpc_messages import (
    GrpcBody,
    encode_grpc_response,
    parse_grpc_request,
)
from clipmill.serve.protocol.images import DATATYPES, Source, decode_image
from clipmill.serve.protocol.request import (
    InferenceInputs,
    InferenceParameters,
    parse_v1_instances,
    parse_v2_inputs,
    request_parameters,
    requested_outputs,
)
from clipmill.serve.server.batcher import DynamicBatcher
from clipmill.serve.server.sampling import PayloadSampler
from clipmill.serve.server.tracing import trace_step
from clipmill.telemetry import serving_metrics

P = ParamSpec("P")
T = TypeVar("T")

NETWORK_SIZE: Final = "Clipmill-Network-Size"
"""HTTP header: the size to which each image was scaled down for the network, height x width."""

_NUM_AVERAGED: Final = 256
_NUM_NEEDED: Final = 16


class KServeModel(Model):  # type: ignore[misc]  # KServe has no types
    """One checkpoint under one name. Ready once it has predicted a first image."""

    def __init__(
        self,
        name: str,
        uri: str,
        config: ServingConfig,
        codec: Executor,
        version: str = "",
        sampler: PayloadSampler | None = None,
    ) -> None:
        """Load the checkpoint at ``uri``; ``codec`` runs what takes time and isn't inference.

        A version that isn't named is the first 12 characters of the digest.

        Raises:
            NotFoundError: nothing lies there.
            ArtifactError: it is cut, changed, or of a kind that can't be served.
        """
        super().__init__(name)
        self.uri = uri
        self._config = config
        self._codec = codec
        self._sampler = sampler
        self.adapter = load_model_adapter(uri, config.backend)
        self.metadata = self.adapter.metadata
        self._ancestry = _strip_uris(lineage(uri))
        self.digest = self.metadata.digest
        """Digest of the checkpoint; each response states it."""
        self.version = version or default_version(self.digest)
        side = config.warmup_image_size
        self.adapter.predict_batch([self.adapter.preprocess(np.zeros((side, side, 3), np.uint8))])
        training = read_embedding(self.metadata)
        self.drift = None if training is None else EmbeddingDrift(training)
        """Distance of images from the training's, where the checkpoint has statistics of those."""
        if self.drift is not None:
            self.adapter.add_embedding_hook(self.drift.add)
        self.batcher = DynamicBatcher(
            self.adapter.predict_batch, model=name, config=config, batch_key=self.adapter.batch_key
        )
        self._num_in_flight = 0
        self._is_free = asyncio.Event()
        self._is_free.set()
        metrics = serving_metrics()
        self._preprocess_seconds = metrics.preprocess_seconds.labels(name)
        self._postprocess_seconds = metrics.postprocess_seconds.labels(name)
        self._pixels = metrics.image_pixels.labels(name)
        self._brightness = metrics.image_brightness.labels(name)
        self.ready = True

    async def healthy(self) -> bool:
        """Return whether requests are answered now."""
        return bool(self.ready) and self.batcher.is_running

    def require_room(self) -> None:
        """Raise OverloadedError while as many requests as are allowed are in flight."""
        limit = self._config.max_queue_size
        if self._num_in_flight >= limit:
            raise OverloadedError(
                RejectReason.QUEUE_FULL,
                f"{limit} requests of {self.name!r} are in flight (max_queue_size); "
                "try again later",
                retry_after_seconds=self._config.retry_after_seconds,
            )

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Hold a place for a request that was read, and keep the model from being stopped.

        Raises:
            OverloadedError: all places are taken.
        """
        self.require_room()
        self._num_in_flight += 1
        self._is_free.clear()
        try:
            yield
        finally:
            self._num_in_flight -= 1
            if not self._num_in_flight:
                self._is_free.set()

    async def drain_and_stop(self) -> None:
        """Answer the requests in flight, then stop; no new one may reach the model."""
        await self._is_free.wait()
        await self.batcher.__aexit__(None, None, None)
        self.ready = False

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return V2's description of the inputs."""
        return self.adapter.input_specs()

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return V2's description of the outputs."""
        return self.adapter.output_specs()

    def validate(self, payload: object) -> object:
        """Leave validation to ``predict``: KServe's own checks only V1's outermost list."""
        return payload

    def lineage(self) -> dict[str, Any]:
        """Return what the model is, and from what it was made."""
        return {
            "name": self.name,
            "version": self.version,
            "task": self.adapter.kind,
            "digest": self.digest,
            "parents": [
                {"role": parent.role, "digest": parent.digest} for parent in self.metadata.parents
            ],
            "ancestry": self._ancestry,
            "metrics": self.metadata.metrics,
            "summary": self.metadata.summary,
            **self.adapter.describe(),
        }

    @overload
    async def predict(self, payload: RequestBody) -> ResponseBody: ...

    @overload
    async def predict(self, payload: GrpcBody) -> bytes: ...

    async def predict(self, payload: RequestBody | GrpcBody) -> ResponseBody | bytes:
        """Return the encoded response to a request: HTTP's body, or gRPC's message.

        Parsing and encoding take as long as a body is large, so they run off the event loop, each
        together with the other work there: a change of threads costs a tenth of a millisecond.

        Raises:
            BadRequestError: it can't be understood or exceeds a limit.
            OverloadedError: there is no room for it now, or its deadline has passed.
        """
        started = asyncio.get_running_loop().time()
        limit = self._config.max_request_seconds
        try:
            async with asyncio.timeout_at(started + limit) as deadline:
                with trace_step("parse"):
                    request = await self._run_in_thread(self._parse, payload)
                seconds = request.parameters.deadline_seconds or limit
                deadline.reschedule(started + min(limit, seconds))
                images, results = await self._infer(request)
                inputs = replace(
                    request.inputs, sizes=images.sizes, network_sizes=images.network_sizes
                )
                request = replace(request, inputs=inputs, images=images)
                with self._postprocess_seconds.time(), trace_step("encode"):
                    response = await self._run_in_thread(self._postprocess, request, results)
        except TimeoutError:
            raise OverloadedError(
                RejectReason.DEADLINE,
                "the deadline passed before the answer was there",
                retry_after_seconds=self._config.retry_after_seconds,
            ) from None
        if self._sampler is not None:
            self._sampler.offer(
                request.inputs.sources, model=self.name, version=self.version, digest=self.digest
            )
        return response

    def _parse(self, body: RequestBody | GrpcBody) -> "_ParsedRequest":
        """Parse and validate a request; pixels are preprocessed, files not yet decoded."""
        if isinstance(body, GrpcBody):
            payload: Payload = parse_grpc_request(body)
        else:
            body = decompress(body, self._config.max_request_bytes)
            payload = parse_request(body, self.name)
        outputs: tuple[str, ...] = ()
        if isinstance(payload, dict):
            inputs = parse_v1_instances(payload, self._config)
        else:
            inputs = parse_v2_inputs(payload, self._config)
            names = [str(output["name"]) for output in self.adapter.output_specs()]
            outputs = requested_outputs(payload, names)
        parameters = InferenceParameters.from_json(request_parameters(payload), outputs)
        self.adapter.validate(inputs, parameters)
        has_files = any(isinstance(source, bytes) for source in inputs.sources)
        return _ParsedRequest(
            body=body,
            payload=payload,
            inputs=inputs,
            parameters=parameters,
            images=None if has_files else self._preprocess(inputs.sources),
        )

    async def _infer(self, request: "_ParsedRequest") -> tuple["_Preprocessed", list[Any]]:
        """Return the images, and the results of the images, then that of the texts."""
        inputs, images = request.inputs, request.images
        with self.batcher.admit(inputs.num_queue_slots):
            if images is None:
                with trace_step("decode"):
                    images = await self._run_in_thread(self._preprocess, inputs.sources)
            texts = self.adapter.text_inputs(inputs, request.parameters)
            items = [*images.items, texts] if texts else images.items
            return images, await self.batcher.enqueue(items)

    def _preprocess(self, sources: Sequence[Source]) -> "_Preprocessed":
        """Decode and preprocess images, and record statistics of them."""
        if not sources:
            return _Preprocessed([], (), ())
        items: list[Item] = []
        sizes: list[tuple[int, int]] = []
        network_sizes: list[tuple[int, int]] = []
        with self._preprocess_seconds.time():
            for source in sources:
                image_HW3, size = decode_image(source, self._config)
                height, width, _ = image_HW3.shape
                network_sizes.append((height, width))
                self._pixels.observe(math.prod(size))
                # Subsampled: brightness needs no full pass.
                step = max(1, min(height, width) // 16)
                self._brightness.observe(float(image_HW3[::step, ::step].mean()) / 255)
                items.append(self.adapter.preprocess(image_HW3))
                sizes.append(size)
        return _Preprocessed(items, tuple(sizes), tuple(network_sizes))

    def _postprocess(
        self, request: "_ParsedRequest", results: Sequence[Any]
    ) -> ResponseBody | bytes:
        """Build the response and encode it."""
        self.adapter.record_output_metrics(self.name, results)
        limit = self._config.max_response_bytes
        inputs, parameters = request.inputs, request.parameters
        require_fitting_size(self.adapter.min_response_bytes(inputs, results, parameters), limit)
        response = self._build_response(request, results)
        if isinstance(request.body, GrpcBody):
            assert isinstance(response, InferResponse), "only REST has V1"
            require_fitting_size(sum(num_bytes(each.data) for each in response.outputs), limit)
            return encode_grpc_response(request.payload, response)
        body = encode_response(request.body, request.payload, response, limit)
        body.headers.update(_network_size_header(inputs))
        return body

    def _build_response(self, request: "_ParsedRequest", results: Sequence[Any]) -> Response:
        payload, inputs, parameters = request.payload, request.inputs, request.parameters
        if isinstance(payload, dict):
            return {"predictions": self.adapter.build_v1_predictions(inputs, results, parameters)}
        tensors = self.adapter.build_v2_outputs(inputs, results, parameters)
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
                for name in parameters.outputs or tensors
                for array in [tensors[name]]
            ],
            parameters={"digest": self.digest, **_network_size_parameter(inputs)},
        )

    async def _run_in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work`` off the event loop, which stays free for health probes."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._codec, lambda: work(*args, **kwargs))


def default_version(digest: str) -> str:
    """Return the version of a model that was given none."""
    return digest[:12]


class _Preprocessed(NamedTuple):
    """Images as they wait in the queue, and their sizes before and after they were scaled down."""

    items: list[Item]
    sizes: tuple[tuple[int, int], ...]
    network_sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ParsedRequest:
    """A parsed and validated request."""

    body: RequestBody | GrpcBody
    """The body that it came in."""
    payload: Payload
    inputs: InferenceInputs
    parameters: InferenceParameters
    images: "_Preprocessed | None"
    """None where there are files, which are decoded once they are admitted."""


def _network_size_parameter(inputs: InferenceInputs) -> dict[str, str]:
    """Return V2's parameter that tells of images that were scaled down; empty if none was."""
    if inputs.sizes == inputs.network_sizes:
        return {}
    sizes = (f"{height}x{width}" for height, width in inputs.network_sizes)
    return {"network_size": ",".join(sizes)}


def _network_size_header(inputs: InferenceInputs) -> dict[str, str]:
    """Return the same as an HTTP header."""
    parameter = _network_size_parameter(inputs)
    return {NETWORK_SIZE: parameter["network_size"]} if parameter else {}


class EmbeddingDrift:
    """Distance of the last images' mean embedding from the training's.

    ``add`` is called from one thread at a time.
    """

    def __init__(self, training: EmbeddingStatistics) -> None:
        self._training = training
        self._mean_C: NDArray[Any] = np.zeros(len(training.mean))
        self._num_images = 0

    def add(self, embeddings_BC: NDArray[Any]) -> None:
        """Add a batch to the mean: a plain one at first, then one that forgets exponentially."""
        for embedding_C in embeddings_BC[np.isfinite(embeddings_BC).all(axis=1)]:
            self._num_images += 1
            weight = 1 / min(self._num_images, _NUM_AVERAGED)
            self._mean_C = self._mean_C + weight * (embedding_C - self._mean_C)

    def distance(self) -> float:
        """Return it in units of the training's spread; NaN while there are too few images.

        The mean of n images like the training's is about ``n ** -0.5`` away by chance.
        """
        if self._num_images < _NUM_NEEDED:
            return math.nan
        return self._training.distance(self._mean_C)


def _strip_uris(node: Node) -> dict[str, Any]:
    """Return a lineage by kind and digest: clients needn't know where its artifacts lie."""
    return {
        "role": node.role,
        "kind": node.kind,
        "digest": node.digest,
        "detail": {name: text for name, text in node.detail.items() if name != "problem"},
        "parents": [_strip_uris(parent) for parent in node.parents],
    }


def load_model_adapter(uri: str, backend: Literal["torch", "onnx"] = "torch") -> ModelAdapter:
    """Load the model at ``uri``, verified against its digest, for a backend.

    Only the libraries of its kind are imported.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: it is cut, changed, or of a kind that can't be served.
        ConfigError: it can't run with the backend.
    """
    kind = read_metadata(uri).kind
    if kind == "task":
        from clipmill.serve.adapters.task import DenseAdapter, InstanceAdapter
        from clipmill.tasks.predictor import Predictor

        predictor = Predictor.open(uri, backend=backend)
        is_dense = [output.shape for output in predictor.outputs] == [("H", "W")]
        return DenseAdapter(predictor) if is_dense else InstanceAdapter(predictor)
    if kind == "clip":
        from clipmill.serve.adapters.clip import ClipAdapter

        return ClipAdapter(uri, backend=backend)
    raise ArtifactError(
        f"{uri} is a checkpoint of kind {kind!r}",
        expected="a task model, as finetune makes, or a CLIP, as pretrain makes",
        action="give the URI of such a checkpoint",
    )
