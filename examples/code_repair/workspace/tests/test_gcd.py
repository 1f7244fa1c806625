from toolbox.gcd import gcd, lcm


def test_one_divides_the_other():
    assert gcd(12, 4) == 4


def test_common_factor():
    assert gcd(12, 18) == 6


def test_coprime():
    assert gcd(35, 64) == 1


def test_zero():
    assert gcd(0, 9) == 9
    assert gcd(9, 0) == 9


def test_negative():
    assert gcd(-12, 18) == 6


def test_lcm():
    assert lcm(4, 6) == 12


def test_lcm_of_zero():
    assert lcm(0, 5) == 0
    assert lcm(5, 0) == 0
