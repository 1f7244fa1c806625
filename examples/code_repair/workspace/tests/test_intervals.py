from toolbox.intervals import covered, merge


def test_nothing():
    assert merge([]) == []


def test_apart():
    assert merge([(5, 6), (1, 2)]) == [(1, 2), (5, 6)]


def test_neighbours_stay_apart():
    assert merge([(1, 2), (3, 4)]) == [(1, 2), (3, 4)]


def test_overlapping():
    assert merge([(1, 4), (3, 6)]) == [(1, 6)]


def test_touching():
    assert merge([(1, 3), (3, 6)]) == [(1, 6)]


def test_nested():
    assert merge([(1, 9), (3, 6), (8, 10)]) == [(1, 10)]


def test_covered():
    assert covered([(0, 2), (1, 4), (6, 7)]) == 5
