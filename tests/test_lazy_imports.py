"""Stand-ins behave as what they stand for, and it is imported no sooner than it is used."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipmill.lazy_imports import lazy_imports

_HEAVY = """
import functools

from heavy_library import inner

class Thing:
    value = 7

def keep(function):
    @functools.wraps(function)
    def kept(*args):
        return ("kept", function(*args))
    return kept
"""

_LIGHT = """
from typing import Union

import heavy_library as whole
from heavy_library import Thing, inner, keep
from heavy_library.inner import double
import heavy_library.inner.deep as deep

class User:
    @keep
    def answer(self):
        return 42

    def takes(self, thing: Thing, other: Union[int, whole.Thing] = 0) -> whole.Thing:
        return isinstance(thing, Thing) and isinstance(thing, whole.Thing)
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A light library that imports a heavy one."""
    inner = tmp_path / "heavy_library" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text(_HEAVY)
    (inner / "__init__.py").write_text("def double(n):\n    return 2 * n\n")
    (inner / "deep.py").write_text("depth = 3\n")
    (tmp_path / "light_library.py").write_text(_LIGHT)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [n for n in sys.modules if n.startswith(("heavy_library", "light_library"))]:
        del sys.modules[name]


@pytest.fixture
def light(libraries: None) -> Any:
    """The light library, imported without the heavy one."""
    with lazy_imports("heavy_library"):
        import light_library  # type: ignore[import-not-found]
    assert not [name for name in sys.modules if name.startswith("heavy_library")]
    return light_library


def test_a_function_and_a_module(light: Any) -> None:
    assert (light.double(4), light.inner.double(5), light.deep.depth) == (8, 10, 3)


def test_a_decorated_method(light: Any) -> None:
    assert light.User().answer() == ("kept", 42)


def test_a_class(light: Any) -> None:
    assert not light.User().takes(3)
    thing = light.Thing()
    assert (thing.value, light.User().takes(thing)) == (7, True)

    class Derived(light.Thing):
        pass

    from heavy_library import Thing  # type: ignore[import-not-found]

    assert issubclass(Derived, Thing)


def test_the_real_thing_outside(light: Any) -> None:
    import heavy_library

    assert heavy_library.Thing.value == 7
    assert light.whole.Thing is heavy_library.Thing


def test_what_isnt_there_isnt_pretended(libraries: None) -> None:
    with lazy_imports("no_such_library"), pytest.raises(ModuleNotFoundError):
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401


def test_torchvision_works_without_the_compiler() -> None:
    """In a process of its own: here all may be imported already."""
    code = """
import sys
from clipmill.lazy_imports import lazy_imports
with lazy_imports("torch._dynamo", "pandas"):
    import torch, timm
    from torchvision.ops import roi_align
assert not {"torch._dynamo", "sympy", "pandas"} & sys.modules.keys()
image = torch.arange(64.0).reshape(1, 1, 8, 8)
boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
assert roi_align(image, boxes, 1, aligned=True).item() == 31.5
assert "torch._dynamo" not in sys.modules
assert timm.create_model("test_vit")(torch.zeros(1, 3, 160, 160)).shape == (1, 1000)
double = torch.compile(lambda x: 2 * x, backend="eager")
assert double(image).max() == 126
assert hasattr(sys.modules["torch._dynamo"], "disable")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
