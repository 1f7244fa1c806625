"""What the trivial graph's output is worth."""


def equals_reference(output: dict, reference: object) -> bool:
    return output["value"] == reference


def size(output: dict) -> int:
    return abs(output["value"])
