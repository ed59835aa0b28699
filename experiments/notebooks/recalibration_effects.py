"""# What did the recalibrations do?

Two estimates stand side by side: the difference before and after, which takes the trend of the run for an effect, and
the excess over the categories that nothing was done to. Beside each stands the smallest effect that could have been
found at all. Neither is the total effect of a recalibration: only a fork with and without it would show that.
"""

# %%
import os

import matplotlib.pyplot as plt

from rewards import Ledger
from rewards.analysis import dose_response, recalibration_effect
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
        effects = recalibration_effect.section(data)
        dose = dose_response.section(data, effects)
    print(f"run {run}: {data.sessions:,} sessions; recalibrations: {len(effects)}")

# %% [markdown]
# ## Naive and honest, side by side
#
# Points are percentage points of the outcome's rate. A triggered recalibration has no naive figure: a window that was
# picked for being high is followed by a lower one whatever is done.


# %%
def number(value, form="+.1f"):
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


rows = [(place, entry, one) for place, entry in enumerate(effects, start=1) for one in entry["outcomes"]]
print(
    "     session  category      outcome                 naive     p   |   excess  interval         adj. p  finds from"
)
for place, entry, one in rows:
    naive, excess = one["naive"], one["excess"]
    before_after = None if naive["difference"] is None else 100 * naive["difference"]
    interval = f"[{number(excess['points_low'])}, {number(excess['points_high'])}]"
    print(
        f"R{place:<2} {entry['session']:>8,}  {entry['category']:12.12}  {one['label']:20.20} "
        f"{number(before_after):>8}  {number(naive['p'], '.2f'):>5}  |  {number(excess['points']):>7}  {interval:16} "
        f"{number(excess.get('p_adjusted'), '.2f'):>5}  {number(one['mde_points'], '.0f'):>6} points"
    )

# %%
drawn = [(place, one) for place, _, one in rows if one["excess"]["points"] is not None]
if drawn:
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.6 * len(drawn)))
    for height, (_, one) in enumerate(drawn):
        naive, excess = one["naive"], one["excess"]
        axis.fill_betweenx([height - 0.3, height + 0.3], -one["mde_points"], one["mde_points"], color="C7", alpha=0.2)
        if naive["difference"] is not None:
            axis.plot(100 * naive["difference"], height + 0.15, "o", color="C1")
            if naive["low"] is not None:
                axis.hlines(height + 0.15, 100 * naive["low"], 100 * naive["high"], color="C1")
        axis.plot(excess["points"], height - 0.15, "s", color="C0")
        axis.hlines(height - 0.15, excess["points_low"], excess["points_high"], color="C0")
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(drawn)), [f"R{place} {one['label'][:24]}" for place, one in drawn])
    axis.set_xlabel("points: before and after (round), excess (square); grey: too small to be found")
    plt.show()

# %% [markdown]
# ## The trends before each event
#
# The comparison stands on the category and its controls moving alike before the event.

# %%
for place, entry, one in rows:
    if not one["series"]:
        continue
    figure, axis = plt.subplots(figsize=(9, 2.6))
    sessions = [point["session"] for point in one["series"]]
    nan = float("nan")
    for side, style in (("treated", "C0o-"), ("controls", "C7s-")):
        axis.plot(sessions, [nan if p[side] is None else p[side] for p in one["series"]], style, ms=3, label=side)
    axis.axvline(entry["session"], color="grey", ls=":")
    axis.set_title(f"R{place}: {entry['category']}, {one['label']}", fontsize=10)
    axis.set_xlabel("session")
    axis.set_ylabel("rate")
    axis.legend()
    plt.show()

# %% [markdown]
# ## Placebos
#
# The same comparison at dates at which nothing was done, and with each control category in the place of the treated
# one. With four controls the smallest possible p in space is a fifth.

# %%
for place, _, one in rows:
    for kind in ("in_time", "in_space"):
        placebo = one["placebo"][kind]
        told = placebo["why"] or (
            f"{placebo['larger']} of {placebo['n']} placebos are as large, p {number(placebo['p'], '.2f')} "
            f"(smallest possible {number(placebo['smallest_p'], '.2f')})"
        )
        print(f"R{place} {one['label'][:24]:24} {kind.replace('_', ' '):9} {told}")

# %% [markdown]
# ## What can be said

# %%
for place, entry in enumerate(effects, start=1):
    print(f"R{place}, session {entry['session']:,}, {entry['category']} {entry['old_pct']} to {entry['new_pct']} %")
    print(f"   {entry['verdict']}\n")
if not effects:
    print("No recalibration is on record for this run: there is no effect to speak of.")
print("Dose and effect:", dose.get("verdict") or dose.get("why"))
