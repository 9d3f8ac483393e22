"""The same network behind LitServe, with batches as large, and as long waited for, as ours.

    python -m parts.serve_litserve PORT MODEL_URI

The network is called with a stacked batch, as LitServe's documentation does it. Pixels come as a
form's file, which is LitServe's way to take bytes.
"""

import sys
from typing import Any

import litserve
import numpy as np
import torch
from fastapi import Response

from clipmill.serve.config import ServingConfig
from clipmill.tasks.predictor import Predictor


class Lit(litserve.LitAPI):  # type: ignore[misc]
    """Square images in, class ids out."""

    def __init__(self, uri: str) -> None:
        config = ServingConfig()
        super().__init__(
            max_batch_size=config.max_batch_size, batch_timeout=config.max_wait_seconds
        )
        self._uri = uri

    def setup(self, device: str) -> None:
        """Load the network, in the worker."""
        del device
        self._predictor = Predictor.open(self._uri)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Pixels (S, S, 3). A type here would be what FastAPI reads the body as."""
        data = request["image"].file.read()
        side = int((len(data) // 3) ** 0.5)
        return np.frombuffer(data, np.uint8).reshape(side, side, 3)

    def batch(self, inputs: list[Any]) -> list[Any]:
        """The images as they are: ``predict`` stacks them itself."""
        return inputs

    def predict(self, images: list[Any]) -> list[Any]:
        """Class ids (S, S) of each."""
        images_BSS3 = torch.from_numpy(np.stack(images))
        with torch.inference_mode():
            pixels_B3SS = images_BSS3.permute(0, 3, 1, 2).float() / 255
            return list(self._predictor._network(pixels_B3SS).numpy())  # noqa: SLF001

    def unbatch(self, output: list[Any]) -> list[Any]:
        """As they are."""
        return output

    def encode_response(self, output_HW: Any) -> Any:
        """The raw ids."""
        return Response(output_HW.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Lit(sys.argv[2]), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
