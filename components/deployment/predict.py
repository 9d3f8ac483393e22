"""Batch inference."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def predict(model: str, data: str, overrides: list, store: str) -> str:
    """Predict all images of a folder, bucket or dataset with a task model or CLIP.

    Args:
        model: URI of the model.
        data: URI of a folder of images, or of a dataset.
        overrides: path=value changes of the settings.
        store: URI of the store to write to.

    Returns:
        URI of the prediction.
    """
    from clipmill import stages

    return stages.predict(overrides, model, data, store)
