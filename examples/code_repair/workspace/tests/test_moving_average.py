from toolbox.moving_average import moving_average


def test_window_of_one():
    assert moving_average([3, 1, 2], 1) == [3, 1, 2]


def test_window_of_two():
    assert moving_average([1, 3, 5, 9], 2) == [2, 4, 7]


def test_window_of_three():
    assert moving_average([3, 3, 6, 0], 3) == [4, 3]


def test_window_of_everything():
    assert moving_average([1, 2, 6], 3) == [3]


def test_window_too_large():
    assert moving_average([1, 2], 3) == []


def test_zeros():
    assert moving_average([0, 0, 0, 0], 2) == [0, 0, 0]
