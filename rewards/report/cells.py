"""Pieces of a page: text is escaped unless it is already markup, and a number comes with its interval and its n."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"  # noqa: RUF001 - a dash is what a table shows for nothing

# With more columns than this an interval and its n stand on lines of their own.
WIDE = 6


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Text as HTML; markup as it is; None as a dash."""
    if isinstance(value, Markup):
        return value
    return Markup(MISSING if value is None else html.escape(str(value)))


def join(parts: Sequence[object]) -> Markup:
    """Pieces of a page, one after another."""
    return Markup("".join(escape(part) for part in parts))


def tag(name: str, content: object, **attributes: object) -> Markup:
    """An element. `class_` is class, and an underscore in a name is a hyphen."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{said}>{escape(content)}</{name}>")


def count(value: Any) -> str:
    """A whole number with its thousands set apart."""
    return MISSING if value is None else f"{int(value):,}"


def counted(value: Any, one: str) -> str:
    """A count with its noun: `1 step`, `2 steps`."""
    return f"{count(value)} {one if value == 1 else one + 's'}"


def number(value: Any, unit: str = "measure") -> str:
    """A number in its unit: `share` in per cent, `types` to one digit after the point, any other measure to three."""
    if value is None:
        return MISSING
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "types" or abs(value) >= 100:
        return f"{value:,.1f}"
    return f"{value:.3f}"


def estimate(found: Mapping[str, Any] | None, unit: str = "measure") -> Markup:
    """A value over its interval and n, or the reason why there is none."""
    if not found or found.get("value") is None:
        why = (found or {}).get("why")
        return tag("span", why or MISSING, class_="none")
    size = f"n {count(found['n'])}" if found.get("n") is not None else "n unknown"
    if (found.get("why") or "").startswith("all values are equal"):
        size += ", all equal"
    notes: list[object] = [tag("span", size, class_="n")]
    if found.get("low") is not None and found.get("high") is not None:
        notes.insert(0, interval(found["low"], found["high"], unit) + ", ")
    return join([tag("span", number(found["value"], unit), class_="value"), tag("span", join(notes), class_="ci")])


def interval(low: float, high: float, unit: str = "measure") -> str:
    """Two limits, their unit said once."""
    return f"{number(low, unit).removesuffix(' %')} to {number(high, unit)}"


def end(pair: Mapping[str, Any], name: str, unit: str = "measure") -> Markup:
    """One end of a first-to-last pair."""
    low, high = pair.get(f"{name}_interval") or (None, None)
    found = {"value": pair.get(name), "low": low, "high": high, "n": pair.get(f"{name}_n"), "why": pair.get("why")}
    return estimate(found, unit)


def span(pair: Mapping[str, Any]) -> Markup:
    """A picture of two shares on a scale from 0 to 1 with their intervals: the first hollow, the last filled."""
    width, height, edge = 180, 26, 6
    if pair.get("first") is None or pair.get("last") is None:
        return Markup("")

    def x(value: float) -> str:
        return f"{edge + value * (width - 2 * edge):.1f}"

    parts = [f'<line class="track" x1="{edge}" x2="{width - edge}" y1="13" y2="13"/>']
    for name, style, y in (("first", "before", 8), ("last", "after", 18)):
        low, high = pair.get(f"{name}_interval") or (None, None)
        if low is not None and high is not None:
            parts.append(f'<line class="{style}" x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{style}" cx="{x(pair[name])}" cy="{y}" r="3.5"/>')
    # The numbers stand in the cells beside it.
    frame = f'<svg class="span" width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">'
    return Markup(frame + "".join(parts) + "</svg>")


def table(caption: str, head: Sequence[object], rows: Sequence[Sequence[object]], numeric: bool = True) -> Markup:
    """A table in a frame that scrolls by itself; the first column heads its row."""
    top = join([tag("th", name, scope="col") for name in head])
    body = join(
        [tag("tr", join([tag("th", row[0], scope="row"), *(tag("td", found) for found in row[1:])])) for row in rows]
    )
    inner = join([tag("caption", caption), tag("thead", tag("tr", top)), tag("tbody", body)])
    style = ("numeric wide" if len(head) > WIDE else "numeric") if numeric else None
    whole = tag("table", inner, class_=style)
    return tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def nothing(why: object) -> Markup:
    """What a section says when the record cannot support it."""
    return tag("p", join(["Not in this record: ", why or "no data", "."]), class_="nothing")


def paragraph(*parts: object) -> Markup:
    """A paragraph."""
    return tag("p", join(parts))


def section(identity: str, title: str, *parts: object) -> Markup:
    """A section of the page with a heading that can be linked."""
    heading = tag("h2", title, id=identity)
    return tag("section", join([heading, *parts]), aria_labelledby=identity)
