"""Run-length encoding of text."""


def encode(text):
    """Return (character, count) for each run of equal characters."""
    runs = []
    count = 0
    current = ""
    for char in text:
        if char == current:
            count += 1
        else:
            if count > 0:
                runs.append((current, count))
            current, count = char, 1
    return runs


def decode(runs):
    """Return the text that the runs stand for."""
    return "".join(char * count for char, count in runs)
