"""The contract between the rooms: topics, Avro records, framing, table shapes, event identity, names of telemetry.

Nothing here does I/O beyond reading the files of this folder, and nothing here imports another room.
"""
