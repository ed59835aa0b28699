"""Raw rows from hub ids, files, folders, globs and built-in recipes, each with the place it came from."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rewards.errors import ConfigError, DataError, UserError
from rlhf.data.files import SUFFIXES, read_file, suffix_of
from rlhf.data.hub import read_hub

if TYPE_CHECKING:
    from rlhf.config import DataSection, DatasetSource

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PACKAGED = {"json", "csv", "parquet"}  # names that `datasets` gives to its file loaders: `path: json, data_files: X`


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in its source. row counts from 1 and is the line in JSON lines; line: null without lines."""

    dataset_id: str
    file: str
    row: int
    line: int | None
    values: dict[str, Any]

    @property
    def ref(self) -> str:
        """FILE:LINE, or FILE:ROW where a file has no lines."""
        return f"{self.file}:{self.line if self.line is not None else self.row}"

    def error(self, text: str) -> DataError:
        """The error `FILE:LINE: row N TEXT`."""
        return DataError(f"{self.ref}: row {self.row} {text}")


@dataclass(frozen=True)
class _Source:
    path: str
    name: str | None
    data_files: list[str]
    split: str
    columns: dict[str, str]
    fraction: float


def read_rows(data: DataSection, split: str | None = None, seed: int = 42) -> list[RawRow]:
    """All rows of a split, in the order of their sources, columns renamed, sampled down to fraction and max_rows.

    split: null means dataset_train_split. Sampling keeps the rows' order and depends only on `seed` and the place of
    the source in the list. A built-in recipe generates max_rows rows of its own `recipe_split`.

    Raises: ConfigError for a source that cannot be meant, DataError (file and row) for one that cannot be read.
    """
    rows: list[RawRow] = []
    labels: set[str] = set()
    for index, source in enumerate(_sources(data, split)):
        found = _rename(_apart(_read_source(source, data, seed), source, index, labels), source)
        labels |= {row.file for row in found}
        if source.fraction < 1:
            count = round(len(found) * source.fraction)
            if count == 0:
                raise DataError(f"{source.path}: fraction {source.fraction} of {len(found)} rows is no row")
            found = _sample(found, count, [seed, index])
        rows += found
    if data.max_rows is not None and len(rows) > data.max_rows:
        rows = _sample(rows, data.max_rows, [seed, 1_000_003])
    return rows


def _apart(rows: list[RawRow], source: _Source, index: int, taken: set[str]) -> list[RawRow]:
    """The rows under names that no earlier source has: two folders may each have a train.jsonl."""
    path = Path(source.path)
    for prefix in ("", f"{path.name if path.is_dir() else path.parent.name}/", f"datasets.{index}/"):
        if prefix != "/" and not taken & {prefix + row.file for row in rows}:
            break
    return [replace(row, file=prefix + row.file) for row in rows] if prefix else rows


def _sample(rows: list[RawRow], count: int, key: list[int]) -> list[RawRow]:
    generator = np.random.default_rng([part % 2**64 for part in key])
    return [rows[i] for i in sorted(generator.permutation(len(rows))[:count])]


def _sources(data: DataSection, split: str | None) -> list[_Source]:
    if data.dataset_name is not None:
        return [_Source(data.dataset_name, data.dataset_config, [], split or data.dataset_train_split, {}, 1.0)]
    if not data.datasets:
        raise ConfigError(
            "no data set: set data.dataset_name to a hub id, a file, a folder, a glob or a recipe (wild7)"
        )
    return [_source(entry, split, data.dataset_train_split) for entry in data.datasets]


def _source(entry: DatasetSource, split: str | None, train_split: str) -> _Source:
    files = [entry.data_files] if isinstance(entry.data_files, str) else list(entry.data_files or [])
    # An entry's own split is its training split: a request for the test split must not be answered with it.
    chosen = entry.split or train_split if split in (None, train_split) else split
    return _Source(entry.path, entry.name, files, chosen, dict(entry.columns or {}), entry.fraction)


def _rename(rows: list[RawRow], source: _Source) -> list[RawRow]:
    if not source.columns:
        return rows
    present = {name for row in rows for name in row.values}
    for old, new in source.columns.items():
        if old not in present:
            raise DataError(f"{source.path}: columns renames `{old}`, but the columns are {_names(present)}")
        if new in present and new not in source.columns:
            raise DataError(f"{source.path}: columns renames `{old}` to `{new}`, which exists already: rename that too")
    return [
        RawRow(r.dataset_id, r.file, r.row, r.line, {source.columns.get(k, k): v for k, v in r.values.items()})
        for r in rows
    ]


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _read_source(source: _Source, data: DataSection, seed: int) -> list[RawRow]:
    if source.path in _PACKAGED and source.data_files:
        return _read_files(_matches(source.data_files, Path(), source.path), source)
    recipe = _recipe(source.path)
    if recipe is not None:
        return _read_recipe(recipe, source, data, seed)
    path = Path(source.path).expanduser()
    if path.is_file():
        _only_train(source, "a single file")
        return _read_files([path], source)
    if path.is_dir():
        return _read_files(_folder_files(path, source), source)
    if glob.has_magic(source.path):
        _only_train(source, "a glob")
        return _read_files(_matches([source.path], Path(), source.path), source)
    looks_like_a_path = suffix_of(path) is not None or source.path.startswith((".", "/", "~"))
    if looks_like_a_path or not _HUB_ID.fullmatch(source.path):
        raise DataError(f"{source.path}: no such file or folder (from {Path.cwd()})")
    return _read_hub(source)


def _only_train(source: _Source, what: str) -> None:
    if source.split != "train":
        raise DataError(
            f"{source.path} is {what} and holds one split, `train`; split `{source.split}` is not in it: give a folder "
            f"with {source.split}.jsonl, or leave data.dataset_test_split unset to hold rows out"
        )


def _matches(patterns: Sequence[str], base: Path, named: str) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        hits = sorted(Path(hit) for hit in glob.glob(str(base / Path(pattern).expanduser()), recursive=True))
        hits = [hit for hit in hits if hit.is_file()]
        if not hits:
            raise DataError(f"{named}: no file matches {pattern}")
        found += [hit for hit in hits if hit not in found]
    return found


def _folder_files(folder: Path, source: _Source) -> list[Path]:
    """Files of the split: those named after it (train.jsonl, train-00000-of-00002.parquet), else, for train, all."""
    if source.data_files:
        return _matches(source.data_files, folder, source.path)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and suffix_of(p) and not p.name.startswith("."))
    if not files:
        raise DataError(f"{source.path}: the folder has no data file ({', '.join(SUFFIXES)})")
    named = [
        p for p in files if re.match(rf"{re.escape(source.split)}([._-]|$)", p.name) or p.parent.name == source.split
    ]
    if named:
        return named
    if source.split != "train":
        raise DataError(f"{source.path}: the folder has no file for split `{source.split}` (e.g. {source.split}.jsonl)")
    return files


def _read_files(files: list[Path], source: _Source) -> list[RawRow]:
    names = [file.name for file in files]
    rows: list[RawRow] = []
    for file in files:
        # Row ids must not depend on where the data lie: the bare name, unless two files share it.
        label = file.name if names.count(file.name) == 1 else f"{file.parent.name}/{file.name}"
        found = [RawRow(source.path, label, row, line, values) for row, line, values in read_file(file)]
        if not found:
            raise DataError(f"{file}: the file has no rows")
        rows += found
    return rows


def _recipe(name: str) -> Path | None:
    """The recipe of a built-in data set, of a folder that holds a recipe.yaml, or that file itself."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if "/" in name or glob.has_magic(name) or suffix_of(path) is not None:
        return None
    from rewards.functions.recipes import find_recipe

    try:
        return Path(find_recipe(name))
    except UserError:
        return None


def _read_recipe(recipe: Path, source: _Source, data: DataSection, seed: int) -> list[RawRow]:
    """max_rows rows of a recipe, or as many as it declares for the split."""
    from rlhf.data.synthetic import Split, generate, recipe_sizes

    sizes = recipe_sizes(recipe)
    # `datasets[].split` and `dataset_test_split` may name a recipe's split too; `train` is none of them.
    split = source.split if source.split in sizes else data.recipe_split
    if split not in sizes:
        said = "data.recipe_split is not set" if split is None else f"it has no split `{split}`"
        raise ConfigError(f"{source.path} is a recipe, and {said}: choose {', '.join(sizes)}")
    if source.split not in (data.dataset_train_split, split):
        raise ConfigError(f"{source.path} is a recipe and has no split `{source.split}`: choose {', '.join(sizes)}")
    rows = generate(recipe, cast("Split", split), data.max_rows or sizes[split], seed)
    label = f"{recipe.parent.name}/{split}"
    return [RawRow(recipe.parent.name, label, i, None, dict(values)) for i, values in enumerate(rows, 1)]


def _read_hub(source: _Source) -> list[RawRow]:
    rows = read_hub(source.path, source.name, source.data_files, source.split)
    label = "/".join([source.path, *([source.name] if source.name else []), source.split])
    return [RawRow(source.path, label, i, None, values) for i, values in enumerate(rows, 1)]
