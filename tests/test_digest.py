"""Digests against hashlib's, and what makes two JSON values equal."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.config import canonical_json, digest_json, sha256_bytes, sha256_file

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def turned(value):
    """The same value with every dict's keys the other way round."""
    if isinstance(value, dict):
        return {k: turned(v) for k, v in reversed(value.items())}
    return [turned(v) for v in value] if isinstance(value, list) else value


def test_known_digests():
    assert sha256_bytes(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert digest_json({"b": [1, None], "a": "é"}) == sha256_bytes(b'{"a":"\\u00e9","b":[1,null]}')


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_files(tmp_path, size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == sha256_bytes(data)


@given(values)
def test_order_of_keys_is_nothing(value):
    assert canonical_json(turned(value)) == canonical_json(value)


@given(values, values)
def test_other_values_have_other_digests(first, second):
    same = canonical_json(first) == canonical_json(second)
    assert (digest_json(first) == digest_json(second)) == same


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_what_json_cannot_hold(value):
    with pytest.raises(ValueError, match="JSON"):
        digest_json(value)
