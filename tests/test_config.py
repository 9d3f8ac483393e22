"""Configs: JSON both ways, strict overrides, digests."""

import contextlib
import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.config import Config, runtime_field
from clipmill.data.shards.plan import ShardConfig
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
        ("steps=1.5", "a whole number"),
        ("steps=true", "a whole number"),
        ("inner.mode=c", "one of a, b"),
        ("inner.rate=nan", "a number"),
        ("steps.more=1", "steps"),
        ("inner.rate=-1e-3", "inner.rate was -0.001"),
        ("steps", "path.to.field=value"),
    ],
)
def test_a_wrong_override_says_what_was_expected(assignment, said):
    with pytest.raises(ConfigError, match=said):
        Outer(steps=3).override([assignment])


def test_only_a_field_whose_default_is_negative_takes_negative_numbers():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Bias(Config):
        logit: float = -10.0
        num_pairs: int = 8

    assert Bias().override(["logit=-5"]).logit == -5
    for assign in (
        lambda: Bias().override(["num_pairs=-5"]),
        lambda: Bias.from_json({"num_pairs": -5}),
    ):
        with pytest.raises(ConfigError, match="num_pairs was -5") as caught:
            assign()
        assert caught.value.expected == "0 or more"


def test_the_digest_changes_with_any_field():
    config = Outer(steps=3)
    assert config.digest == Outer(steps=3).digest
    changed = [config.override([a]) for a in ("steps=4", "inner.rate=0.2", "name=x", "sizes=[]")]
    assert len({config.digest, *(c.digest for c in changed)}) == 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Everything(Config):
    """A field of every type that a config may have."""

    flag: bool = False
    count: int = 0
    rate: float = 0.0
    text: str = ""
    word: Literal["a", "b"] | None = None
    limit: float | None = None
    either: int | str = 0
    pair: tuple[int, float] = (0, 0.0)
    names: tuple[str, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    inner: Inner = Inner()
    spare: Inner | None = None
    several: tuple[Inner, ...] = ()


finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0)
rates = st.floats(min_value=0, allow_infinity=False)
inners = st.builds(Inner, rate=rates, mode=st.sampled_from(["a", "b"]))
everything = st.builds(
    Everything,
    flag=st.booleans(),
    count=counts,
    rate=rates,
    text=st.text(),
    word=st.sampled_from(["a", "b", None]),
    limit=st.none() | finite,
    either=counts | st.text(),
    pair=st.tuples(st.integers(), finite),
    names=st.lists(st.text(), max_size=3).map(tuple),
    table=st.dictionaries(st.text(max_size=3), finite, max_size=3),
    inner=inners,
    spare=st.none() | inners,
    several=st.lists(inners, max_size=2).map(tuple),
)


@given(everything)
def test_any_config_survives_json_text(config):
    again = Everything.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert again.digest == config.digest


@given(everything, everything)
def test_two_configs_have_one_digest_only_if_equal(first, second):
    # -0.0 equals 0.0, and is another text.
    same = json.dumps(first.to_json()) == json.dumps(second.to_json())
    assert (first.digest == second.digest) == same


@given(everything)
def test_any_value_can_be_set(config):
    """A config's own JSON, set field by field on the defaults, gives the config."""
    found = Everything()
    for name, value in config.to_json().items():
        kept_text = name in {"text", "either", "word"} and isinstance(value, str)
        found = found.override([f"{name}={value if kept_text else json.dumps(value)}"])
    # A text that could also be a number stays what the field's first type makes of it.
    assert {k: v for k, v in found.to_json().items() if k != "either"} == {
        k: v for k, v in config.to_json().items() if k != "either"
    }


@given(st.text(), st.text())
def test_nonsense_is_a_config_error_or_a_config(path, text):
    """Whatever a person types, it is no other kind of error."""
    for assignment in (f"{path}={text}", f"rate={text}", f"pair={text}", f"inner={text}", path):
        with contextlib.suppress(ConfigError):
            assert isinstance(Everything().override([assignment]), Everything)


def test_whole_configs_and_tuples_of_them_are_set_as_json():
    found = Everything().override(
        ['spare={"rate": 2}', 'several=[{"mode": "b"}]', "pair=[3, 4]", 'table={"x": 1}']
    )
    assert found.spare == Inner(rate=2.0)
    assert found.several == (Inner(mode="b"),)
    assert found.pair == (3, 4.0)
    assert isinstance(found.pair[1], float)
    assert found.table == {"x": 1.0}
    assert found.override(["spare.rate=3", "spare=null"]).spare is None


def test_a_field_of_what_is_null_turns_it_on():
    assert Everything().override(["spare.rate=1"]).spare == Inner(rate=1.0)


@pytest.mark.parametrize("word", ["null", "none", "None"])
def test_nothing_where_it_is_allowed(word):
    assert Everything(limit=1.0, word="a").override([f"limit={word}", f"word={word}"]) == (
        Everything()
    )
    with pytest.raises(ConfigError, match="rate was"):
        Everything().override([f"rate={word}"])


@pytest.mark.parametrize(
    "assignment",
    [
        "pair=[1]",
        "pair=[1, 2, 3]",
        "pair=[1.5, 2]",
        "names=[1]",
        "names=x",
        'table={"x": "y"}',
        "several=[1]",
        'inner={"rat": 1}',
        "inner=3",
        "flag=1",
        "flag=yes",
        "word=c",
        "rate=inf",
        f"rate=1{'0' * 400}",
        f"count=1{'0' * 5000}",
        "rate=[",
        "limit.rate=1",
        "spare.rat=1",
        "inner.rate.more=1",
        ".rate=1",
        "inner.=1",
        "=1",
    ],
)
def test_wrong_values(assignment):
    before = Everything()
    with pytest.raises(ConfigError) as caught:
        before.override([assignment])
    assert caught.value.expected
    assert before == Everything()


def test_an_unknown_path_lists_what_there_is():
    with pytest.raises(ConfigError) as caught:
        Everything().override(["inner.speed=1"])
    assert caught.value.what == "inner.speed is not a field of Inner"
    assert caught.value.expected == "one of inner.rate, inner.mode"


def test_later_overrides_win_and_equals_signs_are_kept():
    found = Everything().override(["count=1", "count=2", "text=a=b=c", "text= x "])
    assert (found.count, found.text) == (2, " x ")
    assert Everything().override(["text=a=b"]).text == "a=b"


@pytest.mark.parametrize("turned", [False, True])
def test_fields_that_depend_on_one_another_may_be_set_in_any_order(turned):
    assignments = ["resize_shorter_side=512", "jpeg_quality=95"]
    config = ShardConfig().override(assignments[::-1] if turned else assignments)
    assert (config.resize_shorter_side, config.jpeg_quality) == (512, 95)
    with pytest.raises(ConfigError, match="jpeg_quality"):
        ShardConfig().override(assignments[:1])


def test_edits_of_one_field_are_applied_in_their_order():
    assert Everything().override(["spare.rate=3", "spare=null", "spare.mode=b"]).spare == (
        Inner(mode="b")
    )
    assert Everything().override(["spare.rate=3", "spare=null"]).spare is None


def test_ints_become_the_floats_that_they_are_set_for():
    """So that a digest doesn't depend on how a number is written."""
    assert Everything().override(["rate=2"]).digest == Everything(rate=2.0).digest
    assert Everything.from_json({"rate": 2}).digest == Everything(rate=2.0).digest


@pytest.mark.parametrize("value", [None, 3, [], "text"])
def test_json_that_is_no_object(value):
    with pytest.raises(ConfigError, match="expected"):
        Everything.from_json(value)


def test_the_path_of_a_wrong_value_is_named():
    value = {"several": [{"rate": 1}, {"rate": "fast"}]}
    with pytest.raises(ConfigError, match=r"several\[1\]\.rate was 'fast'"):
        Everything.from_json(value)


def test_a_missing_field_and_an_unknown_one_are_named():
    with pytest.raises(ConfigError, match="steps is missing"):
        Outer.from_json({})
    with pytest.raises(ConfigError, match="step is not a field"):
        Outer.from_json({"steps": 1, "step": 2})


def test_operational_fields_are_left_out_of_the_digest_alone():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Inner(Config):
        size: int = 1
        port: int = runtime_field(0)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Outer(Config):
        inners: tuple[Inner, ...] = (Inner(),)
        named: dict[str, Inner] = field(default_factory=lambda: {"a": Inner()})
        folder: str = runtime_field("")

    config = Outer()
    moved = Outer(inners=(Inner(port=5),), named={"a": Inner(port=6)}, folder="elsewhere")
    assert moved.digest == config.digest
    assert moved != config
    assert Outer(inners=(Inner(size=2),)).digest != config.digest
    assert moved.to_json()["inners"] == [{"size": 1, "port": 5}]
    assert Outer.from_json(config.to_json()).digest == config.digest
    assert config.override(["folder=x"]).folder == "x"
    both = config.override(["named.a.size=3"])
    assert both.named == {"a": Inner(size=3)}
    assert config.named == {"a": Inner()}
    with pytest.raises(ConfigError, match=r"named\.a\.width is not a field"):
        config.override(["named.a.width=3"])
    with pytest.raises(ConfigError, match="named has no fields"):
        config.override(["named.b.size=3"])


def test_overrides_put_values_into_dicts():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Places(Config):
        uris: dict[str, str] = field(default_factory=dict)
        sizes: dict[str, int] = field(default_factory=dict)

    found = Places().override(["uris.depth=s3://a/b.tar", "uris.boxes=5", "sizes.depth=5"])
    assert found == Places(uris={"depth": "s3://a/b.tar", "boxes": "5"}, sizes={"depth": 5})
    with pytest.raises(ConfigError, match=r"sizes\.depth"):
        found.override(["sizes.depth=many"])


def test_overrides_name_entries_of_lists_by_index():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Step(Config):
        name: str = ""
        settings: dict[str, bool | int | float | str] = field(default_factory=dict)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Steps(Config):
        steps: tuple[Step, ...] = (Step(name="a"), Step(name="b", settings={"x": 1, "y": "z"}))
        sizes: tuple[int, ...] = (1, 2)

    sets = ["steps.1.settings.x=0.5", "steps.1.settings.y=text", "steps.1.settings.w=true"]
    changed = Steps().override([*sets, "steps.0.name=5"])
    assert changed.steps == (
        Step(name="5"),
        Step(name="b", settings={"x": 0.5, "y": "text", "w": True}),
    )
    for path in ("steps.2.name", "steps.-1.name", "steps.1", "steps.x.name", "sizes.1"):
        with pytest.raises(ConfigError, match="has no fields"):
            Steps().override([f"{path}=3"])
    with pytest.raises(ConfigError, match=r"steps\.1\.nom is not a field"):
        Steps().override(["steps.1.nom=3"])


def test_a_former_name_of_a_field_is_answered_with_the_new_one():
    from clipmill.engine.config import TrainConfig

    with pytest.raises(ConfigError) as caught:
        TrainConfig(steps=1, batch_size=1).override(["micro_batches=2"])
    assert caught.value.action == "use grad_accum_steps, its name since clipmill 0.2"
