"""Greatest common divisor and least common multiple."""


def gcd(a, b):
    """Return the greatest common divisor, never negative."""
    a, b = abs(a), abs(b)
    while b:
        a, b = b, a // b
    return a


def lcm(a, b):
    """Return the least common multiple, 0 if either number is 0."""
    if a == 0 or b == 0:
        return 0
    return abs(a * b) // gcd(a, b)
