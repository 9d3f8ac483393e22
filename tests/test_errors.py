"""Errors: what they say, who may catch them, and their way across processes."""

import pickle
import re

import pytest

from clipmill import errors
from clipmill.errors import (
    BadSampleError,
    BadSampleReason,
    ClipmillError,
    ConfigError,
    NotFoundError,
    StorageError,
    UserError,
)

KINDS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ClipmillError)
]
USER_KINDS = [kind for kind in KINDS if issubclass(kind, UserError)]


def test_the_drawing_at_the_top_is_the_hierarchy():
    drawn = set(re.findall(r"── (\w+)", errors.__doc__))
    assert drawn | {"ClipmillError"} == {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("kind", USER_KINDS)
def test_a_user_error_says_three_things_and_survives_pickling(kind):
    error = kind("x was 3", expected="4", action="give 4")
    assert str(error) == "x was 3\n  expected: 4\n  what to do: give 4"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.what, again.expected, again.action) == ("x was 3", "4", "give 4")
    assert str(again) == str(error)


def test_a_bad_sample_survives_pickling():
    again = pickle.loads(pickle.dumps(BadSampleError(BadSampleReason.IMAGE_TOO_SMALL, "3 x 4")))
    assert (again.reason, again.detail, str(again)) == (
        BadSampleReason.IMAGE_TOO_SMALL,
        "3 x 4",
        "image_too_small: 3 x 4",
    )


def test_reasons_of_0_1_are_read_as_those_of_today():
    for old, new in {
        "cut-tar": BadSampleReason.TRUNCATED_TAR,
        "no-caption": BadSampleReason.MISSING_CAPTION,
        "unreadable-image": BadSampleReason.UNREADABLE_IMAGE,
        "refused": BadSampleReason.REFUSED,
    }.items():
        assert BadSampleReason.parse(old) == BadSampleReason.parse(new) == new
    assert BadSampleReason.parse("") == ""


def test_who_catches_what():
    assert issubclass(NotFoundError, StorageError)
    assert issubclass(ConfigError, UserError)
    assert not issubclass(BadSampleError, UserError)
