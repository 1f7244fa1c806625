import re
import uuid

import pytest

from wtb_core import ids
from wtb_core.matrix import execution_id

OPAQUE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def test_event_ids_are_version_7_unique_and_in_the_order_they_were_made():
    made = [ids.new_event_id() for _ in range(1_000)]

    assert {uuid.UUID(item).version for item in made} == {7}
    assert sorted(set(made)) == made


def test_ids_fit_a_url_and_a_file_name():
    batch_id = ids.new_batch_id()

    for made in (batch_id, execution_id(batch_id, 999_999_999), ids.new_event_id()):
        assert OPAQUE.fullmatch(made)
    assert ids.new_batch_id() > batch_id


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
        (1_700_000_000_999, "2023-11-14T22:13:20.999Z"),
    ],
)
def test_a_time_is_rfc_3339_in_utc_with_milliseconds(time_ms, text):
    assert ids.format_time(time_ms) == ids.find_time(time_ms) == text


def test_what_has_not_happened_has_no_time():
    assert ids.find_time(None) is None
