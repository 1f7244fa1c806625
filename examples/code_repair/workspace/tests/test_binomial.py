from toolbox.binomial import binomial, pascal_row


def test_choose_none():
    assert binomial(5, 0) == 1


def test_choose_one():
    assert binomial(5, 1) == 5


def test_choose_some():
    assert binomial(5, 2) == 10
    assert binomial(10, 4) == 210


def test_choose_all():
    assert binomial(4, 4) == 1


def test_choose_too_many():
    assert binomial(3, 4) == 0


def test_choose_fewer_than_none():
    assert binomial(3, -1) == 0


def test_first_row():
    assert pascal_row(0) == [1]


def test_row():
    assert pascal_row(4) == [1, 4, 6, 4, 1]
