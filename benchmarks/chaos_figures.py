"""What a chaos run was: kills, executions, attempts, and how long progress took."""

import bisect
import statistics
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.chaos_records import read
from benchmarks.chaos_store import FAILED, Store
from benchmarks.chaos_work import Visits, find_resumptions

NEXT_WITHIN_S = 60.0
REFUSED = "refused a late result"
"""What the collector logs of a result that comes after its attempt has been given up."""


def collect(store: Store, folder: Path) -> dict[str, Any]:
    """The figures of a run by topic."""
    visits = Visits(folder)
    resumptions = list(find_resumptions(store, visits))
    again = [r for r in resumptions if r.first and r.first.superstep == r.reached]
    failures = [
        event.payload for events in store.about.values() for event in events if event.type == FAILED
    ]
    reruns = sum(r.resumed_from is not None for r in again)
    events = sum(len(events) for events in store.events.values())
    streams, endings = _count_streams(folder)
    return {
        "kills": dict(Counter(line["kind"] for line in read(folder, "kills") if line["pids"])),
        "kills in vain": dict(
            Counter(line["kind"] for line in read(folder, "kills") if not line["pids"])
        ),
        "services": dict(Counter(line["what"] for line in read(folder, "services"))),
        "loads": dict(Counter(line["kind"] for line in read(folder, "loads"))),
        "batches": dict(Counter(batch.status for batch in store.batches.values())),
        "executions": dict(Counter(row.status for row in store.executions.values())),
        "attempts": {
            "all": len(store.attempts),
            "failed": dict(Counter(payload["kind"] for payload in failures)),
            "drained": sum(p["kind"] == "lost" and p["reason"] == "drained" for p in failures),
            "after a lost one": len(resumptions),
            "resumed": sum(r.resumed_from is not None for r in resumptions),
            "resumed with the interrupted superstep": reruns,
            "late results refused": _count_refused(folder),
        },
        "events": events,
        "clients": {"streams": streams, "endings": endings},
        "seconds from a kill to the next start of a node": _measure_progress(folder, visits),
        "seconds from a replica's kill to a node of a resumed attempt": _summarise(
            _measure_resumptions(folder, resumptions, store)
        ),
        "longest time without a start of a node, s": _find_longest_pause(visits),
    }


def show(figures: dict[str, Any]) -> str:
    """A table in plain text."""
    lines: list[str] = []
    for topic, figure in figures.items():
        if not isinstance(figure, dict):
            lines.append(f"{topic:<44} {figure}")
            continue
        lines.append(f"{topic}")
        for name, value in figure.items():
            lines.append(f"  {name:<42} {value}")
    return "\n".join(lines)


def _count_streams(folder: Path) -> tuple[int, dict[str, int]]:
    endings: Counter[str] = Counter()
    streams = 0
    for line in read(folder, "clients"):
        streams += line["streams"]
        endings.update(line["endings"])
    return streams, dict(endings)


def _count_refused(folder: Path) -> int:
    logs = (folder / "ray").glob("ray/session_*/logs/serve/*.log")
    return sum(log.read_text(errors="replace").count(REFUSED) for log in logs if log.is_file())


def _measure_progress(folder: Path, visits: Visits) -> dict[str, Any]:
    starts = sorted(mark.at for marks in visits.starts.values() for mark in marks)
    found: dict[str, list[float]] = defaultdict(list)
    for line in read(folder, "kills"):
        if line["pids"]:
            following = bisect.bisect(starts, line["at"])
            if following < len(starts) and starts[following] - line["at"] < NEXT_WITHIN_S:
                found[line["kind"]].append(starts[following] - line["at"])
    return {kind: _describe(values) for kind, values in sorted(found.items())}


def _measure_resumptions(folder: Path, resumptions: list[Any], store: Store) -> list[float]:
    """For each kill of a replica, the first node that an attempt it cost went on with."""
    kills = [line["at"] for line in read(folder, "kills") if line["kind"] == "replica"]
    first: dict[float, float] = {}
    for resumption in resumptions:
        lost = store.attempts[resumption.execution_id, resumption.attempt - 1]
        before = bisect.bisect(kills, lost["ended_ms"] / 1000)
        if resumption.first is None or resumption.resumed_from is None or not before:
            continue
        kill = kills[before - 1]
        if resumption.first.at - kill < NEXT_WITHIN_S and lost["started_ms"] / 1000 < kill:
            first[kill] = min(first.get(kill, resumption.first.at), resumption.first.at)
    return [at - kill for kill, at in first.items()]


def _find_longest_pause(visits: Visits) -> float:
    starts = sorted(mark.at for marks in visits.starts.values() for mark in marks)
    pauses = [b - a for a, b in pairwise(starts)]
    return round(max(pauses, default=0.0), 1)


def _summarise(values: list[float]) -> dict[str, Any]:
    return {"n": len(values), **({"figures": _describe(values)} if values else {})}


def _describe(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"n {len(values)}, median {middle:.2f}, max {max(values):.2f}"
