"""# Did the reward converge, and when?

Read on the baseline reward, which is the signal before any differential: the adjusted reward also moves when somebody
changes the schedule. Phases are found from the data, and recalibrations are drawn but never used to place a boundary.
"""

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from rewards import Ledger
from rewards.analysis import phases, plateau, transition
from rewards.analysis.convergence import mean_series, step_bins
from rewards.analysis.data import RunData
from rewards.runs import choose_run, pipeline_kinds

plt.rcParams.update({"figure.figsize": (9, 3.4), "figure.constrained_layout.use": True, "axes.grid": True})

# %% tags=["parameters"]
LEDGER = os.environ.get("LEDGER", "runs/quickstart/ledger")
RUN = os.environ.get("RUN", "")  # empty: the newest online-RL run

# %%
with Ledger.open(LEDGER) as ledger:
    run = RUN or choose_run(ledger.runs(), pipeline_kinds(ledger.events(kind="attempt_started")))
    with RunData.read(ledger, run) as data:
        found = phases.section(data)
        flat = plateau.section(data)
        speeds = transition.section(data)
        bins = step_bins(data.steps)
        baseline = data.column("baseline_reward").copy()
        parts = {name: data.component(name).copy() for name in data.component_roles}
    print(f"run {run}: {data.sessions:,} sessions, {len(bins)} bins of whole steps")

# %% [markdown]
# ## Mean and spread
#
# Bands are 95 % intervals that count sessions for what they are worth together. Grey lines are recalibrations and
# changes of mixture; shaded stretches are the phases.


# %%
def draw_phases(axis):
    """Shades the phases and marks the changes that somebody made."""
    for number, phase in enumerate(found["phases"]):
        axis.axvspan(phase["first_session"], phase["last_session"], color=f"C{number}", alpha=0.09, lw=0)
    for change in found["known_breaks"]:
        if change["session"] is not None:
            axis.axvline(change["session"], color="grey", lw=0.9, ls=":")
    axis.set_xlabel("session")


middles = [(one.start + one.stop) / 2 for one in bins]
means = mean_series(baseline, bins)
spreads = [np.nanstd(baseline[one.start : one.stop]) for one in bins]
nan = float("nan")

figure, (left, right) = plt.subplots(1, 2)
left.plot(middles, [nan if one.value is None else one.value for one in means])
limits = [(nan, nan) if one.low is None else (one.low, one.high) for one in means]
left.fill_between(middles, [low for low, _ in limits], [high for _, high in limits], alpha=0.25)
left.set_ylabel("baseline reward")
right.plot(middles, spreads)
if min(spreads, default=0) > 0:
    right.set_yscale("log")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("{x:g}")
right.set_ylabel("standard deviation")
draw_phases(left)
draw_phases(right)
plt.show()

# %%
print(found["verdict"] or f"No phases: {found['why']}.")
for phase in found["phases"]:
    mean = phase["mean"]
    shown = "" if mean["low"] is None else f" [{mean['low']:.3f}, {mean['high']:.3f}]"
    print(
        f"sessions {phase['first_session']:>6,} to {phase['last_session']:>6,}  {phase['kind']:5}  "
        f"mean {mean['value']:.3f}{shown}, sd {phase['sd']:.3f}, n {phase['n']:,}"
    )
for warning in found["warnings"]:
    print("note:", warning)

# %% [markdown]
# ## Does it end on a plateau?
#
# That a slope is "not significant" would be no evidence of one. Here the drift must be *shown* to be small.

# %%
print(flat["verdict"] or f"Nothing can be said of a plateau: {flat['why']}.")

# %% [markdown]
# ## Was any change too fast?
#
# The largest change between two neighbouring windows as a part of the whole one, for the reward, compliance and every
# component. An even change stays far below a half.

# %%
for row in speeds:
    print(("ALARM  " if row["alarm"] else "       ") + row["verdict"])

fast = [row["outcome"].removeprefix("component ") for row in speeds if row["alarm"]]
drawn = [name for name in fast if name in parts]
if drawn:
    figure, axis = plt.subplots()
    for name in drawn:
        values = mean_series(parts[name], bins)
        axis.plot(middles, [nan if one.value is None else one.value for one in values], label=name)
    draw_phases(axis)
    axis.legend()
    plt.show()
