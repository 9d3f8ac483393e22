"""Makes the ``torchx`` command find our scheduler; TorchX looks for modules of this folder."""

from torchx.plugins import register

from clipmill.cluster.trainer_scheduler import TrainerScheduler, create_scheduler


@register.scheduler()  # type: ignore[untyped-decorator]  # TorchX has no types
def kubeflow_trainer(session_name: str, **options: object) -> TrainerScheduler:
    """Kubeflow Trainer 2.3."""
    return create_scheduler(session_name, **options)
