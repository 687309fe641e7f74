"""zstd dictionaries of the simulator: small, trained on its own frames, with ids of its own."""

from __future__ import annotations

from dataclasses import dataclass

import zstandard

from simulator.config import SimulatorSettings
from simulator.generator import Generator
from simulator.wire import v1_frame

DICTIONARY_BYTES = 16_384
FIRST_ID = 19_700_101
V1_ID = 19_700_001


@dataclass(frozen=True)
class Dictionary:
    """A trained dictionary: its bytes (magic and id in front) and a compressor made once."""

    number: int
    data: bytes
    compressor: zstandard.ZstdCompressor

    def compress(self, payload: bytes) -> bytes:
        """One independent zstd frame with dictionary id and checksum."""
        return self.compressor.compress(payload)


def train(settings: SimulatorSettings, number: int, version: int) -> Dictionary:
    """Train on a thousand events of the same kind of network, deterministic by seed and number.

    Takes some tenths of a second, so a trained one is kept in the data folder.
    """
    path = settings.data_dir / f"zstd-dictionary-{number}"
    if not path.exists():
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(_trained(settings, number, version))
        temporary.replace(path)
    data = zstandard.ZstdCompressionDict(path.read_bytes(), dict_type=zstandard.DICT_TYPE_FULLDICT)
    compressor = zstandard.ZstdCompressor(level=1, dict_data=data, write_checksum=True, write_dict_id=True)
    return Dictionary(number, data.as_bytes(), compressor)


def _trained(settings: SimulatorSettings, number: int, version: int) -> bytes:
    sample = settings.model_copy(
        update={"seed": settings.seed ^ number, "accounts": 1000, "live_records": 1000, "malformed_share": 0.0}
    )
    batch = Generator(sample).batch(1500, 1_780_000_000_000_000, 1_780_000_004_000_000)
    frames: list[bytes | bytearray | memoryview] = list(batch.frames)
    if version == 1:
        rows = zip(batch.frames, batch.seqs, batch.times, batch.kinds, strict=True)
        frames = [v1_frame(frame, seq, time_us, cursor=True) for frame, seq, time_us, kind in rows if kind < 6]
    trained = zstandard.train_dictionary(DICTIONARY_BYTES, frames, level=3, dict_id=number)
    data: bytes = trained.as_bytes()
    return data
