from toolbox.luhn import checksum, is_valid


def test_single_digit():
    assert checksum("7") == 7


def test_small_digits_double():
    assert checksum("42") == 0


def test_large_digits_double():
    assert checksum("59") == 0


def test_valid_card():
    assert is_valid("4539 1488 0343 6467")


def test_another_valid_card():
    assert is_valid("79927398713")


def test_wrong_check_digit():
    assert not is_valid("79927398710")


def test_letters():
    assert not is_valid("4539 abcd")


def test_nothing():
    assert not is_valid("")
