from toolbox.lru_cache import LruCache


def test_get():
    cache = LruCache(2)
    cache.put("a", 1)
    assert cache.get("a") == 1


def test_missing():
    cache = LruCache(2)
    assert cache.get("a") is None
    assert cache.get("a", 0) == 0


def test_replace():
    cache = LruCache(2)
    cache.put("a", 1)
    cache.put("a", 2)
    assert cache.get("a") == 2


def test_drops_the_oldest():
    cache = LruCache(2)
    for key in "abc":
        cache.put(key, key.upper())
    assert cache.get("a") is None
    assert cache.get("b") == "B"
    assert cache.get("c") == "C"


def test_put_counts_as_use():
    cache = LruCache(2)
    for key in "abac":
        cache.put(key, key.upper())
    assert cache.get("a") == "A"
    assert cache.get("b") is None


def test_get_counts_as_use():
    cache = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.get("a")
    cache.put("c", 3)
    assert cache.get("a") == 1
    assert cache.get("b") is None
