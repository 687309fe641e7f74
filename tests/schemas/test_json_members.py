"""Objects are split the same natively and step by step, and both agree with the standard parser on what JSON is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.json_members import Malformed, _split_iteratively, join_object, split_object

text = st.text(st.characters(codec=None, categories=None), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(text, values, max_size=5), st.sampled_from([None, 1, "\t"]))
def test_members_are_the_source_text(value: dict[str, Any], indent: str | int | None) -> None:
    source = json.dumps(value, indent=indent).encode()
    for split in (split_object, _split_iteratively):
        members = split(source)
        assert {name: json.loads(member) for name, member in members.items()} == value
        assert all(member in source for member in members.values())
        assert json.loads(join_object(members)) == value


def _refuse(name: str) -> Any:
    raise ValueError(name)


@given(st.dictionaries(text, values, max_size=3), st.data())
@example({"a": [1, {"b": "c"}]}, None)
def test_damaged_text_is_refused_exactly_when_it_is_not_json(value: dict[str, Any], data: st.DataObject | None) -> None:
    source = bytearray(json.dumps(value).encode())
    if data is not None:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(source) - 1))
            source[at] = data.draw(st.sampled_from(b'{}[]",:0129eE+-.tfn\\u \n\x01'))
    damaged = bytes(source)
    try:
        sound = isinstance(json.loads(damaged, parse_constant=_refuse), dict)
    except ValueError:
        sound = False
    try:
        _split_iteratively(damaged)
        taken = True
    except Malformed:
        taken = False
    assert taken is sound


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[0,{"x":"]","b": '])
def test_nesting_has_no_limit(opening: bytes) -> None:
    depth = 20_000
    deep = opening * depth + b"1" + b"".join({91: b"]", 123: b"}"}.get(byte, b"") for byte in reversed(opening)) * depth
    assert split_object(b'{"deep":' + deep + b',"seq":5}') == {"deep": deep, "seq": b"5"}
    with pytest.raises(Malformed):
        split_object(b'{"deep":' + deep[:-1] + b',"seq":5}')


def test_of_equal_names_the_last_counts() -> None:
    assert split_object(b'{"a":1,"a":2}') == _split_iteratively(b'{"a":1,"a":2}') == {"a": b"2"}
