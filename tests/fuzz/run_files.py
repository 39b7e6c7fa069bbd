"""Changed files of runs and data: token files, parts of the ledger and checkpoints, with right digests.

They are made and read on one's own machines, so that nobody sends them; but disks, tools and versions change them.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.data.shards import HEADER, HEADER_BYTES, MAGIC, open_shard
from harness.machine.ranks import Ranks
from harness.run.checkpoint import MARKER, newest_checkpoint, read_state, restoring
from harness.run.ledger import part_paths, read_online_code
from tests.fuzz.mutate import NUMBERS, OTHERS, damaged, value
from tests.golden.make import FOLDER, IDENTITY

LARGEST = 1 << 64


def shard(place: Path, rng: random.Random) -> Callable[[Ranks], bool]:
    """A token file with another header, other tokens or other offsets."""
    content, path = (FOLDER / "text.tokens").read_bytes(), place / "text.tokens"
    fields, body = list(HEADER.unpack(content[: HEADER.size])), content[HEADER_BYTES:]
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.6:
            index = rng.randrange(1, 6)
            number = rng.choice((*NUMBERS, fields[index] + 1, fields[index] - 1, 2 * fields[index]))
            fields[index] = number % (1 << 32 if index < 3 else LARGEST)
        else:
            body = damaged(body, rng)
    if rng.random() < 0.5:
        # Right digests of what is there now, so that only sense can find it.
        num_bytes = fields[3] * fields[2]
        start = num_bytes + -num_bytes % 8
        kind = {1: b"<u1", 2: b"<u2"}.get(fields[2], b"|u1").replace(b"<u1", b"|u1")
        fields[6] = hashlib.sha256(kind + b"\n" + fields[7] + body[:num_bytes]).digest()
        fields[8] = hashlib.sha256(body[start:]).digest()
    header = HEADER.pack(MAGIC, *fields[1:])
    path.write_bytes(header + hashlib.sha256(header).digest()[: HEADER_BYTES - HEADER.size] + body)

    def read(ranks: Ranks) -> bool:
        opened = open_shard(path)
        opened.verify()
        offsets = [int(offset) for offset in opened.document_offsets]
        inside = all(offset < opened.num_tokens for offset in offsets)
        return opened.num_tokens > 0 and inside and offsets == sorted(set(offsets)) and offsets[:1] == [0]

    return read


def ledger(place: Path, rng: random.Random) -> Callable[[Ranks], bool]:
    """A part of a ledger with other values, types or columns, or a damaged file."""
    shutil.copytree(FOLDER / "ledger", place / "ledger")
    (path,) = part_paths(place)
    if rng.random() < 0.2:
        path.write_bytes(damaged(path.read_bytes(), rng))
    else:
        table = pq.read_table(path)
        for _ in range(rng.choice((1, 1, 2))):
            table = _changed(table, rng)
        pq.write_table(table, path)

    def read(ranks: Ranks) -> bool:
        code = read_online_code(place, 2, 12)
        return 0 <= code.aulc_bits < float("inf") and 0 <= code.ideal_bits < float("inf") and code.raw_bytes > 0

    return read


def _changed(table: pa.Table, rng: random.Random) -> pa.Table:
    name = rng.choice(table.column_names)
    index, kind, rows = table.column_names.index(name), rng.random(), table[name].to_pylist()
    if kind < 0.1 and table.num_columns > 1:
        return table.drop_columns([name])
    if kind < 0.2:
        return pa.concat_tables([table, table.slice(0, rng.randrange(3))])
    if kind < 0.6 and not isinstance(rows[0], list):
        others = (None, -1, 0, 1, 7, 2**31 - 1, 1e300, float("nan"), float("inf"), -0.5, "x", [1.0])
        rows[rng.randrange(len(rows))] = rng.choice(others)
        try:
            return table.set_column(index, name, pa.array(rows, type=rng.choice((table.schema.field(name).type, None))))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return table
    column = rng.choice((pa.nulls(len(rows)), pa.array(["x"] * len(rows)), pa.array([{"a": 1}] * len(rows))))
    return table.set_column(index, name, column)


def checkpoint(place: Path, rng: random.Random) -> Callable[[Ranks], bool]:
    """A checkpoint whose state, marker or weights say something else."""
    shutil.copytree(FOLDER / "checkpoints", place / "checkpoints")
    (folder,) = (place / "checkpoints").iterdir()
    name = rng.choice(("state.json", "state.json", "rank-00000.pt", MARKER))
    path = folder / name
    if name == "state.json" and rng.random() < 0.8:
        state = json.loads(path.read_text())
        key = rng.choice([*state, "more"])
        state[key] = value(state.get(key), rng)
        if rng.random() < 0.2:
            del state[key]
        path.write_text(json.dumps(rng.choice((state, state, state, [state], rng.choice(OTHERS)))))
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))
    if name != MARKER and rng.random() < 0.8:
        digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != MARKER}
        (folder / MARKER).write_text(json.dumps(digests))

    def read(ranks: Ranks) -> bool:
        newest, _ = newest_checkpoint(place, ranks, "set train.on_damage=restart")
        state = read_state(newest, IDENTITY, "begin again")
        with restoring(newest, "run", "begin again") as of_rank:
            step = of_rank(0)["step"]
        # With a right digest, another number is what was saved.
        return type(step) is int and type(state.step) is int and state.step >= 0

    return read


FORMATS = (shard, ledger, checkpoint)
"""Each changes a golden file in a folder, and returns what reads it: whether it is one that may be accepted."""
