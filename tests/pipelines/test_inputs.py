"""A pipeline takes its inputs from the pieces that it is made of."""

import inspect

import pytest
from clipmill.pipelines.common import inputs_for, with_inputs_of
from clipmill.pipelines.registry import PIPELINES


def first(store, number: int = 1):
    return number


def second(text: str = "a", number: int = 1):
    return text


def test_optional_inputs_are_taken_once_and_handed_on():
    @with_inputs_of(first, second)
    def both(run: str, own: str = "", **given):
        """Words."""
        return run, own, inputs_for(first, given), inputs_for(second, given)

    signature = inspect.signature(both)
    assert list(signature.parameters) == ["run", "own", "number", "text"]
    assert signature.parameters["number"].annotation is int
    assert both.__doc__ == "Words."
    values = both("r", "o", 2, "b")
    assert values == ("r", "o", {"number": 2}, {"number": 2, "text": "b"})


def test_an_own_input_comes_first_and_differing_pieces_are_refused():
    def third(number: int = 3):
        return number

    @with_inputs_of(third)
    def one(number: int, **given):
        return number, given

    assert one(7) == (7, {})
    with pytest.raises(AssertionError, match="two steps differ about number"):
        with_inputs_of(first, third)(lambda **given: given)


@pytest.mark.parametrize("name", PIPELINES)
def test_texts_of_the_ui_are_plain_and_every_parameter_has_one(name):
    spec = PIPELINES[name].pipeline_spec
    parameters = spec.root.input_definitions.parameters
    assert [n for n, parameter in parameters.items() if not parameter.description] == []
    texts = [spec.pipeline_info.description, *(p.description for p in parameters.values())]
    assert not [text for text in texts if "`" in text]


def test_what_a_piece_gains_its_pipelines_have():
    inputs = {
        name: set(pipeline.pipeline_spec.root.input_definitions.parameters)
        for name, pipeline in PIPELINES.items()
    }
    assert inputs["end-to-end"] == inputs["train-and-report"] | {
        "namespace",
        "runtime",
        "prometheus",
    }
    assert inputs["refresh"] >= inputs["pretrain-encoder"]
    assert inputs["refresh"] >= inputs["encoder-to-tasks"] - {"encoder"}
