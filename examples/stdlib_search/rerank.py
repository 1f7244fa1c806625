"""Implementations of the node `rerank`: the `top_k` (default 10) results, from the candidates.

Candidates come best first with a score above 0.
"""

from collections import Counter
from math import sqrt
from typing import Any

from langchain_core.runnables import RunnableConfig

from text import words

State = dict[str, Any]


def keep_order(state: State, config: RunnableConfig) -> State:
    """Take the candidates as they come."""
    return _ranking(state["candidates"], config)


def by_name(state: State, config: RunnableConfig) -> State:
    """Prefer candidates whose name answers the question.

    A score is multiplied by 1 + `name_weight` (default 1) * the share of the name's words that
    are in the question.
    """
    weight = config["configurable"].get("name_weight", 1.0)
    asked = set(words(state["question"]))

    def boosted(candidate: State) -> float:
        name = set(words(candidate["name"]))
        return candidate["score"] * (1 + weight * len(name & asked) / max(1, len(name)))

    scored = [{**candidate, "score": boosted(candidate)} for candidate in state["candidates"]]
    return _ranking(sorted(scored, key=lambda candidate: -candidate["score"]), config)


def diverse(state: State, config: RunnableConfig) -> State:
    """Take next what is relevant and unlike what was taken: maximal marginal relevance.

    The next is the maximum of `relevance` * score - (1 - `relevance`) * the largest similarity to
    one already taken: Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking"
    (1998), where `relevance` (default 0.7) is lambda. Scores are scaled to at most 1, similarity
    is the cosine of the word counts. The score of a result is this value.
    """
    share = config["configurable"].get("relevance", 0.7)
    top_k = config["configurable"].get("top_k", 10)
    left = [(c, Counter(words(f"{c['name']} {c['doc']}"))) for c in state["candidates"]]
    best = max((candidate["score"] for candidate, _ in left), default=1.0)
    # The largest similarity so far of each candidate to a taken one.
    nearest = [0.0] * len(left)
    taken = []
    open_places = list(range(len(left)))
    while open_places and len(taken) < top_k:
        gains = {
            place: share * left[place][0]["score"] / best - (1 - share) * nearest[place]
            for place in open_places
        }
        chosen = max(open_places, key=gains.__getitem__)
        taken.append({**left[chosen][0], "score": gains[chosen]})
        open_places.remove(chosen)
        for place in open_places:
            nearest[place] = max(nearest[place], cosine(left[place][1], left[chosen][1]))
    return _ranking(taken, config)


def cosine(one: Counter[str], other: Counter[str]) -> float:
    """Return the cosine of the angle between two vectors of counts."""
    dot = sum(count * other[term] for term, count in one.items())
    return dot / sqrt(_square(one) * _square(other)) if dot else 0.0


def _square(counts: Counter[str]) -> int:
    return sum(count**2 for count in counts.values())


def _ranking(candidates: list[State], config: RunnableConfig) -> State:
    top_k = config["configurable"].get("top_k", 10)
    ranking = [{"name": c["name"], "score": round(c["score"], 6)} for c in candidates[:top_k]]
    for place, result in enumerate(ranking, 1):
        print(f"{place:2} {result['score']:.3f} {result['name']}")
    return {"ranking": ranking}
