"""A network's image encoder as an ONNX graph that ONNX Runtime runs on a CPU.

The graph is exported when a model is loaded, and compared with PyTorch on random images first.
Shapes: B batch, H W image, S the side of an encoder of fixed size.
"""

import logging
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from clipmill.errors import ConfigError, MissingExtraError

TOLERANCE: Final = 1e-3
"""Largest difference from PyTorch, as a fraction of the largest absolute output."""
_ATTRIBUTES: Final = ("stride", "strides", "channels", "width")
"""Attributes of an encoder that heads read."""
_OPSET: Final = 18
_ESCAPES: Final = re.compile(r"\x1b\[\d+m")
_NUM_EXAMPLES: Final = 2  # an exporter takes a size of 1 for a constant
_logger = logging.getLogger(__name__)


class OnnxModule(nn.Module):
    """Runs the graph of another module: images (B, 3, H, W) to its output, on a CPU."""

    def __init__(self, module: nn.Module, name: str, *, side: int = 0, multiple: int = 0) -> None:
        """Export ``module`` for any batch of square images of ``side``.

        With ``multiple`` instead, images may have any sides that it divides. ``name`` is the
        model's, for errors.

        Raises:
            MissingExtraError: onnxruntime, onnx or onnxscript isn't installed.
            ConfigError: this machine has a GPU, an operator can't be exported, or the graph's
                outputs differ.
        """
        super().__init__()
        if torch.cuda.is_available():
            raise ConfigError(
                f"{name} was to run with backend=onnx on a machine with a GPU",
                expected="a machine without one: ONNX Runtime runs on the CPU",
                action="leave backend at torch, which uses the GPU",
            )
        try:
            import onnxruntime
            import onnxscript  # noqa: F401  # torch.onnx needs it
        except ImportError as error:
            raise MissingExtraError(
                f"the Python package {error.name} isn't installed",
                expected="clipmill with the extra 'onnx' for backend=onnx",
                action="pip install 'clipmill[onnx]', or leave backend at torch",
            ) from error
        for attribute in _ATTRIBUTES:
            if hasattr(module, attribute):
                setattr(self, attribute, getattr(module, attribute))
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        # Not square at first: an exporter would keep the shortcut of an encoder's own grid.
        one, other = (6 * multiple, 5 * multiple), (4 * multiple, 4 * multiple)
        sizes = [(side, side)] if side else [one, other]
        examples = [torch.rand(_NUM_EXAMPLES, 3, *size, generator=generator) for size in sizes]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        with tempfile.TemporaryDirectory(prefix="clipmill-onnx-") as folder:
            path = Path(folder) / "model.onnx"
            try:
                _export(module, examples[0], path, multiple)
                self._session: Any = onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
                with torch.inference_mode():
                    self._is_list = isinstance(module(examples[0]), list)
                seconds = time.perf_counter() - started
                difference = max(self._difference(module, example) for example in examples)
            except Exception as error:  # exporter and runtime have no common class of errors
                raise ConfigError(
                    f"{name} can't run with backend=onnx: {_first_lines(error)}",
                    expected="a model whose operators ONNX and ONNX Runtime have",
                    action="serve it with backend=torch, the default",
                ) from error
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"{name} differs by {difference:.2g} with backend=onnx from PyTorch",
                expected=f"at most {TOLERANCE:g} of the largest output",
                action="serve it with backend=torch, the default",
            )
        _logger.info(
            "%s runs with ONNX Runtime: exported in %.1f s, differs by %.2g of the largest output",
            name,
            seconds,
            difference,
        )

    def forward(self, images_B3HW: Tensor) -> Tensor | list[Tensor]:
        """Return the output of the module that was exported."""
        (first,) = self._session.get_inputs()
        pixels = images_B3HW.contiguous().numpy()
        outputs = [torch.from_numpy(o) for o in self._session.run(None, {first.name: pixels})]
        return outputs if self._is_list else outputs[0]

    def _difference(self, module: nn.Module, example: Tensor) -> float:
        with torch.inference_mode():
            expected, actual = module(example), self(example)
        pairs = zip(_as_list(expected), _as_list(actual), strict=True)
        ratios = [float((a - b).abs().max() / b.abs().max()) for b, a in pairs]
        # NaN, of a graph that overflows, is beyond any tolerance, but Python's max may drop it.
        return math.inf if any(map(math.isnan, ratios)) else max(ratios)


def _as_list(outputs: Tensor | list[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _export(module: nn.Module, example: Tensor, path: Path, multiple: int) -> None:
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1024)}
    if multiple:
        axes |= {
            axis: multiple * torch.export.Dim(name, min=1, max=4096 // multiple)
            for axis, name in ((2, "rows"), (3, "columns"))
        }
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        opset_version=_OPSET,
        input_names=["images"],
        dynamic_shapes=(axes,),
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=True)


def _first_lines(error: BaseException) -> str:
    """Return the beginning of an error's root cause, which names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _ESCAPES.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}"
