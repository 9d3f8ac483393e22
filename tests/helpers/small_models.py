"""Small task models with real architectures and random weights."""

from typing import Any

_CONFIGS: dict[str, dict[str, Any]] = {
    "segmentation": {"crop_size": 64, "pyramid_channels": 16, "head_channels": 16},
    "depth": {"crop_size": 64},
    "detection": {"image_size": 64, "neck_channels": 16, "roi_hidden_dim": 16, "num_proposals": 30},
    "classification": {},
}


def save_model(uri: str, task_name: str, *, crop_size: int = 64) -> str:
    """Write a checkpoint as fine-tuning does, with weights that tell pixels apart."""
    import torch

    from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
    from clipmill.models.config import EncoderConfig, VisionConfig
    from clipmill.tasks.registry import get_task

    encoder = EncoderConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, head_width=16)
    )
    task = get_task(task_name)
    side = {"crop_size": crop_size} if task_name in {"segmentation", "depth"} else {}
    config = task.config_type.from_json(_CONFIGS[task_name] | side)
    classes = () if task_name == "depth" else ("ground", "cube", "ball")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # biases keep what they begin with
        network = task.build_inference_model(config, encoder, classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)
    metadata = CheckpointMetadata(
        kind="task",
        architecture={
            "task": task_name,
            "classes": list(classes),
            "encoder": encoder.to_json(),
            "config": config.to_json(),
        },
        recipe={},
        metrics={"loss": 0.5},
        summary={"task": task_name},
    )
    save_checkpoint(uri, metadata, network.state_dict())
    return uri
