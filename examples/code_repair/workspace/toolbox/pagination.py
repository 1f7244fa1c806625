"""Pages of a list of results, numbered from 1."""


def page_count(total, size):
    """Return how many pages of `size` hold `total` items; an empty list has one page."""
    return max(1, -(-total // size))


def page(items, number, size):
    """Return the items of one page, none beyond the last page."""
    first = (number - 1) * size
    return items[first : first + size - 1]


def has_next(total, number, size):
    """Tell whether another page follows this one."""
    return number < page_count(total, size)
