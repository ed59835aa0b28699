"""The sealed tables in other engines: each of them rebuilds the live view from the open tables alone."""

import hashlib
import json
import math
import os
import sqlite3
import struct
from contextlib import closing
from typing import Any
from urllib.parse import unquote

import deltalake
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rewards import Ledger
from rewards.schema import sealed_schema, texts_schema
from tests.rewards.ledger_rows import rows, scratch
from tests.rewards.test_chain import slow_columns

RUNS = ("grpo", "dpo")


@pytest.fixture(scope="module")
def root():
    """Two runs; one was resumed, so that rows of it are superseded, and recorded by two writers; all sealed."""
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("grpo") as writer:
            writer.append(0, rows(100, 2, split="eval")).wait()
            for step in range(1, 6):
                kl = math.nan if step == 2 else step / 2
                writer.append(step, rows(8 * step, 8, prompt=f'Schritt {step}: "größer"?\n', kl_nats=kl)).wait()
                ledger.seal()  # many small files, so that they are put together
                if step == 3:
                    position = writer.checkpoint(3)
        with (
            ledger.writer("grpo", resume=position) as writer,
            ledger.writer("grpo", writer=1, attempt=2) as other,
        ):
            for step in range(4, 9):
                writer.append(step, rows(1000 + 8 * step, 8)).wait()
                other.append(step, [*rows(2000 + 8 * step, 4), *rows(1, 1, split="eval", components=[])]).wait()
                ledger.seal()
        with ledger.writer("dpo") as writer:
            writer.append(1, rows(0, 3, components=None, response=None, rejected="no")).wait()
        ledger.redact("grpo", 1, 0, 4, reason="a name", by="a test")
        ledger.seal()
        yield ledger.path


def files(root, name):
    """The files of the newest version of a table."""
    return deltalake.DeltaTable(root / name).file_uris()


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """Rows that compare equal where they are: a NaN is itself."""

    def same(value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            return "NaN"
        if isinstance(value, list):
            return [same(item) for item in value]
        return {key: same(item) for key, item in value.items()} if isinstance(value, dict) else value

    return [same(row) for row in table.to_pylist()]


def by_place(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in ("attempt", "writer", "seq")])


def assert_is_the_live_view(root, run_id: str, given: pa.Table) -> None:
    """given: in the types of the tables; a column more does no harm."""
    with Ledger.open(root) as ledger:
        expected = ledger.sessions(run_id)
    assert expected.num_rows > 0
    types = {field.name: field.type for field in sealed_schema()}
    for name in expected.schema.names:
        assert given.schema.field(name).type.equals(types.get(name, pa.int64())), name
    assert plain(by_place(given.select(expected.schema.names))) == plain(by_place(expected))


LIVE = """
    SELECT s.*, b.session_offset + s.position + 1 AS session
    FROM {sessions} s JOIN {blocks} b USING (block)
    WHERE b.live AND s.run_id = '{run_id}'
"""


# -- Polars ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", RUNS)
def test_polars_rebuilds_the_live_view(root, run_id):
    pl = pytest.importorskip("polars")
    sessions = pl.scan_delta(str(root / "sessions"))
    live = pl.scan_delta(str(root / "blocks")).filter("live").select("block", "session_offset")
    found = (
        sessions.join(live, on="block")
        .with_columns(session=pl.col("session_offset") + pl.col("position") + 1)
        .filter(pl.col("run_id") == run_id)
        .collect()
    )
    assert found.schema["time"] == pl.Datetime("us", "UTC")
    assert found.schema["attempt"] == pl.Int32 and found.schema["kl_nats"] == pl.Float32
    assert found.schema["response_hash"] == pl.Binary
    schema = pa.schema([*sealed_schema(), ("session", pa.int64())])
    assert_is_the_live_view(root, run_id, found.select(schema.names).to_arrow().cast(schema))


@pytest.fixture
def folder():
    with scratch() as memory:
        yield memory


def test_polars_skips_files_by_our_statistics_without_losing_a_row(folder):
    pl = pytest.importorskip("polars")
    with Ledger.open(folder / "ledger", create=True) as ledger:
        for first, run_id in enumerate(("a", "grpo", "dpo", "grpo")):
            with ledger.writer(run_id) as writer:
                kl = math.nan if first else None
                writer.append(4 * first, [*rows(1000 * first, 8, kl_nats=kl), *rows(0, 1, split="eval")]).wait()
    lazy = pl.scan_delta(str(folder / "ledger" / "sessions"))
    whole = lazy.collect()
    assert len(files(folder / "ledger", "sessions")) == 4
    conditions = (
        pl.col("run_id") == "dpo",
        pl.col("step") > 5,
        pl.col("seq").is_between(3, 5),
        (pl.col("attempt") == 2) & (pl.col("run_id") == "grpo"),
        pl.col("attempt").is_null(),  # no statistic says how many are null
        pl.col("arm").is_null(),
        pl.col("position").is_null(),
        pl.col("kl_nats").is_nan(),
        pl.col("baseline_reward") > 1000,
    )
    for condition in conditions:
        assert lazy.filter(condition).collect().height == whole.filter(condition).height, str(condition)
    assert 0 < whole.filter(conditions[0]).height < whole.height


# -- DuckDB, alone -----------------------------------------------------------------------------------------------------

# Delta's log in SQL: files that were added and not removed. No log entry is ever deleted, so it is all there.
NEWEST = """
    SELECT list('{table}/' || add.path) FROM (
        SELECT add, remove FROM read_json('{table}/_delta_log/*.json', format = 'newline_delimited',
            columns = {{'add': 'STRUCT(path VARCHAR)', 'remove': 'STRUCT(path VARCHAR)'}})
    ) WHERE add IS NOT NULL AND add.path NOT IN (
        SELECT remove.path FROM read_json('{table}/_delta_log/*.json', format = 'newline_delimited',
            columns = {{'remove': 'STRUCT(path VARCHAR)'}}) WHERE remove IS NOT NULL)
"""


@pytest.mark.parametrize("run_id", RUNS)
def test_duckdb_alone_rebuilds_the_live_view(root, run_id):
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in ("sessions", "blocks"):
            connection.execute(f"SET VARIABLE {name} = ({NEWEST.format(table=root / name)})")
            ((there,),) = connection.execute(f"SELECT getvariable('{name}')").fetchall()
            assert sorted(there) == sorted(files(root, name))
        names = {name: f"read_parquet(getvariable('{name}'))" for name in ("sessions", "blocks")}
        found = connection.sql(LIVE.format(**names, run_id=run_id)).to_arrow_table()
    assert_is_the_live_view(root, run_id, found)


def test_duckdb_alone_finds_texts_and_components(root):
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW sessions AS FROM read_parquet({files(root, 'sessions')!r})")
        connection.execute(f"CREATE VIEW blocks AS FROM read_parquet({files(root, 'blocks')!r})")
        connection.execute(f"CREATE VIEW texts AS FROM read_parquet({files(root, 'texts')!r})")
        texts = connection.execute(
            "SELECT b.session_offset + s.position + 1 AS session, t.prompt, t.response, t.rejected FROM sessions s "
            "JOIN blocks b USING (block) LEFT JOIN texts t ON t.chain = s.chain AND t.seq = s.seq "
            "WHERE b.live AND s.run_id = 'grpo' AND s.split = 'train' ORDER BY session"
        ).fetchall()
        means = connection.execute(
            "SELECT c.name, avg(c.value), count(*) FROM sessions s JOIN blocks b USING (block), "
            "unnest(s.components) AS u(c) WHERE b.live AND s.run_id = 'grpo' GROUP BY 1"
        ).fetchall()
    with Ledger.open(root) as ledger:
        live = ledger.sessions("grpo", texts=True).to_pylist()
    columns = ("session", "prompt", "response", "rejected")
    assert texts == [tuple(row[name] for name in columns) for row in live if row["session"] is not None]
    assert texts[1][1:] == (None, None, None)  # taken out: seq 4 is the second session
    values = [component["value"] for row in live for component in row["components"] or ()]
    assert means == [("task", pytest.approx(sum(values) / len(values)), len(values))]


# -- pandas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", RUNS)
@pytest.mark.parametrize("reader", ["deltalake", "read_parquet"])
def test_pandas_rebuilds_the_live_view(root, run_id, reader):
    pd = pytest.importorskip("pandas")

    def frame(name: str) -> Any:
        if reader == "read_parquet":  # arrow's types: a whole number that may be null stays whole
            return pd.read_parquet(files(root, name), dtype_backend="pyarrow")
        return deltalake.DeltaTable(root / name).to_pandas(types_mapper=pd.ArrowDtype)

    live = frame("blocks").query("live")[["block", "session_offset"]]
    found = frame("sessions").merge(live, on="block")
    found["session"] = found["session_offset"] + found["position"] + 1
    schema = pa.schema([*sealed_schema(), ("session", pa.int64())])
    table = pa.Table.from_pandas(found[found["run_id"] == run_id], schema=schema, preserve_index=False)
    assert_is_the_live_view(root, run_id, table)


def test_pandas_by_default_turns_null_into_nan_and_whole_numbers_into_floats(root):
    pd = pytest.importorskip("pandas")
    frame = deltalake.DeltaTable(root / "sessions").to_pandas()
    assert frame["position"].dtype == "float64" and frame["attempt"].dtype == "int32"
    assert frame["time"].dtype == pd.DatetimeTZDtype("us", "UTC")
    stored = deltalake.DeltaTable(root / "sessions").to_pyarrow_table()["kl_nats"]
    nulls = stored.null_count
    assert nulls > 0 and frame["kl_nats"].isna().sum() == nulls + 8  # eight are NaN, and cannot be told from null


# -- Hugging Face datasets ---------------------------------------------------------------------------------------------


@pytest.fixture
def datasets(monkeypatch):
    """The library where it is installed, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("datasets")
    if not hasattr(library, "load_dataset"):
        pytest.skip("Hugging Face datasets is not installed")  # the folder datasets/ of a checkout is none
    monkeypatch.setattr("socket.socket.connect", _no_network)
    library.disable_progress_bars()
    yield library
    library.enable_progress_bars()


def _no_network(*_: object) -> None:
    raise AssertionError("the network was asked for")


@pytest.mark.parametrize("run_id", RUNS)
def test_hugging_face_datasets_rebuilds_the_live_view(root, run_id, datasets, tmp_path):
    loaded = datasets.load_dataset(
        "parquet",
        data_files=files(root, "sessions"),
        split="train",
        cache_dir=str(tmp_path),
    )
    blocks = datasets.load_dataset("parquet", data_files=files(root, "blocks"), split="train", cache_dir=str(tmp_path))
    offset = {b["block"]: b["session_offset"] for b in blocks if b["live"]}
    live = loaded.filter(lambda row: row["block"] in offset and row["run_id"] == run_id)

    def number(row: dict[str, Any]) -> dict[str, Any]:
        place = row["position"]
        return {"session": None if place is None else offset[row["block"]] + place + 1}

    numbered = live.map(number, features=datasets.Features({**live.features, "session": datasets.Value("int64")}))
    schema = pa.schema([*sealed_schema(), ("session", pa.int64())])
    assert_is_the_live_view(root, run_id, numbered.data.table.select(schema.names).cast(schema))


def test_hugging_face_datasets_reads_the_texts(root, datasets, tmp_path):
    # Not streamed: datasets 5.2 may abort the process at its exit when a stream is left before its end.
    texts = datasets.load_dataset("parquet", data_files=files(root, "texts"), split="train", cache_dir=str(tmp_path))
    with Ledger.open(root) as ledger:
        rejected = [row["rejected"] for row in ledger.sessions("dpo", texts=True).to_pylist()]
    assert [row["rejected"] for row in texts if row["run_id"] == "dpo"] == rejected == ["no"] * 3


# -- the tables themselves ---------------------------------------------------------------------------------------------


def test_every_file_has_the_types_of_the_schema(root):
    schemas = {"sessions": sealed_schema(), "texts": texts_schema()}
    for name, schema in schemas.items():
        assert files(root, name)
        for file in files(root, name):
            assert pq.read_schema(file).remove_metadata().equals(schema)


def test_the_tables_ask_for_no_feature_that_old_readers_lack(root):
    for name in ("sessions", "texts", "blocks", "attempts"):
        protocol = deltalake.DeltaTable(root / name).protocol()
        assert (protocol.min_reader_version, protocol.reader_features) == (1, None)


def test_attempts_say_up_to_which_step_each_counts(root):
    table = deltalake.DeltaTable(root / "attempts").to_pyarrow_table()
    columns = ("run_id", "attempt", "resume_step", "live", "live_up_to_step")
    assert [tuple(row[name] for name in columns) for row in table.sort_by("attempt_id").to_pylist()] == [
        ("grpo", 1, None, True, 3),
        ("grpo", 2, 3, True, None),
        ("dpo", 1, None, True, None),
    ]


def _actions(root, name, kind):
    log = sorted((root / name / "_delta_log").glob("*.json"))
    lines = [json.loads(line) for path in log for line in path.read_text().splitlines()]
    return [line[kind] for line in lines if kind in line]


def test_an_engine_that_follows_the_log_sees_each_row_once_and_a_redaction_as_a_change(root):
    for name, changed in (("sessions", 0), ("texts", 1)):
        removed = _actions(root, name, "remove")
        added = [action for action in _actions(root, name, "add") if action["dataChange"]]
        assert len(removed) > 8  # small files were put together
        assert sum(action["dataChange"] for action in removed) == changed
        with Ledger.open(root) as ledger:
            stored = sum(ledger.sessions(run, live=False).num_rows for run in RUNS)
        rewritten = [action["path"] for action in removed if action["dataChange"]]
        counted = sum(json.loads(a["stats"])["numRecords"] for a in added)
        again = sum(json.loads(a["stats"])["numRecords"] for a in added[-changed:]) if rewritten else 0
        assert counted - again == stored


def test_a_folder_that_was_not_vacuumed_holds_rows_twice_and_the_log_does_not(folder):
    with Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("r", seal_rows=None) as writer:
            for step in range(1, 11):
                writer.append(step, rows(step, 4)).wait()
                ledger.seal(vacuum=False)
        table = folder / "ledger" / "sessions"
        assert pq.read_table(table).num_rows > 40
        assert sum(pq.read_metadata(file).num_rows for file in files(folder / "ledger", "sessions")) == 40
        ledger.seal()
        assert pq.read_table(table).num_rows == 40


def test_past_a_checkpoint_of_the_log_the_tables_still_open(folder, monkeypatch):
    pl = pytest.importorskip("polars")
    monkeypatch.setattr("rewards.sealed._CHECKPOINT_EVERY", 5)
    with Ledger.open(folder / "ledger", create=True) as ledger, ledger.writer("r") as writer:
        for step in range(1, 9):
            writer.append(step, rows(step, 2, components=None)).wait()
            ledger.seal()
        assert (folder / "ledger" / "sessions" / "_delta_log" / "_last_checkpoint").exists()
        frame = pl.scan_delta(str(folder / "ledger" / "sessions")).collect()
        assert sorted(frame["seq"]) == list(range(1, 17))
        assert ledger.sessions("r").num_rows == 16


def test_a_path_that_urls_encode_reaches_engines_once_it_is_decoded(folder):
    root = folder / "a run's ledger é"
    with Ledger.open(root, create=True) as ledger, ledger.writer("r") as writer:
        writer.append(1, rows(0, 3)).wait()
    uris = files(root, "sessions")
    assert not os.path.exists(uris[0])
    assert duckdb.execute("SELECT count(*) FROM read_parquet($1)", [list(map(unquote, uris))]).fetchone() == (3,)


# -- another program checks the chain ----------------------------------------------------------------------------------

PLACE = ("run_id", "attempt", "writer", "seq", "chain", "block", "position")


def numbers(*values: int) -> bytes:
    return b"".join(b"i" + struct.pack("<q", value) for value in values)


def framed(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return b"s" + struct.pack("<Q", len(data)) + data


def database(path: Any) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def recomputed_heads(root: Any) -> dict[str, str]:
    """The head of every chain, from Parquet and SQLite alone; asserts each commit on the way."""
    stored = deltalake.DeltaTable(root / "sessions").to_pyarrow_table()
    heads = {}
    for path in sorted((root / "tails").glob("*.db")):
        with closing(database(path)) as tail:
            meta = {key: json.loads(value) for key, value in tail.execute("SELECT key, value FROM meta")}
            commits = tail.execute("SELECT first_seq, count, time, head FROM blocks ORDER BY first_seq").fetchall()
        run, attempt, writer = meta["run_id"], meta["attempt"], meta["writer"]
        mine = (
            pc.equal(stored["run_id"], run),
            pc.equal(stored["attempt"], attempt),
            pc.equal(stored["writer"], writer),
        )
        rows = stored.filter(pc.and_(pc.and_(*mine[:2]), mine[2])).sort_by("seq")
        who = framed(run) + numbers(attempt, writer)
        head = meta["genesis"]
        if meta["first_seq"] == 1:
            assert head == hashlib.sha256(b"reward ledger genesis 1" + who).hexdigest()
        for first, count, time, recorded in commits:
            part = rows.slice(first - meta["first_seq"], count)
            columns = {
                name: (
                    part[name].cast(pa.int64()).to_pylist() if name == "time" else part[name].to_pylist(),
                    field.type,
                )
                for name, field in zip(part.schema.names, part.schema, strict=True)
                if name not in PLACE
            }
            columns["time"] = (columns["time"][0], pa.int64())
            preamble = bytes.fromhex(head) + who + numbers(first, count, time)
            head = hashlib.sha256(b"reward ledger commit 2" + preamble + slow_columns(columns)).hexdigest()
            assert head == recorded
        heads[f"{run}/{attempt}/{writer}"] = head
    with closing(database(root / "ledger.db")) as ledger:
        columns = "seq, run_id, attempt, writer, step, at_step, time, kind, payload, hash"
        head = hashlib.sha256(b"reward ledger genesis 1events").hexdigest()
        for *fields, recorded in ledger.execute(f"SELECT {columns} FROM events ORDER BY seq"):
            coded = [
                b"n" if value is None else numbers(value) if isinstance(value, int) else framed(value)
                for value in fields
            ]
            head = hashlib.sha256(b"reward ledger event 1" + bytes.fromhex(head) + b"".join(coded)).hexdigest()
            assert head == recorded
    return heads | {"events": head}


def test_another_program_recomputes_every_head_from_the_open_tables(root):
    heads = recomputed_heads(root)
    assert sorted(heads) == ["dpo/1/0", "events", "grpo/1/0", "grpo/2/0", "grpo/2/1"]
    whole = b"".join(framed(name) + framed(heads[name]) for name in sorted(heads))
    with Ledger.open(root) as ledger:
        assert hashlib.sha256(whole).hexdigest() == ledger.head()


def test_another_program_recomputes_the_hash_of_every_text(root):
    sessions, texts = (deltalake.DeltaTable(root / name).to_pyarrow_table() for name in ("sessions", "texts"))
    recorded = {(row["chain"], row["seq"]): row for row in sessions.to_pylist()}
    checked = 0
    for row in texts.to_pylist():
        for name in ("prompt", "response", "rejected"):
            if row[name] is not None:
                salted = framed(row[f"{name}_salt"]) + framed(name) + row[name].encode()
                expected = hashlib.sha256(b"reward ledger text 1" + salted).digest()
                assert recorded[row["chain"], row["seq"]][f"{name}_hash"] == expected
                checked += 1
    assert checked > 100
