"""mmcv without its compiled operations: what torchvision has takes their place.

mmcv's operations take half an hour to compile and need a compiler in every image. Of all of them
the heads used here need two, and torchvision brings both, for CPU and CUDA: ``nms``, and RoIAlign,
which mmcv itself takes from torchvision when a config says ``use_torchvision=True``, but not where
masks are cut out as targets, which needs no gradient.
"""

import contextlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from torch import Tensor

from clipmill.errors import UserError
from clipmill.lazy_imports import lazy_imports

_COMPILED = "mmcv._ext"

# Imported by parts of OpenMMLab that aren't used here: 3.8 of the 5.5 seconds that mmseg takes.
# Where the first are missing, mmdet and mmseg do without; the others are imported once used.
_HIDDEN = ("timm", "transformers")
_LAZY = ("matplotlib", "mpl_toolkits", "scipy", "skimage")

# Said while importing, about matters that no caller can mend.
_NOTICES: tuple[tuple[str, type[Warning]], ...] = (
    (r"``MultiScaleDeformableAttention`` has been moved", ImportWarning),
    (r"invalid escape sequence", DeprecationWarning),  # Python 3.11, where nothing is compiled yet
    (r"invalid escape sequence", SyntaxWarning),  # Python 3.12
)


class _TorchvisionOps(types.ModuleType):
    """Stands in for mmcv's compiled module."""

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        """Indices of the kept boxes, best first.

        ``boxes`` are (N, 4) as x1 y1 x2 y2, whose sides are ``x2 - x1 + offset`` long: with 1, the
        last pixel still belongs to its box.
        """
        from torchvision.ops import nms

        # Moving the far corner by the offset lengthens sides and overlaps alike.
        far_corner = boxes.new_tensor([0, 0, offset, offset])
        kept: Tensor = nms(boxes + far_corner, scores, iou_threshold)
        return kept

    @staticmethod
    def roi_align_forward(
        images: Tensor,
        rois: Tensor,
        output: Tensor,
        _argmax_y: Tensor,
        _argmax_x: Tensor,
        *,
        aligned_height: int,
        aligned_width: int,
        spatial_scale: float,
        sampling_ratio: int,
        pool_mode: int,
        aligned: bool,
    ) -> None:
        """Average images (B, D, H, W) over a grid of each of ``rois`` (N, 5), into ``output``."""
        from torchvision.ops import roi_align

        assert pool_mode == 1, "torchvision averages"
        size = (aligned_height, aligned_width)
        output.copy_(roi_align(images, rois, size, spatial_scale, sampling_ratio, aligned))

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        """A function for each other operation: mmcv checks at import that all exist."""
        if name.startswith("_"):
            raise AttributeError(name)

        def absent(*_args: Any, **_kwargs: Any) -> NoReturn:
            raise UserError(
                f"mmcv's operation {name!r} was called, but mmcv is installed without operations",
                expected="a model that needs none but nms, and RoIAlign with use_torchvision=True",
                action="choose another model or setting, or install an mmcv built with operations",
            )

        return absent


def register_ops() -> None:
    """Make ``mmcv.ops`` importable; an mmcv that has compiled operations keeps them.

    Must come before anything that imports ``mmcv.ops``. A second call changes nothing.
    """
    if _COMPILED in sys.modules:
        return
    if importlib.util.find_spec(_COMPILED) is None:
        module = _TorchvisionOps(_COMPILED)
        module.__spec__ = importlib.machinery.ModuleSpec(_COMPILED, loader=None)
        sys.modules[_COMPILED] = module


@contextlib.contextmanager
def importing_openmmlab() -> Iterator[None]:
    """Surround each import of mmdet or mmseg: register the operations, drop known notices.

    Libraries that aren't used stay out. Only one thread may import meanwhile.
    """
    register_ops()
    with warnings.catch_warnings(), lazy_imports(*_LAZY), _hidden(*_HIDDEN):
        for message, category in _NOTICES:
            warnings.filterwarnings("ignore", message, category)
        yield


@contextlib.contextmanager
def _hidden(*packages: str) -> Iterator[None]:
    """Within the block, let imports of packages that aren't imported yet fail."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is what fails
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
