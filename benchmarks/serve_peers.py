"""The same network behind other servers, as those have it in their documentation.

    python benchmarks/serve_peers.py plain|litserve|control PORT [MODEL_URI]

``control`` answers every request with nothing, at once: what the machine itself costs.
"""

import asyncio
import sys
from typing import Any

import numpy as np

from clipmill.tasks.predictor import Predictor

_MAX_BATCH_SIZE = 8
_BATCH_SECONDS = 0.005


def serve_plainly(port: int, uri: str) -> None:
    """KServe with a synchronous predict: no batches, no limits."""
    sys.argv = sys.argv[:1]
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

    class Plain(Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("model")
            self.predictor = Predictor(uri)
            self.ready = True

        def predict(self, payload: InferRequest, *_: Any) -> InferResponse:
            (output_HW,) = self.predictor.predict([payload.inputs[0].as_numpy()])[0].values()
            output = InferOutput("output", [1, *output_HW.shape], "UINT8")
            output.set_data_from_numpy(output_HW[None], binary_data=True)
            return InferResponse("1", "model", [output], use_binary_outputs=True)

    ModelServer(http_port=port, enable_grpc=False, workers=1).start([Plain()])


def serve_with_litserve(port: int, uri: str) -> None:
    """LitServe with batches as large, and as long waited for, as ours; pixels as a form's file."""
    import litserve
    from fastapi import Response

    class Lit(litserve.LitAPI):  # type: ignore[misc]
        def setup(self, device: str) -> None:
            del device
            self.predictor = Predictor(uri)

        def decode_request(self, request: Any) -> Any:
            data = request["image"].file.read()
            side = int((len(data) // 3) ** 0.5)
            return np.frombuffer(data, np.uint8).reshape(side, side, 3)

        def batch(self, inputs: list[Any]) -> list[Any]:
            return inputs

        def predict(self, images: list[Any]) -> list[Any]:
            return [next(iter(found.values())) for found in self.predictor.predict(images)]

        def unbatch(self, output: list[Any]) -> list[Any]:
            return output

        def encode_response(self, output_HW: Any) -> Any:
            return Response(output_HW.tobytes(), media_type="application/octet-stream")

    api = Lit(max_batch_size=_MAX_BATCH_SIZE, batch_timeout=_BATCH_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def serve_nothing(port: int) -> None:
    """An empty 200 for whatever comes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    if sys.argv[1] == "plain":
        serve_plainly(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "litserve":
        serve_with_litserve(int(sys.argv[2]), sys.argv[3])
    else:
        serve_nothing(int(sys.argv[2]))
