"""A client that reads given partitions into columns: no Python object per message, and a member of no group.

Only librdkafka's own threads work for it and no callback into Python is registered, so that its calls can be made
at any time from the one thread that uses it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import repeat
from typing import Any, Final

import numpy as np
from confluent_kafka import KafkaError, KafkaException
from numpy.typing import NDArray

from consumers.librdkafka import MESSAGE, Library
from consumers.records import NULL, Arena, Slices, TopicRecords
from lake.manifest import TopicPartition

PropertiesFactory = Callable[..., Mapping[str, str]]
"""`factory(group, **overrides)`: the librdkafka settings of a client; overrides as for a consumer."""

_CONSUMER: Final = 1
_ERROR_BYTES: Final = 512
_PAGE: Final = 4096
"""No machine has smaller pages of memory: bytes between two places that are less than this apart can always be read."""
_UNKNOWN: Final = -1001


class NativeClient:
    """Reads the partitions it is told to. Not for use from several threads; `close` it after use."""

    def __init__(self, library: Library, properties: Mapping[str, str]) -> None:
        """Connects in the background. Raises KafkaException for settings that the client refuses."""
        self._library = library
        self._handles = np.empty(0, np.uint64)
        text = ctypes.create_string_buffer(_ERROR_BYTES)
        settings = library.conf_new()
        for name, value in properties.items():
            if library.conf_set(settings, name.encode(), value.encode(), text, _ERROR_BYTES):
                library.conf_destroy(settings)
                raise KafkaException(KafkaError(KafkaError._INVALID_ARG, text.value.decode("utf-8", "replace")))
        self._client = library.new(_CONSUMER, settings, text, _ERROR_BYTES)
        if not self._client:
            library.conf_destroy(settings)
            raise KafkaException(KafkaError(KafkaError._FAIL, text.value.decode("utf-8", "replace")))
        library.poll_set_consumer(self._client)
        self._queue = library.queue_get_consumer(self._client)

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Begin to read these partitions, each at its offset."""
        self._with_list(self._library.incremental_assign, offsets)

    def unassign(self, partitions: Collection[TopicPartition]) -> None:
        """Read these partitions, which were assigned, no further."""
        self._with_list(self._library.incremental_unassign, dict.fromkeys(partitions, _UNKNOWN))

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Fetch nothing of these until `resume`."""
        self._with_list(self._library.pause_partitions, dict.fromkeys(partitions, _UNKNOWN))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Undo `pause`."""
        self._with_list(self._library.resume_partitions, dict.fromkeys(partitions, _UNKNOWN))

    def end(self, partition: TopicPartition) -> int:
        """The offset behind the partition's last message as of the last fetch; negative while it is not known."""
        low, high = ctypes.c_int64(_UNKNOWN), ctypes.c_int64(_UNKNOWN)
        self._library.get_watermark_offsets(
            self._open(), partition.topic.encode(), partition.partition, ctypes.byref(low), ctypes.byref(high)
        )
        return high.value

    def take(
        self, max_messages: int, timeout: float, arena: Arena, carriers: list[dict[str, str]] | None = None
    ) -> tuple[list[TopicRecords], list[tuple[KafkaError, TopicPartition]]]:
        """Wait up to `timeout` seconds for up to `max_messages` messages: their columns by topic, and errors.

        Keys and values are copied into `arena`. `carriers`, when given, receives the headers of the messages that have any.
        """
        self._open()
        if len(self._handles) < max_messages:
            self._handles = np.empty(max_messages, np.uint64)
        count = self._library.consume_batch_queue(
            self._queue, int(timeout * 1000), self._handles.ctypes.data, max_messages
        )
        if count <= 0:
            return [], []
        handles = self._handles[:count]
        try:
            return self._read(handles, arena, carriers)
        finally:
            _each(self._library.message_destroy, handles.tolist())

    def close(self) -> None:
        """Stop reading and free everything; blocks until the client's threads have ended. Twice does no harm."""
        if self._client:
            client, self._client = self._client, None
            self._library.queue_destroy(self._queue)
            self._library.destroy(client)

    def _open(self) -> Any:
        # The library ends the process when it is handed a client that is gone.
        if not self._client:
            raise RuntimeError("the client is closed")
        return self._client

    def _with_list(self, call: Any, offsets: Mapping[TopicPartition, int]) -> None:
        """Call a function of the client and a list of partitions; raises KafkaException."""
        library, client = self._library, self._open()
        partitions = library.topic_partition_list_new(len(offsets))
        try:
            for (topic, partition), offset in offsets.items():
                library.topic_partition_list_add(partitions, topic.encode(), partition)
                library.topic_partition_list_set_offset(partitions, topic.encode(), partition, offset)
            failed = call(client, partitions)
        finally:
            library.topic_partition_list_destroy(partitions)
        if failed and call.restype is ctypes.c_void_p:
            error = KafkaError(library.error_code(failed), library.error_string(failed).decode("utf-8", "replace"))
            library.error_destroy(failed)
            raise KafkaException(error)

    def _read(
        self, handles: NDArray[np.uint64], arena: Arena, carriers: list[dict[str, str]] | None
    ) -> tuple[list[TopicRecords], list[tuple[KafkaError, TopicPartition]]]:
        library = self._library
        messages = _structures(handles)
        errors = []
        failed = messages["error"] != 0
        if failed.any():
            for handle, message in zip(handles[failed].tolist(), messages[failed], strict=True):
                text = (library.message_errstr(handle) or b"").decode("utf-8", "replace")
                topic = library.topic_name(int(message["topic"])).decode() if message["topic"] else ""
                errors.append(
                    (KafkaError(int(message["error"]), text), TopicPartition(topic, int(message["partition"])))
                )
            handles, messages = handles[~failed], messages[~failed]
        if carriers is not None:
            carriers += filter(None, map(self._headers, handles.tolist()))
        records = []
        for address in dict.fromkeys(messages["topic"].tolist()):
            of_topic = messages["topic"] == address
            mine = handles[of_topic].tolist()
            stamps = np.fromiter(map(library.message_timestamp, mine, repeat(None)), np.int64, len(mine))
            records.append(_columns(library.topic_name(address).decode(), messages[of_topic], stamps, arena))
        return records, errors

    def _headers(self, handle: int) -> dict[str, str]:
        """A message's headers; none as a rule."""
        headers = ctypes.c_void_p()
        found: dict[str, str] = {}
        if self._library.message_headers(handle, ctypes.byref(headers)):
            return found
        name, value, size = ctypes.c_char_p(), ctypes.c_void_p(), ctypes.c_size_t()
        wanted = ctypes.byref(name), ctypes.byref(value), ctypes.byref(size)
        number = 0
        while not self._library.header_get_all(headers, number, *wanted):
            if name.value is not None and value.value is not None:
                found[name.value.decode("utf-8", "replace")] = ctypes.string_at(value.value, size.value).decode(
                    "ascii", "replace"
                )
            number += 1
        return found


def _each(function: Any, handles: Iterable[int]) -> None:
    deque(map(function, handles), maxlen=0)


class _Memory:
    """Elements of `kind` anywhere from address `low` on, `step` bytes apart, as numpy looks for them."""

    def __init__(self, low: int, count: int, kind: str, step: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (low, True),
            "shape": (count,),
            "typestr": kind,
            "strides": (step,),
        }


def _structures(handles: NDArray[np.uint64]) -> NDArray[Any]:
    """Copies of the structures at these addresses."""
    low = int(handles.min())
    places = ((handles - np.uint64(low)) >> np.uint64(3)).astype(np.int64)
    # Structures begin at multiples of eight. Most of the memory between them belongs to others; it is not touched.
    anywhere = np.asarray(_Memory(low, int(places.max()) + 1, f"|V{MESSAGE.itemsize}", 8))
    return anywhere[places].view(MESSAGE)


def _columns(topic: str, messages: NDArray[Any], stamps: NDArray[np.int64], arena: Arena) -> TopicRecords:
    """Copies of keys and values, with few copies: those of a batch lie side by side where the broker's answer was unpacked."""
    count = len(messages)
    address = np.empty(2 * count, np.int64)
    address[0::2], address[1::2] = messages["key"], messages["value"]
    size = np.empty(2 * count, np.int64)
    size[0::2], size[1::2] = messages["key_size"], messages["value_size"]
    size[address == 0] = NULL
    begin = np.zeros(2 * count, np.int64)
    solid = np.flatnonzero(size > 0)
    data = np.empty(0, np.uint8)
    if len(solid):
        first, end = address[solid], address[solid] + size[solid]
        between = first[1:] - end[:-1]
        cuts = np.flatnonzero((between < 0) | (between >= _PAGE)) + 1
        heads, tails = np.concatenate(([0], cuts)), np.concatenate((cuts, [len(solid)])) - 1
        lengths = end[tails] - first[heads]
        data, base = arena.room(int(lengths.sum()))
        starts = base + np.cumsum(lengths) - lengths
        target = data.ctypes.data
        for start, source, length in zip(starts.tolist(), first[heads].tolist(), lengths.tolist(), strict=True):
            ctypes.memmove(target + start, source, length)
        run = np.zeros(len(solid), np.int64)
        run[cuts] = 1
        begin[solid] = first + (starts - first[heads])[np.cumsum(run)]
        # What has no bytes gets the place behind the one before.
        begin = np.where(size > 0, begin, np.maximum.accumulate(begin + np.maximum(size, 0)))
    return TopicRecords(
        topic,
        messages["partition"].astype(np.int32),
        messages["offset"].astype(np.int64),
        stamps,
        Slices(data, begin[0::2], size[0::2]),
        Slices(data, begin[1::2], size[1::2]),
    )
