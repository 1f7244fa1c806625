"""Scores of a ranking against the names that answer the question.

A reference is `{"targets": [name, ...]}`; each of them is an answer.
"""


def reciprocal_rank(output: dict, reference: dict) -> float:
    """Return 1 / the place of the first target, 0 when none is in the ranking.

    Its mean over questions is the MRR of Voorhees, "The TREC-8 Question Answering Track Report"
    (1999).
    """
    places = (place for place, name in enumerate(_names(output), 1) if name in reference["targets"])
    return 1 / next(places, float("inf"))


def recall_at_5(output: dict, reference: dict) -> dict:
    """Return the share of the targets among the first five results.

    Manning, Raghavan and Schütze, "Introduction to Information Retrieval" (2008), chapter 8.
    """
    targets = set(reference["targets"])
    found = targets & set(_names(output)[:5])
    comment = f"found {', '.join(sorted(found)) or 'none'} of {', '.join(sorted(targets))}"
    return {"score": len(found) / len(targets), "comment": comment}


def _names(output: dict) -> list[str]:
    return [result["name"] for result in output["ranking"]]
