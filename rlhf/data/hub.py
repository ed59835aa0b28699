"""Rows of hub data sets, through Hugging Face's library; imported only when such a data set is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rewards.errors import DataError


def read_hub(name: str, config: str | None, data_files: Sequence[str], split: str) -> list[dict[str, Any]]:
    """Every row of a split. Without a network the library's cache still serves what was loaded before.

    Raises: DataError naming the data set and what to do: library missing, hub out of reach, no such data set, no rows.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name}: hub data sets need the extra: pip install 'rlhf-ledger[train]'") from error
    files = list(data_files) or None
    try:
        with _cache_only(datasets) if not _reachable(name) else _as_it_is():
            table = datasets.load_dataset(name, config, data_files=files, split=split)
    except DataError:
        raise
    except ConnectionError as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise DataError(
            f"{name}: no file or folder of that name here, and the hub cannot be reached{offline}: "
            "connect to the network, or download the files and give their path as data.dataset_name"
        ) from error
    except Exception as error:  # the library raises a dozen unrelated types: what a person needs is name and reason
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{name} (split `{split}`): not readable from the hub: {reason}") from error
    if len(table) == 0:
        raise DataError(f"{name}: split `{split}` has no rows")
    return [dict(values) for values in table]


def _reachable(name: str) -> bool:
    """Whether the hub answers. Asked once, since the library would try for half a minute and write about each try.

    Raises: DataError where it answers that there is no such data set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=10)
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{name}: no file or folder of that name here, and no such data set on the hub (or it is private: log in)"
        ) from error
    except HfHubHTTPError:
        return True
    except Exception:  # every way in which a connection can fail, by the type of whichever client the library uses
        return False
    return True


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _cache_only(library: Any) -> Iterator[None]:
    """Keeps the library from connecting for the length of one call."""
    from huggingface_hub import constants

    before = library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
