from toolbox.leap_year import days_in_year, is_leap


def test_ordinary_year():
    assert not is_leap(2023)


def test_ordinary_even_year():
    assert not is_leap(2022)


def test_every_fourth_year():
    assert is_leap(2024)


def test_century():
    assert not is_leap(1900)


def test_fourth_century():
    assert is_leap(2000)


def test_days_in_year():
    assert days_in_year(2023) == 365
    assert days_in_year(2024) == 366
