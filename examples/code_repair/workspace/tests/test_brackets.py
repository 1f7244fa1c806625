from toolbox.brackets import depth, is_balanced


def test_no_brackets():
    assert is_balanced("plain text")


def test_one_pair():
    assert is_balanced("f(x)")


def test_nested():
    assert is_balanced("{a: [b, (c)]}")


def test_crossed():
    assert not is_balanced("(a[b)c]")


def test_never_closed():
    assert not is_balanced("((a)")


def test_never_opened():
    assert not is_balanced("a)")


def test_depth():
    assert depth("f(g[h], (i))") == 2


def test_depth_of_nothing():
    assert depth("") == 0
