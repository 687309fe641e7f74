"""The part of librdkafka's public C interface that reads messages without a Python object for each.

It is the very library that the Kafka client is linked with, reached through the client's extension module. Only functions
and structures of `rdkafka.h` are used, whose layout has not changed since 0.9.
"""

from __future__ import annotations

import ctypes
import logging
import struct
import sys
from functools import cache
from typing import Any, Final

import confluent_kafka.cimpl
import numpy as np

log = logging.getLogger("explorer.consumers")

MESSAGE: Final = np.dtype(
    {
        "names": ["error", "topic", "partition", "value", "value_size", "key", "key_size", "offset"],
        "formats": ["<i4", "<u8", "<i4", "<u8", "<u8", "<u8", "<u8", "<i8"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56],
        "itemsize": 72,
    }
)
"""`rd_kafka_message_t` where pointers have 64 bits; topic, value and key are addresses."""

_POINTER, _TEXT, _INT, _INT32, _INT64, _SIZE = (
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_size_t,
)
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "conf_new": (_POINTER, ()),
    "conf_set": (_INT, (_POINTER, _TEXT, _TEXT, _TEXT, _SIZE)),
    "conf_destroy": (None, (_POINTER,)),
    "new": (_POINTER, (_INT, _POINTER, _TEXT, _SIZE)),
    "destroy": (None, (_POINTER,)),
    "poll_set_consumer": (_INT, (_POINTER,)),
    "queue_get_consumer": (_POINTER, (_POINTER,)),
    "queue_destroy": (None, (_POINTER,)),
    "topic_partition_list_new": (_POINTER, (_INT,)),
    "topic_partition_list_add": (_POINTER, (_POINTER, _TEXT, _INT32)),
    "topic_partition_list_set_offset": (_INT, (_POINTER, _TEXT, _INT32, _INT64)),
    "topic_partition_list_destroy": (None, (_POINTER,)),
    "incremental_assign": (_POINTER, (_POINTER, _POINTER)),
    "incremental_unassign": (_POINTER, (_POINTER, _POINTER)),
    "pause_partitions": (_INT, (_POINTER, _POINTER)),
    "resume_partitions": (_INT, (_POINTER, _POINTER)),
    "get_watermark_offsets": (_INT, (_POINTER, _TEXT, _INT32, _POINTER, _POINTER)),
    "consume_batch_queue": (ctypes.c_ssize_t, (_POINTER, _INT, _POINTER, _SIZE)),
    "topic_name": (_TEXT, (_POINTER,)),
    "message_errstr": (_TEXT, (_POINTER,)),
    "message_headers": (_INT, (_POINTER, _POINTER)),
    "header_get_all": (_INT, (_POINTER, _SIZE, _POINTER, _POINTER, _POINTER)),
    "error_code": (_INT, (_POINTER,)),
    "error_string": (_TEXT, (_POINTER,)),
    "error_destroy": (None, (_POINTER,)),
}
_QUICK: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "message_destroy": (None, (_POINTER,)),
    "message_timestamp": (_INT64, (_POINTER, _POINTER)),
}
"""Called for every message; they do not wait, so that giving up Python's lock would cost more than they do."""


class Library:
    """The functions by their names without `rd_kafka_`. Made by `load`."""

    def __init__(self, path: str) -> None:
        """Raises OSError or AttributeError when the library or one of the functions cannot be reached."""
        # A search in the extension module goes on in the libraries that it was linked with.
        for library, functions in ((ctypes.CDLL(path), _FUNCTIONS), (ctypes.PyDLL(path), _QUICK)):
            for name, (result, arguments) in functions.items():
                function = library[f"rd_kafka_{name}"]
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"librdkafka's rd_kafka_{name} is not declared here")


@cache
def load() -> Library | None:
    """The library, looked for once; None, and a line in the log, where it cannot be used: then messages come as objects."""
    if struct.calcsize("P") != 8 or sys.byteorder != "little":
        log.warning("messages are read as objects: the client's structures are laid out for another kind of machine")
        return None
    try:
        return Library(confluent_kafka.cimpl.__file__)
    except (OSError, AttributeError) as error:
        log.warning("messages are read as objects, which costs more", extra={"cause": str(error)})
        return None
