"""The same network behind KServe as its documentation has it: no batches, no limits.

python -m parts.serve_kserve PORT MODEL_URI
"""

import sys
from typing import Any

from clipmill.tasks.predictor import Predictor

_, _port, _uri = sys.argv
sys.argv = sys.argv[:1]  # KServe reads it when it is imported

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # noqa: E402


class Plain(Model):  # type: ignore[misc]
    """Pixels in, class ids out, by a synchronous predict."""

    def __init__(self) -> None:
        super().__init__("model")
        self._predictor = Predictor.open(_uri)
        self.ready = True

    def predict(self, payload: InferRequest, *_: Any) -> InferResponse:
        """One image at a time."""
        (output_HW,) = self._predictor.predict([payload.inputs[0].as_numpy()])[0].values()
        output = InferOutput("output", [1, *output_HW.shape], "UINT8")
        output.set_data_from_numpy(output_HW[None], binary_data=True)
        return InferResponse("1", "model", [output], use_binary_outputs=True)


if __name__ == "__main__":
    ModelServer(http_port=int(_port), enable_grpc=False, workers=1).start([Plain()])
