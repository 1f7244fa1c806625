"""One evaluator, which tells that it runs as the nodes do."""

from graph import tell


def told(input, output):  # noqa: A002 - the contract's name
    tell(input["stage"], "score")
    return len(output["ran"])
