"""zstd frames with a dictionary: reading dictionaries, decompressing messages, fetching and rotating the v2 dictionary.

Dictionary format: zstd specification, section "Dictionary Format" (magic 0xEC30A437 and a 32-bit id, little endian). Each message
is one independent frame. v2 servers serve their dictionary; for v1 the operator gives a file.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zstandard

from producers.errors import SourceSettingsError
from producers.http import HttpClient, HttpFailure
from producers.websocket_frames import BinaryMessage
from producers.wire import Decoder, Frame, StreamError

logger = logging.getLogger("explorer.producers")

DICTIONARY_PATH: Final = "/xrpc/network.bsky.jetstream.getZstdDictionary"
BAD_COMPRESSION: Final = "BadCompression"
"""Name of the error that a decoder reports for a message that does not decompress; the stream is then read again."""

LEGACY_DICTIONARY_SHA256: Final = "b8d77b46933aceecbdd5275a01241efc985c970c78162b8150cf67a26522f70c"
"""Of the dictionary that public v1 servers use (112,640 bytes)."""

_MAGIC: Final = (0xEC30A437).to_bytes(4, "little")
_MAX_DICTIONARY_BYTES: Final = 16 * 1024 * 1024


class Dictionary:
    """A zstd dictionary and what is needed to decompress with it. ValueError when the bytes are none."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 8 or data[:4] != _MAGIC:
            raise ValueError("these bytes are no zstd dictionary (wrong magic number)")
        self.id = int.from_bytes(data[4:8], "little")
        try:
            self._decompressor = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(data))
        except zstandard.ZstdError as error:
            raise ValueError(f"this zstd dictionary is damaged: {error}") from None

    def decompress(self, message: bytes, max_size: int) -> bytes:
        """The content of one frame. ValueError for a damaged frame, another dictionary, or more than `max_size` bytes."""
        try:
            # The library trusts a stated size whatever the limit says; the limit serves frames that state none.
            size = zstandard.get_frame_parameters(message).content_size
            if max_size < size < zstandard.CONTENTSIZE_ERROR:
                raise ValueError(f"{size} bytes of content")
            return self._decompressor.decompress(message, max_output_size=max_size)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None


def decompressing(decode: Decoder, dictionary: Dictionary, max_size: int) -> Decoder:
    """A decoder of messages that are compressed when binary; one that does not decompress reads as a stream error.

    Transport that is damaged says nothing about the event inside, so the stream is read again rather than the event set aside.
    """

    def decode_message(message: bytes, /) -> Frame:
        if type(message) is BinaryMessage:
            try:
                return decode(dictionary.decompress(message, max_size))
            except ValueError as error:
                return StreamError(BAD_COMPRESSION, str(error))
        return decode(message)

    return decode_message


def load_dictionary(path: Path) -> Dictionary:
    """The v1 dictionary in a file. Raises SourceSettingsError."""
    try:
        data = path.read_bytes()
        dictionary = Dictionary(data)
    except (OSError, ValueError) as error:
        raise SourceSettingsError(
            f"the dictionary file {path} cannot be used: {error}",
            "point EXPLORER_SOURCE_DICTIONARY at the file, or set EXPLORER_SOURCE_COMPRESSION=none",
        ) from None
    if hashlib.sha256(data).hexdigest() != LEGACY_DICTIONARY_SHA256:
        logger.warning("%s is not the dictionary of the public v1 servers (id %d)", path, dictionary.id)
    return dictionary


class ServedDictionaries:
    """The v2 dictionary of each server, fetched when first needed and again after a rotation. Thread-safe by use from one thread
    at a time.

    `fetch` is replaceable for tests; the default asks the server.
    """

    def __init__(
        self, timeout: float, tls: ssl.SSLContext, fetch: Callable[[str, float, ssl.SSLContext], bytes] | None = None
    ) -> None:
        self._timeout = timeout
        self._tls = tls
        self._fetch = fetch or fetch_dictionary
        self._known: dict[str, Dictionary] = {}
        self._stale: dict[str, int] = {}
        self._given_up: set[str] = set()

    def of(self, url: str) -> Dictionary | None:
        """The dictionary to ask `url` for; None to go uncompressed. Blocks while it is fetched, up to the timeout."""
        if url in self._given_up:
            return None
        if url in self._known:
            return self._known[url]
        try:
            dictionary = Dictionary(self._fetch(url, self._timeout, self._tls))
        except (HttpFailure, ValueError) as error:
            logger.warning("%s gives no zstd dictionary (%s): going uncompressed this time", url, error)
            return None
        if self._stale.pop(url, None) == dictionary.id:
            logger.error("%s refuses dictionary %d and serves no other: going uncompressed", url, dictionary.id)
            self._given_up.add(url)
            return None
        self._known[url] = dictionary
        return dictionary

    def refused(self, url: str) -> None:
        """Note that the server does not know the dictionary, or sends frames that it does not open: fetch it again."""
        dictionary = self._known.pop(url, None)
        if dictionary is not None:
            self._stale[url] = dictionary.id


def fetch_dictionary(url: str, timeout: float, tls: ssl.SSLContext) -> bytes:
    """The bytes of the server's current dictionary. Raises HttpFailure."""
    client = HttpClient(url, timeout, tls)
    try:
        return client.get(DICTIONARY_PATH, max_bytes=_MAX_DICTIONARY_BYTES).body
    finally:
        client.close()
