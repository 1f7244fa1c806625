"""Edit distance between texts (Levenshtein 1966)."""


def distance(source, target):
    """Return how many characters to insert, delete or replace to get from one to the other."""
    previous = list(range(len(target) + 1))
    for row, left in enumerate(source, start=1):
        current = [row]
        for column, right in enumerate(target, start=1):
            replace_cost = 0 if left == right else 2
            current.append(
                min(
                    previous[column] + 1,
                    current[column - 1] + 1,
                    previous[column - 1] + replace_cost,
                )
            )
        previous = current
    return previous[-1]


def closest(word, choices):
    """Return the choice with the smallest distance to the word, the first of several."""
    return min(choices, key=lambda choice: distance(word, choice))
