"""What tests ask of the files of TensorBoard in a run folder."""

import struct

import pytest

from mbv3_jax.run.metrics import Event, SessionLog, masked_crc32c, read_metrics


def events(run):
    """All events of a folder, file after file, as TensorBoard reads them; checks the checksums."""
    found = []
    for path in sorted(run.glob("*tfevents*")):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            length, crc, data, data_crc = (
                content[a:b] for a, b in ((0, 8), (8, 12), (12, 12 + size), (12 + size, 16 + size))
            )
            assert struct.unpack("<I", crc) == (masked_crc32c(length),)
            assert struct.unpack("<I", data_crc) == (masked_crc32c(data),)
            found.append(Event.FromString(data))
            content = content[16 + size :]
    return found


def scalars(run):
    """(step, tag) -> value, with what a later session purges left out."""
    values = {}
    for event in events(run):
        if event.session_log.status == SessionLog.START:
            values = {k: v for k, v in values.items() if k[0] < event.step}
        for value in event.summary.value:
            assert (event.step, value.tag) not in values
            values[event.step, value.tag] = value.simple_value
    return values


def from_records(run):
    """What `scalars` should be by the records of metrics.jsonl."""
    return {
        (record["step"], f"{record['kind']}/{name}"): pytest.approx(value, rel=1e-6)
        for record in read_metrics(run)
        for name, value in record.items()
        if name not in ("step", "kind")
    }
