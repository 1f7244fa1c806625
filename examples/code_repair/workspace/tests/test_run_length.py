from toolbox.run_length import decode, encode


def test_nothing():
    assert encode("") == []


def test_one_run():
    assert encode("aaa") == [("a", 3)]


def test_many_runs():
    assert encode("aabccc") == [("a", 2), ("b", 1), ("c", 3)]


def test_single_characters():
    assert encode("abc") == [("a", 1), ("b", 1), ("c", 1)]


def test_decode():
    assert decode([("a", 2), ("b", 1)]) == "aab"


def test_decode_nothing():
    assert decode([]) == ""


def test_there_and_back():
    assert decode(encode("wwwwbbw")) == "wwwwbbw"
