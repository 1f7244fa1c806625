"""Search in a sorted list."""


def find(items, wanted):
    """Return an index of `wanted`, or -1 if it is not there."""
    low, high = 0, len(items) - 1
    while low < high:
        middle = (low + high) // 2
        if items[middle] == wanted:
            return middle
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1
