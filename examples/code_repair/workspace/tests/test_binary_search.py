from toolbox.binary_search import find

PRIMES = [2, 3, 5, 7, 11, 13]


def test_empty():
    assert find([], 5) == -1


def test_only_item():
    assert find([5], 5) == 0


def test_first_probe():
    assert find(PRIMES, 5) == 2


def test_first():
    assert find(PRIMES, 2) == 0


def test_last():
    assert find(PRIMES, 13) == 5


def test_every_item():
    assert [find(PRIMES, prime) for prime in PRIMES] == [0, 1, 2, 3, 4, 5]


def test_missing():
    assert find(PRIMES, 1) == -1
    assert find(PRIMES, 6) == -1
    assert find(PRIMES, 20) == -1
