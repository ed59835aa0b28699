"""`rewards why`: why the mean baseline reward differs between two windows of a run, or between two runs."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from rewards.commands.arguments import About, Commands, add_command, add_json, whole_number
from rewards.commands.lookup import chosen_runs
from rewards.commands.output import line, print_json, print_table, say
from rewards.counted import counted
from rewards.errors import UserError

if TYPE_CHECKING:
    from rewards.analysis.why import Window
    from rewards.ledger import Ledger

ABOUT = About(
    "why the mean baseline reward differs between two windows of a run, or between two runs",
    "A and B are session ranges (1-1000), `first` or `last` (the thousand sessions at each end, or the halves of a\n"
    "short run), `all`, or two runs by name. With --run-b the sessions of B are those of that run.\n\n"
    "The change is split exactly into components, weights, the mixture of categories, scorer versions and missing\n"
    "values; no order of the changes is favoured, and the parts sum to the change. The gradient credit says which\n"
    "share of the advantages' pull each component has in each window. Intervals are 95 % bootstraps over groups.\n\n"
    "  rewards why LEDGER first last --run demo/grpo\n"
    "  rewards why LEDGER 1-1000 11848-12847 --run demo/grpo\n"
    "  rewards why LEDGER demo/grpo demo/fork",
)

_RANGE = re.compile(r"([\d,]+)\s*-\s*([\d,]+)")
_WORDS = ("first", "last", "all")


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(commands, "why", run, ABOUT)
    parser.add_argument("a", metavar="A", help="sessions before: 1-1000, first, all, or a run")
    parser.add_argument("b", metavar="B", help="sessions after: 11848-12847, last, all, or a run")
    parser.add_argument("--run", help="the run of A and B; default: the newest online run")
    parser.add_argument("--run-b", metavar="RUN", help="the run of B, where it is another one")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the decomposition."""
    from rewards.analysis.why import why
    from rewards.ledger import Ledger

    with Ledger.open(args.ledger) as ledger:
        runs = {str(entry["run_id"]): int(entry["sessions"]) for entry in ledger.runs()}
        run_a, asked_a, run_b, asked_b = _asked(args, ledger, list(runs))
        a, b = _window(ledger, run_a, asked_a, runs[run_a]), _window(ledger, run_b, asked_b, runs[run_b])
    document = why(a, b)
    if args.json:
        print_json(document)
    else:
        _print(document)
    return 0


def _asked(args: argparse.Namespace, ledger: Ledger, known: list[str]) -> tuple[str, str, str, str]:
    """Run and window of A, run and window of B."""
    from rewards.runs import choose_run, pipeline_kinds

    for name in (args.run, args.run_b):
        chosen_runs(name, ledger.runs())
    named = [text in known and not _is_window(text) for text in (args.a, args.b)]
    if any(named):
        if not all(named):
            odd = args.b if named[0] else args.a
            raise UserError(f"`{odd}` is no run, and the other side is one: give two runs, or two windows with --run")
        if args.run is not None or args.run_b is not None:
            raise UserError("A and B are runs already: leave --run and --run-b out")
        return args.a, "all", args.b, "all"
    for text in (args.a, args.b):
        if not _is_window(text):
            there = ", ".join(f"`{name}`" for name in known) or "no run yet"
            raise UserError(
                f"`{text}` is neither a window (1-1000, first, last, all) nor a run; the ledger holds: {there}"
            )
    run_a = args.run
    if run_a is None:
        run_a = choose_run(ledger.runs(), pipeline_kinds(ledger.events(kind="attempt_started")))
    return run_a, args.a, args.run_b or run_a, args.b


def _is_window(text: str) -> bool:
    return text in _WORDS or _RANGE.fullmatch(text) is not None


def _window(ledger: Ledger, run_id: str, asked: str, sessions: int) -> Window:
    from rewards.analysis.scored import read_scored
    from rewards.analysis.why import Window

    first, last = _bounds(run_id, asked, sessions)
    scored, _ = read_scored(ledger, run_id, first, last)
    return Window(run_id, asked, first, last, scored)


def _bounds(run_id: str, asked: str, sessions: int) -> tuple[int, int]:
    from rewards.analysis.summary import end_windows

    if not sessions:
        raise UserError(f"run `{run_id}` has no session yet")
    if asked == "all":
        return 1, sessions
    if asked in _WORDS:
        ends = end_windows(sessions)
        if ends is None:
            raise UserError(f"run `{run_id}` has one session: it has no two ends; ask for `all`")
        window = ends[asked == "last"]
        return window.start + 1, window.stop
    found = _RANGE.fullmatch(asked)
    assert found is not None
    try:
        first, last = (whole_number(text) for text in found.groups())
    except argparse.ArgumentTypeError as error:
        raise UserError(f"window {asked}: {error}") from None
    if first > last:
        raise UserError(f"window {asked}: give the lower session first")
    if not 1 <= first <= last <= sessions:
        raise UserError(f"window {asked}: the sessions of `{run_id}` are 1 to {sessions:,}")
    return first, last


def _print(document: dict[str, Any]) -> None:
    a, b = document["a"], document["b"]
    for name, side in (("A", a), ("B", b)):
        print(
            f"{name}: {line(side['run'])}, sessions {side['first']:,} to {side['last']:,} "
            f"({side['scored']:,} scored, {counted(side['groups'], 'group')})"
        )
    if document["parts"]:
        print()
        ordered = sorted(document["parts"], key=lambda part: -abs(part["value"]))
        heads = ["part", "kind", "change", "95 % interval", "detectable"]
        rows = [[p["name"], p["kind"], f"{p['value']:+.4g}", _interval(p), _number(p["mde"])] for p in ordered]
        rows.append(["sum", "", f"{document['sums_to']:+.4g}", _pair(*document["change_interval"]), ""])
        print_table(heads, rows, right=heads[2:])
        _print_categories(document["by_category"])
        _print_credits(document)
        for part in ordered:
            if part["note"]:
                print(line(part["note"]))
    print()
    print(line(document["verdict"]))
    if document["why"]:
        say(line(document["why"]))


def _print_categories(found: list[dict[str, Any]]) -> None:
    if len(found) < 2:
        return
    print()
    heads = ["category", "share A", "share B", "mean A", "mean B", "within", "mixture"]
    rows = [
        [
            row["category"] or "(none)",
            f"{row['share_a']:.1%}",
            f"{row['share_b']:.1%}",
            _number(row["mean_a"]),
            _number(row["mean_b"]),
            f"{row['within']:+.3g}",
            f"{row['mixture']:+.3g}",
        ]
        for row in found
    ]
    print_table(heads, rows, right=heads[1:])


def _print_credits(document: dict[str, Any]) -> None:
    sides = [{c["name"]: c for c in document[key]["components"]} for key in ("credit_a", "credit_b")]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    print()
    if names:
        heads = ["gradient credit", "A", "95 % interval A", "B", "95 % interval B"]
        rows = []
        for name in names:
            cells = [name]
            for side in sides:
                found = side.get(name)
                cells += ["", ""] if found is None else [f"{found['credit']:z.1%}", _percents(found)]
            rows.append(cells)
        print_table(heads, rows, right=heads[1:])
    for name, key in (("A", "credit_a"), ("B", "credit_b")):
        credit = document[key]
        if credit["why"]:
            print(f"gradient credit in {name}: {line(credit['why'])}")
        if credit["left_out"]:
            print(f"left out of the credit in {name}: {line(credit['left_out'])}")


def _interval(found: dict[str, Any]) -> str:
    return _pair(found["low"], found["high"])


def _pair(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.3g} to {high:+.3g}"


def _percents(found: dict[str, Any]) -> str:
    return "" if found["low"] is None else f"{found['low']:z.1%} to {found['high']:z.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
