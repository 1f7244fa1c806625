from toolbox.percentile import percentile, spread

LATENCIES = [15, 20, 35, 40, 50]


def test_smallest():
    assert percentile(LATENCIES, 0) == 15


def test_low():
    assert percentile(LATENCIES, 5) == 15


def test_thirtieth():
    assert percentile(LATENCIES, 30) == 20


def test_exact_rank():
    assert percentile(LATENCIES, 40) == 20


def test_median():
    assert percentile([7, 3, 5], 50) == 5


def test_largest():
    assert percentile(LATENCIES, 100) == 50


def test_order_does_not_matter():
    assert percentile([50, 15, 40, 20, 35], 95) == 50


def test_spread():
    assert spread(LATENCIES) == 35
