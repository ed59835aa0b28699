"""What of an analysis deserves attention first. An alert repeats a section's finding; it decides nothing anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewards.counted import counted

SEVERITIES = ("critical", "warning", "note")
# A share of compliant sessions above this reads as a clean record.
GREEN = 0.9
# Krippendorff's own bound below which he would draw no conclusions from labels.
LEAST_ALPHA = 0.667

Data = Mapping[str, Any]


def alerts(document: Data) -> list[dict[str, Any]]:
    """Alerts of an analysis, the worst first: {"severity", "section", "text"}.

    Source: for agreement Krippendorff 2004, p. 241.
    """
    found = [
        *_behaviour(document),
        *_overoptimization(document),
        *_transitions(document),
        *_recalibrations(document),
        *_agreement(document),
        *_convergence(document),
    ]
    return sorted(found, key=lambda alert: SEVERITIES.index(alert["severity"]))


def _alert(severity: str, section: str, text: str) -> dict[str, Any]:
    return {"severity": severity, "section": section, "text": text}


def _behaviour(document: Data) -> Iterator[dict[str, Any]]:
    collapse = document["behaviour"].get("collapse") or {}
    if not collapse.get("alarm"):
        return
    compliant = (document.get("compliance") or {}).get("last") or {}
    green = ""
    if (compliant.get("value") or 0.0) >= GREEN:
        green = (
            f" Compliance of {compliant['value']:.2f} in the last {compliant['n']:,} judged sessions stands next to it "
            "and must not be read alone."
        )
    yield _alert("critical", "behaviour", f"{collapse['verdict']}{green}")


def _overoptimization(document: Data) -> Iterator[dict[str, Any]]:
    found = document["overoptimization"]
    gold = found.get("proxy_gold") or {}
    if gold.get("alarm"):
        yield _alert("critical", "overoptimization", gold["verdict"])
    for fit in found.get("fits") or []:
        if fit.get("peak_kl_nats") is not None:
            yield _alert("warning", "overoptimization", fit["verdict"])


def _transitions(document: Data) -> Iterator[dict[str, Any]]:
    for found in document["transitions"]:
        if found.get("alarm"):
            yield _alert("warning", "transitions", found["verdict"])


def _recalibrations(document: Data) -> Iterator[dict[str, Any]]:
    for place, found in enumerate(document["recalibrations"], start=1):
        claimed = any(outcome.get("claim") for outcome in found.get("outcomes") or []) or found.get("claim")
        severity = "warning" if claimed or found.get("spill_refused") else "note"
        at = "" if found["session"] is None else f", session {found['session']:,}"
        yield _alert(severity, "recalibrations", f"R{place}{at}: {found['verdict']}")


def _agreement(document: Data) -> Iterator[dict[str, Any]]:
    found = document["agreement"]
    kept = (found.get("reviews") or {}).get("dissent_kept") or []
    if kept:
        some = f"{len(kept)} notes" if len(kept) > 1 else "A note"
        yield _alert("warning", "agreement", f"{some} of annotators stood against the review that closed it.")
    alpha = (found.get("alpha") or {}).get("estimate")
    if alpha is not None and alpha < LEAST_ALPHA:
        items = counted(found["alpha"]["n"], "item")
        yield _alert("warning", "agreement", f"Annotators agree little: alpha {alpha:.2f}, {items}.")


def _convergence(document: Data) -> Iterator[dict[str, Any]]:
    plateau = document["plateau"]
    if plateau.get("verdict"):
        yield _alert("note", "plateau", plateau["verdict"])
    for text in document["segmentation"].get("warnings") or []:
        yield _alert("note", "phases", text)
