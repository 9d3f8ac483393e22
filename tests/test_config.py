from dataclasses import dataclass
from typing import Literal

import pytest

from clipmill.config import Config
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner(Config):
    rate: float = 0.1
    mode: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer(Config):
    steps: int
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    limit: float | None = None
    name: str = ""


def test_json_both_ways():
    config = Outer(steps=3, inner=Inner(rate=0.5), sizes=(4,), limit=1.0, name="x")
    assert Outer.from_json(config.to_json()) == config


def test_overrides_reach_nested_fields_and_leave_the_original():
    config = Outer(steps=3)
    changed = config.override(["steps=5", "inner.rate=1e-3", "sizes=[7]", "limit=2", "name=5"])
    assert changed == Outer(steps=5, inner=Inner(rate=1e-3), sizes=(7,), limit=2.0, name="5")
    assert changed.override(["limit=null"]).limit is None
    assert config == Outer(steps=3)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("inner.rat=1", "inner.rate"),
        ("steps=1.5", "int"),
        ("steps=true", "int"),
        ("inner.mode=c", "'a', 'b'"),
        ("inner.rate=nan", "float"),
        ("steps.more=1", "steps"),
        ("steps", "path.to.field=value"),
    ],
)
def test_a_wrong_override_says_what_was_expected(assignment, said):
    with pytest.raises(ConfigError, match=said):
        Outer(steps=3).override([assignment])


def test_the_digest_changes_with_any_field():
    config = Outer(steps=3)
    assert config.digest == Outer(steps=3).digest
    changed = [config.override([a]) for a in ("steps=4", "inner.rate=0.2", "name=x", "sizes=[]")]
    assert len({config.digest, *(c.digest for c in changed)}) == 5


def test_a_missing_field_and_an_unknown_one_are_named():
    with pytest.raises(ConfigError, match="steps is missing"):
        Outer.from_json({})
    with pytest.raises(ConfigError, match="step is not a field"):
        Outer.from_json({"steps": 1, "step": 2})
