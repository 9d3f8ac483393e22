"""Models with random weights, which several parts use."""

from pathlib import Path

from clipmill.models.config import ClipConfig, TextConfig, VisionConfig

NUM_CLASSES = 150  # ADE20K's
RECIPES = {
    True: ("random:open_clip/ViT-B-16", "upernet-vit-b16"),
    False: ("random:timm/test_resnet", "upernet-tiny"),
}
"""Encoder and recipe of a base and of a tiny segmenter."""
TINY_CLIP = ClipConfig(
    embed_dim=32,
    vision=VisionConfig(image_size=32, patch_size=16, width=32, layers=2, head_width=16),
    text=TextConfig(context_length=16, width=32, heads=2, layers=2),
)


def save_segmenter(folder: Path, *, is_base: bool) -> None:
    """Write a checkpoint as fine-tuning does."""
    import torch

    from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
    from clipmill.models.pretrained import open_encoder
    from clipmill.recipes.registry import get_recipe
    from clipmill.tasks.finetune import FinetuneConfig
    from clipmill.tasks.registry import get_task

    address, recipe = RECIPES[is_base]
    config, encoder = get_recipe(recipe, FinetuneConfig), open_encoder(address).config
    classes = tuple(str(number) for number in range(NUM_CLASSES))
    torch.manual_seed(0)
    network = get_task(config.task).build_inference_model(config.model, encoder, classes)
    architecture = {
        "task": config.task,
        "classes": list(classes),
        "encoder": encoder.to_json(),
        "config": config.model.to_json(),
    }
    metadata = CheckpointMetadata(kind="task", architecture=architecture, recipe={})
    save_checkpoint(str(folder), metadata, network.state_dict())
