"""Whether an encoder or a trained model fits a task's data, before hours are spent."""

from pathlib import Path

from clipmill.errors import ClipmillError, ConfigError
from clipmill.models.checkpoint import read_card
from clipmill.models.encoders import open_encoder
from clipmill.tasks.checks.findings import Findings
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import task_named


def check_encoder(config: FinetuneConfig, encoder: str, folder: Path, findings: Findings) -> None:
    """Build the recipe's objective on the encoder, without memory, and show it an image."""
    import torch

    task = task_named(config.task)
    try:
        start = open_encoder(encoder)
        with torch.device("meta"):
            objective = task.objective(config.model, start.config, task.classes(folder))
        for side in task.sides(config.model):
            objective.encoder.check_side(side)
            objective.encoder.eval()(torch.empty(1, 3, side, side, device="meta"))
    except ClipmillError as error:
        findings.fault("encoder", f"{encoder}: {str(error).splitlines()[0]}")
    except AssertionError as error:  # how timm's models refuse a size
        findings.fault("encoder", f"{encoder} can't see the recipe's images: {error}")


def check_model(model: str, folder: Path, findings: Findings) -> None:
    """Compare a task model's classes with the folder's."""
    architecture = read_card(model).architecture
    if "task" not in architecture:
        raise ConfigError(
            f"{model} isn't a task model",
            expected="what `clipmill finetune` made",
            action="give the URI of one",
        )
    own = tuple(architecture["classes"])
    theirs = task_named(architecture["task"]).classes(folder)
    if own != theirs:
        pairs = zip(own, theirs, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own), len(theirs)))
        words = [names[place] if place < len(names) else "nothing" for names in (own, theirs)]
        findings.fault(
            "another-class-list",
            f"{model} has {len(own)} classes and the data {len(theirs)}; class {place} is "
            f"{words[0]!r} there and {words[1]!r} here",
        )
