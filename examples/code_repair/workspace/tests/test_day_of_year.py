from toolbox.day_of_year import day_of_year, quarter


def test_first_day():
    assert day_of_year(1, 1) == 1


def test_end_of_january():
    assert day_of_year(1, 31) == 31


def test_february():
    assert day_of_year(2, 29, leap=True) == 60


def test_march():
    assert day_of_year(3, 1) == 60


def test_march_of_a_leap_year():
    assert day_of_year(3, 1, leap=True) == 61


def test_last_day():
    assert day_of_year(12, 31) == 365


def test_first_quarter():
    assert quarter(1) == quarter(3) == 1


def test_last_quarter():
    assert quarter(10) == quarter(12) == 4
