"""Strategies for the node `propose`: which patches to try, and in which order.

Each takes `max_candidates` from the run's configuration (default 40) as its budget.
"""

from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.runnables import RunnableConfig

from mutations import Patch, bound_adjustments, constant_shifts, operator_flips

State = dict[str, Any]
Mutation = Callable[[str], Iterator[Patch]]


def flip_operators(state: State, config: RunnableConfig) -> State:
    """Blame the operators: `<` for `<=`, `+` for `-`, `and` for `or`."""
    return _candidates(state, config, operator_flips)


def shift_constants(state: State, config: RunnableConfig) -> State:
    """Blame the numbers: each may be one too large or too small."""
    return _candidates(state, config, constant_shifts)


def adjust_bounds(state: State, config: RunnableConfig) -> State:
    """Blame the limits of ranges and slices, and the indices."""
    return _candidates(state, config, bound_adjustments)


def ranked(state: State, config: RunnableConfig) -> State:
    """Blame anything, in the order of suspicion."""
    return _candidates(state, config, operator_flips, constant_shifts, bound_adjustments)


def _candidates(state: State, config: RunnableConfig, *mutations: Mutation) -> State:
    """Return the patches of suspicious lines, most suspicious first, then from left to right."""
    budget = config["configurable"].get("max_candidates", 40)
    scores = {suspect["line"]: suspect["score"] for suspect in state["suspects"]}
    patches = [patch for mutate in mutations for patch in mutate(state["source"])]
    suspicious = [patch for patch in patches if patch["line"] in scores]
    suspicious.sort(key=lambda patch: (-scores[patch["line"]], patch["start"]))
    print(f"propose {state['module']}: {len(suspicious)} patches, budget {budget}")
    return {"candidates": suspicious[:budget]}
