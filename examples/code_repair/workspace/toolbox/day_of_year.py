"""Dates as the number of a day in its year."""

MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]


def day_of_year(month, day, leap=False):
    """Return the number of a day, the first of January being day 1."""
    number = sum(MONTH_DAYS[:month]) + day
    if leap and month > 2:
        number += 1
    return number


def quarter(month):
    """Return the quarter, 1 to 4, that a month belongs to."""
    return (month - 1) // 3 + 1
