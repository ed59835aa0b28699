"""From a command line to a running stage; configuration, output folder and rows are checked before torch is loaded."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from rewards.cli import Parser, unwritten
from rewards.config import Loaded, load, read_yaml, split_overrides
from rewards.errors import ConfigError, UserError
from rewards.yaml_nodes import entries
from rlhf.config import RETIRED, STAGES, stage_of
from rlhf.config_tables import known_elsewhere


def launch(
    stage: str,
    config_path: str | None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: str = "auto",
) -> dict[str, Any]:
    """Loads a stage's configuration and runs it; returns what run.json holds."""
    path = Path(config_path) if config_path is not None else None
    if path is not None and "stages" in entries(read_yaml(path)):
        raise ConfigError(f"{path}: is a pipeline; run all of it with `rlhf run {path}`")
    loaded = load(STAGES[stage], path, overrides, retired=RETIRED, known_elsewhere=known_elsewhere(stage))
    claim_output_dir(Path(loaded.config.train.output_dir), resume=resume, overwrite=overwrite)
    if resume and loaded.config.train.resume_from_checkpoint is None:
        say_if_anew(Path(loaded.config.train.output_dir))
    return start(stage, loaded, resume=resume, progress=progress)


def main(argv: Sequence[str] | None = None) -> int:
    """What `experiments/train.py` does: runs a stage or a pipeline; returns the exit code."""
    parser = Parser(description="Runs the stage or the pipeline that a configuration describes.")
    parser.add_argument("--config", required=True, metavar="FILE.yaml")
    add_run_arguments(parser)
    try:
        args, rest = parser.parse_known_args(argv)
    except SystemExit as stop:  # argparse has said what it had to say
        return int(stop.code or 0)
    return told(lambda: _main(args, rest))


def _main(args: argparse.Namespace, rest: Sequence[str]) -> int:
    options = {"resume": args.resume, "overwrite": args.overwrite, "progress": args.progress}
    if "stages" in entries(read_yaml(Path(args.config))):
        from rlhf.pipeline import run_pipeline

        result = run_pipeline(args.config, split_overrides(rest), **options)
    else:
        result = launch(stage_of(Path(args.config)), args.config, split_overrides(rest), **options)
    if args.json and int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result, indent=1, sort_keys=True))
    return 0


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back. Unwinds as Ctrl-C does, so that what is open is closed."""


def told(command: Callable[[], int]) -> int:
    """The exit code of a command; errors for people and interruptions are one line on stderr."""
    before = _on_sigterm(_terminate)
    try:
        code = command()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        by, code = ("SIGTERM", 143) if isinstance(error, Terminated) else ("Ctrl-C", 130)
        print(
            f"error: ended by {by}; what was recorded stays; --resume goes on from the newest checkpoint",
            file=sys.stderr,
        )
        return code
    except OSError as error:
        return unwritten(error)
    finally:
        if before is not None:
            _on_sigterm(before)


def _terminate(*_: object) -> NoReturn:
    # A second one, while the first is still closing files, ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def _on_sigterm(handler: Any) -> Any:
    if threading.current_thread() is not threading.main_thread():
        return None  # a notebook may run commands elsewhere, where signals cannot be handled
    return signal.signal(signal.SIGTERM, handler)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that trains takes."""
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output_dir")
    parser.add_argument("--overwrite", action="store_true", help="rename a non-empty output_dir aside and start anew")
    parser.add_argument("--progress", choices=["auto", "rich", "plain", "none"], default="auto")
    parser.add_argument("--json", action="store_true", help="print the outcome as one JSON document on stdout")


def start(stage: str, loaded: Loaded[Any], *, resume: bool, progress: str) -> dict[str, Any]:
    """Reads the rows, then loads torch and runs the stage."""
    from rlhf.stages.inputs import read_inputs

    inputs = read_inputs(stage, loaded.config)
    set_up_process()
    from rlhf.stages.registry import WORKS
    from rlhf.stages.run import run_stage

    return run_stage(stage, WORKS[stage], loaded, inputs, resume=resume, progress=progress)  # type: ignore[arg-type]


def set_up_process() -> None:
    """Sets how long an idle thread spins before it sleeps, and that large tensors lie on large pages.

    A moment where other processes want the cores, else longer: beside a busy process spinning threads train a small
    model at half the speed or less; alone, waking up for every small operation costs a tenth. Without large pages the
    texts' changing lengths make thousands of page faults a step. Takes effect before torch is loaded, and only where
    the environment does not say otherwise.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = "1000" if _cores_are_wanted() else "10000"


def _cores_are_wanted() -> bool:
    """Whether fewer cores are free than this process has threads; True where that cannot be told."""
    cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    running = []
    for _ in range(5):
        try:
            fields = Path("/proc/loadavg").read_text().split()
        except OSError:
            return True
        running.append(int(fields[3].split("/")[0]) - 1)  # without this process
        time.sleep(0.01)
    return statistics.median(running) + (int(threads) if threads.isdecimal() else cores) > cores


def claim_output_dir(folder: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """Refuses a folder with content unless it is resumed or renamed aside; returns the new name of a renamed one.

    Raises: ConfigError when the folder holds something and neither flag is given, or both are; when there is nothing to
    resume; when no folder can be there.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    # Only the first rank looks: the others would see what it has begun to write.
    if int(os.environ.get("RANK", "0")) != 0:
        return None
    with _as_output_dir(folder):
        _check_writable(folder)
        held = folder.exists() and any(folder.iterdir())
    if resume and not held:
        raise ConfigError(f"{folder}: nothing to resume here; check output_dir, or start without --resume")
    if resume or not held:
        return None
    if not overwrite:
        raise ConfigError(f"{folder}: not empty; --resume goes on with it, --overwrite renames it aside first")
    aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    n = 1
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-{n}")
        n += 1
    with _as_output_dir(folder):
        folder.rename(aside)
    print(f"{folder}: the old content is now in {aside}", file=sys.stderr)
    return aside


def say_if_anew(folder: Path) -> None:
    """Says that a resumed stage begins at its first step, where it has left no checkpoint."""
    if int(os.environ.get("RANK", "0")) == 0 and folder.exists() and not any(folder.glob("checkpoint-*")):
        print(f"{folder}: no checkpoint yet; starts again at step 1, what it recorded is superseded", file=sys.stderr)


@contextmanager
def _as_output_dir(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{folder}: cannot be the output_dir: {reason}; choose another folder") from error


def _check_writable(folder: Path) -> None:
    """Makes the folder and a file in it, and removes both again: minutes of training must not end at a closed door."""
    made = []
    missing = [path for path in [folder, *folder.parents] if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            made.append(path)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for path in reversed(made):
            with suppress(OSError):  # somebody else has begun to use it
                path.rmdir()
