"""Matching of brackets in a text."""

OPENED_BY = {")": "(", "]": "[", "}": "{"}


def is_balanced(text):
    """Tell whether every bracket is closed, and in the right order."""
    open_brackets = []
    for char in text:
        if char in OPENED_BY.values():
            open_brackets.append(char)
        elif char in OPENED_BY:
            if not open_brackets:
                return False
            if open_brackets.pop() == OPENED_BY[char]:
                return False
    return not open_brackets


def depth(text):
    """Return how deep the brackets of a text are nested."""
    level = deepest = 0
    for char in text:
        if char in OPENED_BY.values():
            level += 1
            deepest = max(deepest, level)
        elif char in OPENED_BY:
            level -= 1
    return deepest
