from toolbox.caesar import decode, encode


def test_middle_of_the_alphabet():
    assert encode("abc", 3) == "def"


def test_keeps_case():
    assert encode("Hal", 1) == "Ibm"


def test_keeps_other_characters():
    assert encode("1, 2!", 5) == "1, 2!"


def test_wraps_around():
    assert encode("xyz", 3) == "abc"


def test_last_letter():
    assert encode("y", 1) == "z"


def test_decode():
    assert decode("def", 3) == "abc"


def test_there_and_back():
    text = "The quick brown fox jumps over the lazy dog."
    assert decode(encode(text, 13), 13) == text
