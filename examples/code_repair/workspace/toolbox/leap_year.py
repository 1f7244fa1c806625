"""Leap years of the Gregorian calendar."""


def is_leap(year):
    """Tell whether the year has a 29th of February."""
    if year % 4 != 0:
        return False
    return year % 100 != 0 and year % 400 == 0


def days_in_year(year):
    """Return 365 or 366."""
    return 366 if is_leap(year) else 365
