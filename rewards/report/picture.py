"""The report's curves as one PNG: reward, spread, unsolicited content and KL over the sessions."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rewards.report import write_whole
from rewards.report.charts import specs

Data = Mapping[str, Any]
PANELS = (("reward", "Mean reward"), ("spread", "Spread"), ("unsolicited", "Unsolicited content"), ("kl", "KL, nats"))


def write_png(data: Data, path: str | os.PathLike[str]) -> Path:
    """Draws the curves that the data can fill.

    Raises: UserError without matplotlib, when there is no curve, or when the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a picture needs matplotlib: pip install 'rlhf-ledger[analysis]'") from error
    found = specs(data)
    panels = [(found[name], title) for name, title in PANELS if name in found]
    if not panels:
        raise UserError(f"run {data['run']}: no curve to draw: it needs two bins of at least 32 sessions each")
    figure = Figure(figsize=(9, 2.4 * len(panels)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (spec, title) in zip(axes, panels, strict=True):
        _draw(axis, spec["series"], title)
        for mark in spec["marks"]:
            axis.axvline(mark["x"], color="0.6", linewidth=0.8, linestyle=":")
            if axis is axes[0]:
                axis.annotate(
                    mark["tag"],
                    (mark["x"], 1),
                    xycoords=("data", "axes fraction"),
                    fontsize=7,
                    ha="center",
                    va="bottom",
                )
    axes[-1].set_xlabel("session")
    head = (data["ledger"]["head"] or "")[:12]
    figure.suptitle(f"{data['run']}, {data['sessions']:,} sessions, ledger {head}", fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return write_whole(Path(path), drawn.getvalue())


def _draw(axis: Any, series: Sequence[Data], title: str) -> None:
    for line in series:
        points = [point for point in line["points"] if point[1] is not None]
        x, y = [point[0] for point in points], [point[1] for point in points]
        (drawn,) = axis.plot(x, y, "--" if line["dashed"] else "-", linewidth=1.3, label=line["name"])
        band = [point for point in points if point[2] is not None]
        if band:
            sides = ([point[2] for point in band], [point[3] for point in band])
            axis.fill_between([point[0] for point in band], *sides, color=drawn.get_color(), alpha=0.15, linewidth=0)
    axis.set_title(title, loc="left", fontsize=9)
    axis.tick_params(labelsize=8)
    if len(series) > 1:
        axis.legend(fontsize=7, frameon=False)
