"""The adapter of each kind of checkpoint."""

from clipmill.errors import ArtifactError
from clipmill.models.checkpoint import read_metadata
from clipmill.serve.adapters.base import ModelAdapter


def load_model_adapter(uri: str) -> ModelAdapter:
    """Load the model at ``uri``, verified against its digest.

    Only the libraries of its kind are imported.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: it is cut, changed, or of a kind that can't be served.
    """
    kind = read_metadata(uri).kind
    if kind == "task":
        from clipmill.serve.adapters.dense import DenseAdapter
        from clipmill.serve.adapters.instance import InstanceAdapter
        from clipmill.tasks.predictor import Predictor

        predictor = Predictor.open(uri)
        is_dense = [output.shape for output in predictor.outputs] == [("H", "W")]
        return DenseAdapter(predictor) if is_dense else InstanceAdapter(predictor)
    if kind == "clip":
        from clipmill.serve.adapters.clip import ClipAdapter

        return ClipAdapter(uri)
    raise ArtifactError(
        f"{uri} is a checkpoint of kind {kind!r}",
        expected="a task model, as finetune makes, or a CLIP, as pretrain makes",
        action="give the URI of such a checkpoint",
    )
