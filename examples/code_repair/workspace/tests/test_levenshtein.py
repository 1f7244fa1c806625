from toolbox.levenshtein import closest, distance


def test_equal():
    assert distance("table", "table") == 0


def test_insert():
    assert distance("car", "cart") == 1


def test_delete():
    assert distance("cart", "car") == 1


def test_replace():
    assert distance("cart", "care") == 1


def test_from_nothing():
    assert distance("", "abc") == 3


def test_to_nothing():
    assert distance("abc", "") == 3


def test_mixed():
    assert distance("kitten", "sitting") == 3


def test_closest():
    assert closest("staus", ["start", "status", "stop"]) == "status"
