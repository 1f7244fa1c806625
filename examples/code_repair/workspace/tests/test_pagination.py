from toolbox.pagination import has_next, page, page_count

LETTERS = list("abcdefgh")


def test_page_count():
    assert page_count(8, 3) == 3
    assert page_count(9, 3) == 3


def test_page_count_of_nothing():
    assert page_count(0, 3) == 1


def test_first_page():
    assert page(LETTERS, 1, 3) == ["a", "b", "c"]


def test_second_page():
    assert page(LETTERS, 2, 3) == ["d", "e", "f"]


def test_last_page():
    assert page(LETTERS, 3, 3) == ["g", "h"]


def test_beyond_the_last_page():
    assert page(LETTERS, 4, 3) == []


def test_has_next():
    assert has_next(8, 2, 3)
    assert not has_next(8, 3, 3)
