"""Averages over a window that moves along a series."""


def moving_average(values, size):
    """Return the mean of each window of `size` neighbours, from left to right."""
    if size > len(values):
        return []
    total = sum(values[:size])
    averages = [total / size]
    for index in range(size, len(values)):
        total += values[index] + values[index - size]
        averages.append(total / size)
    return averages
