"""The check digit of payment cards (ISO/IEC 7812-1, the Luhn algorithm)."""


def checksum(digits):
    """Return the Luhn sum of a string of digits, modulo 10."""
    total = 0
    for position, char in enumerate(reversed(digits)):
        digit = int(char)
        if position % 2 == 1:
            digit = digit * 2
            if digit > 9:
                digit -= 10
        total += digit
    return total % 10


def is_valid(number):
    """Tell whether a card number, spaces allowed, ends in its check digit."""
    digits = number.replace(" ", "")
    return digits.isdigit() and checksum(digits) == 0
