"""Identifiers and DAG-CBOR, checked by an independent implementation (libipld)."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode

import libipld
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.dag_cbor import encode, follow_cid, link_bytes, record_cid, subject_cid
from simulator.ids import cid_of_digest, random_cids, random_dids, tid_text, tid_texts, tid_value, time_texts

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
    ),
    max_leaves=20,
)

quick = settings(max_examples=50, deadline=None)


def _plain(value: object) -> object:
    """What libipld gives back, with atproto's JSON forms of links and bytes."""
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode().rstrip("=")}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


@quick
@given(_json.filter(lambda value: "$link" not in json.dumps(value) and "$bytes" not in json.dumps(value)))
def test_dag_cbor_is_read_back_by_another_implementation(value: object) -> None:
    assert _plain(libipld.decode_dag_cbor(encode(value))) == value


@quick
@given(st.binary(max_size=100))
def test_bytes_and_links_become_their_own_types(data: bytes) -> None:
    link = cid_of_digest(hashlib.sha256(data).digest()).decode()
    value = {"blob": {"$bytes": b64encode(data).decode().rstrip("=")}, "link": {"$link": link}}
    decoded = libipld.decode_dag_cbor(encode(value))
    assert decoded["blob"] == data
    assert libipld.encode_cid(decoded["link"]) == link


@quick
@given(st.binary(min_size=32, max_size=32))
def test_cid_text_equals_another_implementations(digest: bytes) -> None:
    binary = b"\x01\x71\x12\x20" + digest
    assert cid_of_digest(digest).decode() == libipld.encode_cid(binary)
    assert link_bytes(libipld.encode_cid(binary)) == binary


@pytest.mark.parametrize("text", ["", "b", "zdpu", "bUPPER", "b!!", "bafy rei"])
def test_what_is_no_base32_cid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a base32 CID"):
        link_bytes(text)


@pytest.mark.parametrize("raw", [False, True])
def test_random_cids_are_valid(raw: bool) -> None:
    for text in random_cids(np.random.default_rng(1), 500, raw=raw):
        decoded = libipld.decode_cid(text.decode())
        assert (decoded["version"], decoded["codec"], decoded["hash"]["code"]) == (1, 0x55 if raw else 0x71, 0x12)


def test_fast_cids_equal_the_general_ones() -> None:
    rng = np.random.default_rng(2)
    cids, dids = random_cids(rng, 2), random_dids(rng, 2)
    subject = b'{"cid":"%b","uri":"at://%b/app.bsky.feed.post/3mptbyplj5d2a"}' % (cids[0], dids[0])
    via = b'{"cid":"%b","uri":"at://%b/app.bsky.feed.repost/3mptbyplj5d2a"}' % (cids[1], dids[1])
    created = b"2026-07-04T14:38:08.999Z"
    for name in (b"app.bsky.feed.like", b"app.bsky.feed.repost"):
        plain = b'{"$type":"%b","createdAt":"%b","subject":%b}' % (name, created, subject)
        assert subject_cid(name, created, subject) == record_cid(plain)
        assert subject_cid(name, created, subject, via) == record_cid(plain[:-1] + b',"via":%b}' % via)
    follow = b'{"$type":"app.bsky.graph.follow","createdAt":"%b","subject":"%b"}' % (created, dids[1])
    assert follow_cid(created, dids[1]) == record_cid(follow)


@quick
@given(st.integers(0, 2**63 - 1))
def test_tids_go_both_ways_and_sort_as_numbers(value: int) -> None:
    text = tid_text(value)
    assert tid_value(text) == value
    assert tid_texts(np.array([value]))[0] == text
    assert len(text) == 13
    assert (tid_text(max(0, value - 1)) < text) or value == 0


def test_time_texts_cut_to_their_digits() -> None:
    micros = np.array([1_783_175_954_329_308, 1_783_175_954_000_001])
    assert time_texts(micros, "us") == [b"2026-07-04T14:39:14.329308Z", b"2026-07-04T14:39:14.000001Z"]
    assert time_texts(micros, "ms") == [b"2026-07-04T14:39:14.329Z", b"2026-07-04T14:39:14.000Z"]
