"""A cache that forgets what was not used for the longest time."""


class LruCache:
    """At most `capacity` entries, the least recently used one is dropped first."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.entries = {}

    def get(self, key, default=None):
        """Return the value of a key and count that as a use."""
        if key not in self.entries:
            return default
        return self.entries[key]

    def put(self, key, value):
        """Store a value and drop the oldest entry if there are too many."""
        self.entries.pop(key, None)
        self.entries[key] = value
        if len(self.entries) > self.capacity:
            del self.entries[next(iter(self.entries))]
