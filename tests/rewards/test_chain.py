"""The hash chain against an independent encoder in plain Python, and what must and must not change a hash."""

import hashlib
import math
import struct
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import chain
from rewards.canonical import canonical, sources_of

ZERO = "00" * 32
FORMATS = {"float": "<f", "double": "<d"}


def encoded(columns: dict[str, pa.Array]) -> bytes:
    return b"".join(canonical(sources_of(columns), 0, len(next(iter(columns.values())))))


def frame(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def bits(flags: list[bool]) -> bytes:
    padded = flags + [False] * (-len(flags) % 8)
    return bytes(sum(flag << (7 - j) for j, flag in enumerate(padded[i : i + 8])) for i in range(0, len(padded), 8))


def slow_number(value: Any, kind: pa.DataType) -> bytes:
    if pa.types.is_integer(kind):
        return struct.pack("<q", value or 0)
    value = 0.0 if value is None or value == 0 else value
    if math.isnan(value):
        return bytes.fromhex("0000c07f" if kind == pa.float32() else "000000000000f87f")
    return struct.pack(FORMATS[str(kind)], value)


def slow_column(values: list[Any], kind: pa.DataType) -> bytes:
    valid = [v is not None for v in values]
    validity = b"\1" if all(valid) else b"\0" + bits(valid)
    if pa.types.is_list(kind):
        flat = [entry for v in values for entry in v or []]
        children = {f.name: ([e[f.name] for e in flat], f.type) for f in kind.value_type}
        lengths = b"".join(struct.pack("<I", len(v or [])) for v in values)
        return b"l" + validity + frame(lengths) + slow_columns(children)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        coded = [b"" if v is None else v if isinstance(v, bytes) else v.encode() for v in values]
        return b"s" + validity + b"".join(struct.pack("<I", len(c)) for c in coded) + b"".join(coded)
    if pa.types.is_boolean(kind):
        return b"b" + validity + bits([bool(v) for v in values])
    tag = b"f" if pa.types.is_floating(kind) else b"i"
    return tag + validity + b"".join(slow_number(v, kind) for v in values)


def slow_columns(columns: dict[str, tuple[list[Any], pa.DataType]]) -> bytes:
    parts = []
    for name, (values, kind) in sorted(columns.items()):
        if any(v is not None for v in values):
            parts.append(frame(name.encode()) + frame(slow_column(values, kind)))
    return b"".join(parts)


def slow_commit(identity: tuple[str, int, int], time: int | None, first: int, count: int, body: bytes) -> str:
    run, *numbers = (*identity, first, count, *([] if time is None else [time]))
    preamble = b"s" + frame(run.encode()) + b"".join(b"i" + struct.pack("<q", n) for n in numbers)
    version = b"1" if time is None else b"2"
    return hashlib.sha256(b"reward ledger commit " + version + bytes(32) + preamble + body).hexdigest()


def commit_hash(
    identity: tuple[str, int, int], time: int | None, first: int, columns: dict[str, pa.Array], previous: str = ZERO
) -> str:
    count = len(next(iter(columns.values())))
    return chain.ChainHasher(identity, columns).commit(previous, time, first, 0, count)


ENTRY = pa.struct([("name", pa.string()), ("raw", pa.float64()), ("cost", pa.float32())])
VALUES = {
    pa.float64(): st.floats(),
    pa.float32(): st.floats(width=32),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=8),
    pa.binary(): st.binary(max_size=8),
    pa.list_(ENTRY): st.lists(
        st.fixed_dictionaries({"name": st.text(max_size=3), "raw": st.none() | st.floats(), "cost": st.none()}),
        max_size=3,
    ),
}


@st.composite
def batches(draw: st.DrawFn) -> dict[str, tuple[list[Any], pa.DataType]]:
    count = draw(st.integers(1, 20))
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=5))
    return {
        f"c{i}": (draw(st.lists(st.none() | VALUES[kind], min_size=count, max_size=count)), kind)
        for i, kind in enumerate(kinds)
    }


def arrays(columns: dict[str, tuple[list[Any], pa.DataType]]) -> dict[str, pa.Array]:
    return {name: pa.array(values, kind) for name, (values, kind) in columns.items()}


@settings(max_examples=150, deadline=None)
@given(batches(), st.none() | st.integers(0, 2**62))
def test_hashes_equal_an_independent_encoder(
    columns: dict[str, tuple[list[Any], pa.DataType]], time: int | None
) -> None:
    count = len(columns["c0"][0])
    got = commit_hash(("demo/grpo", 2, 1), time, 17, arrays(columns))
    assert got == slow_commit(("demo/grpo", 2, 1), time, 17, count, slow_columns(columns))


def test_a_commit_written_out_byte_by_byte() -> None:
    columns = {
        "step": pa.array([3, 3], pa.int64()),
        "adjusted_reward": pa.array([1.5, None], pa.float64()),
        "compliant": pa.array([False, True]),
        "category": pa.array(["ä", "b"]),
        "components": pa.array([[{"name": "x", "raw": -0.0, "cost": None}], []], pa.list_(ENTRY)),
        "arm": pa.nulls(2, pa.string()),
    }
    lines = """
        72657761726420 6c656467657220 636f6d6d697420 32                    "reward ledger commit 2"
        1111111111111111 1111111111111111 1111111111111111 1111111111111111  the head before
        73 0100000000000000 72                                             text of 1 byte: run "r"
        69 0200000000000000                                                attempt 2
        69 0000000000000000                                                writer 0
        69 0700000000000000                                                the first row is 7
        69 0200000000000000                                                2 rows
        69 4042 0f00 0000 0000                                             at 1,000,000 us after 1970
        0f00000000000000 61646a75737465645f726577617264                    "adjusted_reward", 15 bytes
        1300000000000000 66 00 80                                          19 bytes: floats, not all valid: 1 0
        000000000000f83f 0000000000000000                                  1.5, nothing
        0800000000000000 63617465676f7279                                  "category"
        0d00000000000000 73 01                                             13 bytes: texts, all valid
        02000000 01000000 c3a4 62                                          of 2 and 1 bytes: "ä" "b"
        0900000000000000 636f6d706c69616e74                                "compliant"
        0300000000000000 62 01 40                                          3 bytes: truth values, all valid: 0 1
        0a00000000000000 636f6d706f6e656e7473                              "components"
        4a00000000000000 6c 01                                             74 bytes: lists, all valid
        0800000000000000 01000000 00000000                                 8 bytes of lengths: 1 and 0
        0400000000000000 6e616d65                                          "name"
        0700000000000000 73 01 01000000 78                                 7 bytes: texts, all valid: "x"
        0300000000000000 726177                                            "raw"
        0a00000000000000 66 01 0000000000000000                            10 bytes: floats, all valid: 0.0
        0400000000000000 73746570                                          "step"
        1200000000000000 69 01                                             18 bytes: whole numbers, all valid
        0300000000000000 0300000000000000                                  3, 3
    """
    spelled = bytes.fromhex("".join(line.split("  ")[0] for line in map(str.strip, lines.splitlines())))
    assert commit_hash(("r", 2, 0), 1_000_000, 7, columns, "11" * 32) == hashlib.sha256(spelled).hexdigest()


@settings(max_examples=50, deadline=None)
@given(batches(), st.data())
def test_a_slice_of_a_larger_array_hashes_like_a_copy(
    columns: dict[str, tuple[list[Any], pa.DataType]], data: st.DataObject
) -> None:
    count = len(columns["c0"][0])
    start = data.draw(st.integers(0, count - 1))
    sliced = {name: array.slice(start) for name, array in arrays(columns).items()}
    copies = {name: (values[start:], kind) for name, (values, kind) in columns.items()}
    assert encoded(sliced) == encoded(arrays(copies))


@settings(max_examples=100, deadline=None)
@given(batches(), st.data())
def test_commits_cut_from_one_table_hash_like_commits_on_their_own(
    columns: dict[str, tuple[list[Any], pa.DataType]], data: st.DataObject
) -> None:
    count = len(columns["c0"][0])
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=4))})
    hasher = chain.ChainHasher(("r", 1, 0), arrays(columns))
    for start, stop in pairwise(cuts):
        part = {name: pa.array(values[start:stop], kind) for name, (values, kind) in columns.items()}
        alone = commit_hash(("r", 1, 0), 5, start + 1, part) if start < stop else None
        assert start == stop or hasher.commit(ZERO, 5, start + 1, start, stop) == alone


def test_every_nan_is_one_and_minus_zero_is_zero() -> None:
    odd = struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0]
    assert math.isnan(odd)
    same = [pa.array([math.nan, 0.0]), pa.array([odd, -0.0])]
    assert encoded({"a": same[0]}) == encoded({"a": same[1]})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([None, 1.0], [0.0, 1.0]),
        ([math.nan, 1.0], [None, 1.0]),
        ([1.0, 2.0], [2.0, 1.0]),
        ([1.0], [1.0, None]),
        (["ab", "c"], ["a", "bc"]),
        (["", "x"], [None, "x"]),
        ([True, None], [True, False]),
    ],
)
def test_what_differs_for_people_differs_in_the_hash(one: list[Any], other: list[Any]) -> None:
    hashes = {commit_hash(("r", 1, 0), 5, 1, {"a": pa.array(v)}) for v in (one, other)}
    assert len(hashes) == 2


def test_the_hash_names_run_attempt_writer_time_seq_and_what_came_before() -> None:
    columns = {"a": pa.array([1.0])}
    variants: list[tuple[tuple[str, int, int], int | None, int, str]] = [
        (("r", 1, 0), 5, 1, ZERO),
        (("s", 1, 0), 5, 1, ZERO),
        (("r", 2, 0), 5, 1, ZERO),
        (("r", 1, 1), 5, 1, ZERO),
        (("r", 1, 0), 6, 1, ZERO),
        (("r", 1, 0), None, 1, ZERO),
        (("r", 1, 0), 5, 2, ZERO),
        (("r", 1, 0), 5, 1, "11" * 32),
    ]
    hashes = {commit_hash(identity, time, seq, columns, before) for identity, time, seq, before in variants}
    assert len(hashes) == len(variants)
    assert commit_hash(("r", 1, 0), 5, 1, {"b": columns["a"]}) not in hashes


def test_a_column_without_values_leaves_no_trace() -> None:
    with_nulls = {"a": pa.array([1.0]), "b": pa.array([None], pa.string())}
    assert encoded(with_nulls) == encoded({"a": pa.array([1.0])})


def test_the_order_of_columns_does_not_matter() -> None:
    a, b = pa.array([1.0]), pa.array(["x"])
    assert encoded({"a": a, "b": b}) == encoded({"b": b, "a": a})


def test_the_head_of_a_ledger_is_the_hash_of_its_sorted_chains() -> None:
    heads = {"events": "aa", "b/1/0": "bb", "a/1/0": "cc"}
    body = b"".join(b"s" + frame(n.encode()) + b"s" + frame(heads[n].encode()) for n in ["a/1/0", "b/1/0", "events"])
    assert chain.ledger_head(heads) == hashlib.sha256(body).hexdigest()


def test_many_texts_hash_like_one_by_one() -> None:
    salts = [bytes([i]) * chain.SALT_BYTES for i in range(3)]
    got = chain.text_hashes("response", [*salts, None], [b"a", "ä".encode(), b"", None])
    assert got == [
        *(chain.text_hash(s, "response", t) for s, t in zip(salts, "aä", strict=False)),
        chain.text_hash(salts[2], "response", ""),
        None,
    ]


def test_texts_are_hashed_with_their_salt_and_column() -> None:
    hashes = {
        chain.text_hash(s, c, t) for s in (b"s" * 16, b"t" * 16) for c in ("prompt", "response") for t in ("", "x")
    }
    assert len(hashes) == 8


def test_genesis_depends_on_run_attempt_and_writer() -> None:
    names = [("a", 1, 0), ("a", 1, 1), ("a", 2, 0), ("b", 1, 0), ("a/1", 1, 0)]
    assert len({chain.genesis(*name) for name in names}) == 5
    assert len({chain.chain_name(*name) for name in names}) == 5
