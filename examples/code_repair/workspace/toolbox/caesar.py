"""Caesar's cipher on the Latin alphabet."""


def encode(text, shift):
    """Move each letter `shift` places along the alphabet; keep case and all other characters."""
    encoded = []
    for char in text:
        if char.isascii() and char.isalpha():
            first = ord("a") if char.islower() else ord("A")
            char = chr(first + (ord(char) - first + shift) % 25)
        encoded.append(char)
    return "".join(encoded)


def decode(text, shift):
    """Undo `encode` with the same shift."""
    return encode(text, -shift)
