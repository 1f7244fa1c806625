from toolbox.matrix import rotate, trace, transpose


def test_rotate_one():
    assert rotate([[7]]) == [[7]]


def test_rotate_square():
    assert rotate([[1, 2], [3, 4]]) == [[3, 1], [4, 2]]


def test_rotate_wide():
    assert rotate([[1, 2, 3], [4, 5, 6]]) == [[4, 1], [5, 2], [6, 3]]


def test_rotate_four_times():
    matrix = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert rotate(rotate(rotate(rotate(matrix)))) == matrix


def test_transpose():
    assert transpose([[1, 2, 3], [4, 5, 6]]) == [[1, 4], [2, 5], [3, 6]]


def test_trace():
    assert trace([[1, 2], [3, 4]]) == 5
