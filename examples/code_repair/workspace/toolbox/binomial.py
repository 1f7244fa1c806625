"""Binomial coefficients."""


def binomial(n, k):
    """Return the number of ways to choose k of n things."""
    if k < 0 or k > n:
        return 0
    ways = 1
    for step in range(1, k):
        ways = ways * (n - k + step) // step
    return ways


def pascal_row(n):
    """Return row n of Pascal's triangle, counted from 0."""
    return [binomial(n, k) for k in range(n + 1)]
