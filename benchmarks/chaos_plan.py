"""What a chaos run does, from its seed alone: which kinds of kill when, and which batches.

Kinds are drawn from decks, so that each pass through a deck has every kind in its share.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

KILLS: Mapping[str, int] = {
    "child": 10,
    "nursery": 4,
    "replica": 9,
    "ingress": 4,
    "collector": 4,
    "controller": 2,
    "proxy": 2,
    "deploy": 2,
    "ray": 2,
    "stop": 1,
}
"""How often in 40: processes by their role; `deploy` changes args, `stop` is a SIGTERM."""

LOADS: Mapping[str, tuple[int, int]] = {
    "quick": (4, 140),
    "long": (3, 40),
    "wide": (2, 40),
    "nested": (2, 35),
    "asking": (2, 30),
    "failing": (2, 25),
    "scored": (2, 25),
    "limited": (1, 30),
    "cancelled": (2, 20),
    "picked": (1, 15),
    "fragile": (1, 20),
}
"""Batches in a thousand executions, and how large each is."""

DECK_EXECUTIONS = sum(count * size for count, size in LOADS.values())
SEVERAL_TIMES = {"max_attempts": 30, "backoff": "0.2s", "on": ["crash", "lost", "error"]}


class Kill(NamedTuple):
    """After `pause_s`, one process of a kind: at the share `pick` of the list of them."""

    pause_s: float
    kind: str
    pick: float


class Load(NamedTuple):
    """One batch of `executions`."""

    number: int
    kind: str
    executions: int
    seed: int


def plan_kills(seed: int, pause_s: float, deck: Mapping[str, int] = KILLS) -> Iterator[Kill]:
    """Kills without end, `pause_s` apart on the average."""
    chosen = random.Random(f"kills {seed}")
    while True:
        kinds = [kind for kind, count in deck.items() for _ in range(count)]
        chosen.shuffle(kinds)
        for kind in kinds:
            yield Kill(pause_s * chosen.uniform(0.5, 1.5), kind, chosen.random())


def plan_loads(seed: int, executions: int) -> list[Load]:
    """Batches of every kind that together have `executions`; in small runs they are small."""
    chosen = random.Random(f"loads {seed}")
    scale = min(1.0, executions / DECK_EXECUTIONS)
    loads: list[Load] = []
    left = executions
    while left > 0:
        deck = [
            (kind, max(2, round(size * scale)))
            for kind, (count, size) in LOADS.items()
            for _ in range(count if scale == 1.0 else 1)
        ]
        chosen.shuffle(deck)
        for kind, most in deck:
            size = min(most, left)
            if size:
                loads.append(Load(len(loads), kind, size, chosen.getrandbits(32)))
            left -= size
    return loads


def make_spec(load: Load, witness: int) -> dict[str, Any]:
    """The batch of a load, for the project `journal`; the witness listens on that port."""
    chosen = random.Random(load.seed)
    spec: dict[str, Any] = {
        "project": "journal",
        "name": f"{load.kind} {load.number}",
        "variants": [{"name": load.kind, "graph": _GRAPHS.get(load.kind, "line")}],
        "evaluators": ["exactly_once"] if load.kind == "scored" else [],
        "retry": SEVERAL_TIMES,
        "workspace": {"keep": "never"},
        "priority": chosen.choice([0, 0, 0, 1]),
        "labels": {"kind": load.kind},
    }
    if load.kind == "limited":
        spec["limits"] = {"concurrency": 3}
    if load.kind == "fragile":
        spec["retry"] = {"max_attempts": 1}
    spec["cases"] = [_make_case(load, index, witness, chosen) for index in range(load.executions)]
    return spec


_GRAPHS = {"wide": "wide", "nested": "nested"}


def _make_case(load: Load, index: int, witness: int, chosen: random.Random) -> dict[str, Any]:
    def steps(count: int, least_s: float, most_s: float) -> list[dict[str, Any]]:
        return [{"sleep_s": round(chosen.uniform(least_s, most_s), 2)} for _ in range(count)]

    case: dict[str, Any] = {"id": str(index)}
    match load.kind:
        case "long" | "cancelled" | "picked":
            made = steps(6, 0.2, 0.9)
        case "wide" | "nested":
            made = steps(3, 0.1, 0.6)
        case "asking":
            made = steps(4, 0.1, 0.4)
            made[1]["ask"] = made[3]["ask"] = True
            case["resume"] = [f"one {index}", f"two {index}"]
        case "failing":
            made = steps(3, 0.0, 0.3)
            made[1]["crash" if index % 2 else "fail"] = 1
        case "fragile":
            made = steps(2, 0.0, 0.3)
            made[1]["crash"] = index % 2
        case "scored" | "limited":
            made = steps(2, 0.0, 0.2)
        case _:
            made = [{}, {}]
    case["input"] = {"witness": witness, "steps": made}
    return case
