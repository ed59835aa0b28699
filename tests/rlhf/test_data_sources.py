"""Raw rows: every kind of source, and one line that names file and row for everything that can be wrong with one."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards.errors import ConfigError, DataError, UserError
from rlhf.config import DataSection, DatasetSource
from rlhf.data.sources import read_rows

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(6)]


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0])] + [",".join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(text)
    return path


def read(path: Path | str, **settings) -> list:
    return read_rows(DataSection(dataset_name=str(path), **settings))


def fails(path: Path | str, **settings) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.csv"])
def test_every_file_type_gives_the_same_rows(tmp_path, name):
    rows = read(write(tmp_path / name))
    assert [row.values for row in rows] == ROWS
    assert [row.row for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row.file for row in rows} == {name}


def test_json_lines_under_the_name_json_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    assert [row.values["prompt"] for row in read(tmp_path / "a.json")] == ["x", "y"]


def test_a_folder_gives_the_files_of_the_split_or_all_of_them(tmp_path):
    write(tmp_path / "d" / "train.jsonl", ROWS[:4])
    write(tmp_path / "d" / "test.jsonl", ROWS[4:])
    data = DataSection(dataset_name=str(tmp_path / "d"))
    assert len(read_rows(data)) == 4
    assert len(read_rows(data, "test")) == 2
    write(tmp_path / "e" / "one.jsonl", ROWS[:1])
    write(tmp_path / "e" / "two.parquet", ROWS[1:3])
    assert len(read(tmp_path / "e")) == 3
    with pytest.raises(DataError, match="no file for split `test`"):
        read_rows(DataSection(dataset_name=str(tmp_path / "e")), "test")


def test_a_glob_gives_its_files_in_order(tmp_path):
    write(tmp_path / "b.jsonl", ROWS[2:4])
    write(tmp_path / "a.jsonl", ROWS[:2])
    assert [row.values for row in read(tmp_path / "*.jsonl")] == ROWS[:4]
    assert "no file matches" in fails(tmp_path / "*.csv")


def test_files_of_one_name_in_two_folders_keep_apart(tmp_path):
    write(tmp_path / "x" / "part.jsonl", ROWS[:1])
    write(tmp_path / "y" / "part.jsonl", ROWS[1:2])
    assert [row.ref for row in read(str(tmp_path / "*" / "part.jsonl"))] == ["x/part.jsonl:1", "y/part.jsonl:1"]


def test_sources_are_joined_with_their_columns_renamed(tmp_path):
    one, two = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", [{"q": "x", "a": "y"}])
    data = DataSection(
        datasets=[
            DatasetSource(path=str(one)),
            DatasetSource(path=str(two), columns={"q": "prompt", "a": "completion"}),
        ]
    )
    rows = read_rows(data)
    assert len(rows) == 7
    assert rows[-1].values == {"prompt": "x", "completion": "y"}


def test_sources_with_files_of_one_name_keep_apart(tmp_path):
    one, two = write(tmp_path / "x" / "train.jsonl", ROWS[:1]), write(tmp_path / "y" / "train.jsonl", ROWS[:1])
    sources = [DatasetSource(path=str(path)) for path in (one, two.parent, two)]
    refs = [row.ref for row in read_rows(DataSection(datasets=sources))]
    assert refs == ["train.jsonl:1", "y/train.jsonl:1", "datasets.2/train.jsonl:1"]


def test_columns_may_swap_but_not_fall_on_each_other(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c"}])

    def rows(columns):
        return read_rows(DataSection(datasets=[DatasetSource(path=str(path), columns=columns)]))

    assert rows({"prompt": "completion", "completion": "prompt"})[0].values == {"completion": "p", "prompt": "c"}
    with pytest.raises(DataError, match="which exists already"):
        rows({"prompt": "completion"})
    with pytest.raises(DataError, match="renames `question`, but the columns are `completion`, `prompt`"):
        rows({"question": "prompt"})


def test_the_form_of_the_hub_loaders_reads_local_files(tmp_path):
    write(tmp_path / "a.jsonl")
    source = DatasetSource(path="json", data_files=str(tmp_path / "a.jsonl"))
    assert len(read_rows(DataSection(datasets=[source]))) == 6


def test_an_entrys_own_split_is_not_an_answer_to_the_test_split(tmp_path):
    write(tmp_path / "d" / "train_sft.jsonl", ROWS[:4])
    write(tmp_path / "d" / "test.jsonl", ROWS[4:])
    data = DataSection(datasets=[DatasetSource(path=str(tmp_path / "d"), split="train_sft")])
    assert len(read_rows(data)) == 4
    assert len(read_rows(data, "test")) == 2


def test_fraction_and_max_rows_sample_by_seed_and_keep_order(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": str(i)} for i in range(100)])

    def drawn(seed, **settings):
        data = DataSection(datasets=[DatasetSource(path=str(path), fraction=settings.pop("fraction", 1.0))], **settings)
        return [row.row for row in read_rows(data, seed=seed)]

    assert len(drawn(1, fraction=0.3)) == 30
    assert drawn(1, max_rows=10) == drawn(1, max_rows=10) == sorted(drawn(1, max_rows=10))
    assert drawn(1, max_rows=10) != drawn(2, max_rows=10)
    assert drawn(1, max_rows=10) != list(range(1, 11))
    assert drawn(1, max_rows=500) == list(range(1, 101))
    with pytest.raises(DataError, match="is no row"):
        drawn(1, fraction=0.001)


def test_a_recipe_gives_max_rows_rows_or_as_many_as_it_declares():
    data = DataSection(dataset_name="wild7", recipe_split="pairs", max_rows=7)
    rows = read_rows(data)
    assert len(rows) == 7
    assert {"prompt", "chosen", "rejected"} <= set(rows[0].values)
    assert rows[6].ref == "wild7/pairs:7"
    assert len(read_rows(DataSection(dataset_name="wild7", recipe_split="heldout"))) == 600
    assert [row.file for row in read_rows(data, "heldout")] == ["wild7/heldout"] * 7
    assert "choose demonstrations, pairs" in fails("wild7")
    assert "no split `parts`" in fails("wild7", recipe_split="parts")
    with pytest.raises(ConfigError, match="no split `test`"):
        read_rows(data, "test")


def test_a_missing_file_is_named(tmp_path):
    assert fails(tmp_path / "nothing.jsonl").startswith(f"{tmp_path}/nothing.jsonl: no such file")
    assert "no such file or folder" in fails("./nothing")


def test_an_empty_file_is_an_error(tmp_path):
    for name, text in [("a.jsonl", ""), ("b.jsonl", "\n\n"), ("c.csv", "prompt,completion\n"), ("d.json", "[]")]:
        (tmp_path / name).write_text(text)
        assert "has no rows" in fails(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert "no data file" in fails(tmp_path / "empty")


def test_a_broken_json_line_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n\n{"prompt": \n')
    assert fails(path).startswith(f"{path}:3: broken JSON")
    path.write_text('{"prompt": "x"}\n[1, 2]\n')
    assert fails(path) == f"{path}:2: row 2 is list, not an object with named columns"


def test_blank_lines_do_not_shift_row_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n\n{"prompt": "y"}\n')
    assert [(row.row, row.ref) for row in read(tmp_path / "a.jsonl")] == [(1, "a.jsonl:1"), (3, "a.jsonl:3")]


def test_a_ragged_table_is_named_with_line_and_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"two\nlines",b\nonly one\n')
    assert fails(path) == f"{path}:4: row 2 has 1 cells, the header 2"
    path.write_text("prompt,prompt\na,b\n")
    assert "the column `prompt` appears twice" in fails(path)
    path.write_text('prompt,completion\n"never closed,b\n')
    assert "not a readable table" in fails(path)


def test_a_table_cell_may_be_longer_than_the_csv_modules_limit(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\nx," + "y" * 200_000 + "\n")
    assert len(read(tmp_path / "a.csv")[0].values["completion"]) == 200_000


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    assert "damaged gzip" in fails(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "x"}\n' * 100)[:-9])
    assert "damaged gzip" in fails(tmp_path / "b.jsonl.gz")
    (tmp_path / "c.parquet").write_bytes(b"PAR0")
    assert "not a readable parquet file" in fails(tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    assert "not UTF-8" in fails(tmp_path / "d.jsonl")
    (tmp_path / "e.txt").write_text("x")
    assert "known are .jsonl" in fails(tmp_path / "e.txt")


def test_a_split_that_a_single_file_cannot_have_is_refused(tmp_path):
    assert "split `validation` is not in it" in fails(write(tmp_path / "a.jsonl"), dataset_train_split="validation")


def test_no_source_is_an_error_that_says_what_can_be_one():
    with pytest.raises(ConfigError, match=r"no data set: set data\.dataset_name"):
        read_rows(DataSection())


HUB = """
import sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from rewards.errors import DataError
from rlhf.config import DataSection
from rlhf.data.sources import read_rows

class NoSuchRepository(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
    def log_message(self, *args):
        pass

if sys.argv[1] == "serve":
    import os
    server = HTTPServer(("127.0.0.1", 0), NoSuchRepository)
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
start = time.monotonic()
try:
    read_rows(DataSection(dataset_name="someone/some_pairs"))
except DataError as error:
    print(error)
assert time.monotonic() - start < 15
assert "torch" not in sys.modules
"""


def ask_hub(home: Path, how: str, **variables: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    command = [sys.executable, "-c", HUB, how]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert done.stderr == ""
    return line


def test_a_hub_id_without_network_is_one_clear_line_before_torch_is_loaded(tmp_path):
    line = ask_hub(tmp_path, "offline", HF_HUB_OFFLINE="1")
    assert line == (
        "someone/some_pairs: no file or folder of that name here, and the hub cannot be reached (HF_HUB_OFFLINE is "
        "set): connect to the network, or download the files and give their path as data.dataset_name"
    )
    line = ask_hub(tmp_path, "refused", HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached: connect" in line


def test_a_hub_id_that_does_not_exist_is_told_from_a_missing_network(tmp_path):
    assert "no such data set on the hub" in ask_hub(tmp_path, "serve")


def test_the_data_path_up_to_tokens_needs_neither_torch_nor_the_hub_library():
    code = (
        "import sys\n"
        "import rlhf.data.holdout, rlhf.data.tokenise, rlhf.data.mixture, rlhf.data.synthetic\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
