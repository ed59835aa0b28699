"""`rewards ...`: keep, read and check a reward ledger.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input, 3 a run that stopped itself. With --json, stdout holds
one JSON document; what is said about the work goes to stderr.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn

from rewards.errors import NoLedger, UserError

_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Bad usage is one line, as every other error.

    verbatim: options whose value is taken as it stands, whatever it begins with: a note may be `--` or `-maybe`.
    """

    verbatim: Collection[str] = ()

    def error(self, message: str) -> NoReturn:
        """Says the line and exits with 2."""
        line = " ".join(message.split())
        self.exit(2, f"error: {line} (see `{self.prog} --help`)\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Takes the verbatim values out before argparse looks at them."""
        given = list(sys.argv[1:] if args is None else args)
        kept = self._take_verbatim(given)
        parsed, rest = super().parse_known_args(given, namespace)
        for option, value in kept.items():
            setattr(parsed, option.lstrip("-").replace("-", "_"), value)
        return parsed, rest

    def _take_verbatim(self, given: list[str]) -> dict[str, str]:
        kept: dict[str, str] = {}
        i = 0
        while i < len(given):
            option, equals, value = given[i].partition("=")
            if option in self.verbatim and equals:
                kept[option] = value
                del given[i]
            elif option in self.verbatim and i + 1 < len(given):
                kept[option] = given[i + 1]
                del given[i : i + 2]
            else:
                i += 1
        return kept


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what it had to say
        return int(stop.code or 0)
    try:
        code: int = args.command(args)
        sys.stdout.flush()
    except NoLedger as error:
        made = "a recorded run, `rewards import` and `rewards simulate` make ledgers"
        print(f"error: {error.path}: no such folder; check the path ({made})", file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: ended by Ctrl-C; what was recorded stays", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        return unwritten(error)
    return code


def unwritten(error: OSError) -> int:
    """The exit code where output found no place: 0 when its reader has seen enough, else one line and 2.

    Raises: the error itself where it is of another kind.
    """
    if not isinstance(error, BrokenPipeError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error
    if error.filename is None:  # it was stdout: what is still in its buffer must not be tried again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 0
    print(f"error: {error.filename or 'output'}: {error.strerror}; make room and try again", file=sys.stderr)
    return 2


def entry() -> NoReturn:
    """The console script."""
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may know fewer letters than a text
    sys.exit(main())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from rewards.commands import (
        analyze,
        annotate,
        annotations,
        compare,
        export,
        head,
        import_,
        recalibrations,
        redact,
        replay,
        report,
        review,
        seal,
        show,
        simulate,
        sql,
        trigger,
        verify,
        why,
    )

    parser = Parser(prog="rewards", description="Keep, read and check a reward ledger.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    # In the order of a ledger's life: looked at, analysed, noted on, proven, kept.
    shown = (show, report, recalibrations, sql)
    analysed = (analyze, compare, why, replay, trigger)
    noted = (annotate, review, annotations)
    kept = (import_, export, head, verify, redact, seal, simulate)
    for module in (*shown, *analysed, *noted, *kept):
        module.register(commands)
    return parser


if __name__ == "__main__":
    entry()
