import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtb_core import history
from wtb_core.errors import InvalidHistory, NotForkable, NotFound
from wtb_core.history import CheckpointRow, CheckpointSummary, History, ValueRow, WriteRow

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BODY = st.binary(max_size=40)
SHOWN = st.none() | st.dictionaries(TEXT, st.none() | st.integers() | TEXT, max_size=3).map(
    json.dumps
)
CHECKPOINTS = st.builds(
    CheckpointRow,
    ns=TEXT,
    checkpoint_id=TEXT.filter(bool),
    parent_id=st.none() | TEXT.filter(bool),
    source=st.none() | st.sampled_from(["input", "loop", "fork", "update"]),
    step=st.none() | st.integers(-1, 9),
    type=st.just("msgpack"),
    metadata_type=st.just("json"),
    versions=st.dictionaries(TEXT, TEXT, max_size=3),
    stored_at=st.just("2026-01-02T03:04:05.678Z"),
    file_commit=st.none() | st.just("ab" * 32),
    shown=SHOWN,
    answered=st.integers(0, 9),
    body=BODY,
    metadata=BODY,
)
VALUES = st.builds(ValueRow, ns=TEXT, channel=TEXT, version=TEXT, type=TEXT, body=BODY)
WRITES = st.builds(
    WriteRow,
    ns=TEXT,
    checkpoint_id=TEXT.filter(bool),
    task_path=TEXT,
    task_id=TEXT,
    idx=st.integers(-4, 9),
    channel=TEXT,
    type=TEXT,
    after=st.integers(0, 9),
    body=BODY,
)
HISTORIES = st.builds(
    History,
    checkpoints=st.lists(CHECKPOINTS, max_size=4),
    values=st.lists(VALUES, max_size=4),
    writes=st.lists(WRITES, max_size=4),
)


def checkpoint(name, ns="", commit="ab" * 32, **fields):
    return CheckpointRow(
        ns=ns,
        checkpoint_id=name,
        parent_id=None,
        source="loop",
        step=1,
        type="msgpack",
        metadata_type="msgpack",
        versions=fields.pop("versions", {}),
        stored_at="2026-01-02T03:04:05.678Z",
        file_commit=None if ns else commit,
        shown=fields.pop("shown", None),
        body=b"1234",
        metadata=b"56",
    )


@given(given=HISTORIES)
def test_a_history_comes_back_from_its_blob(given):
    blob = history.encode(given)
    assert history.decode(blob) == given
    assert [
        (found.checkpoint_id, found.ns, found.file_commit_id)
        for found in history.read_summary(blob)
    ] == [(row.checkpoint_id, row.ns, row.file_commit) for row in given.checkpoints]


@given(given=HISTORIES, data=st.data())
def test_a_damaged_blob_is_refused_or_read_and_nothing_else(given, data):
    blob = bytearray(history.encode(given))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(blob) - 1))
        cut = data.draw(st.sampled_from(["replace", "drop", "insert", "truncate"]))
        some = data.draw(st.binary(min_size=1, max_size=3))
        if cut == "replace":
            blob[position : position + len(some)] = some
        elif cut == "drop":
            del blob[position : position + len(some)]
        elif cut == "insert":
            blob[position:position] = some
        else:
            del blob[position:]
        if not blob:
            break
    for read in (history.decode, history.read_summary):
        try:
            read(bytes(blob))
        except InvalidHistory:
            continue


def replace_index(blob, **changes):
    index = history.encode(History(checkpoints=[], values=[], writes=[]))
    start = len(index) - len(b'{"checkpoints":[],"values":[],"writes":[]}')
    (length,) = history._LENGTH.unpack(blob[start - 8 : start])
    parsed = json.loads(blob[start : start + length])
    parsed["checkpoints"][0].update(changes)
    text = json.dumps(parsed).encode()
    return blob[: start - 8] + history._LENGTH.pack(len(text)) + text + blob[start + length :]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body_bytes": 5}, "its bodies have 6 bytes"),
        ({"body_bytes": -1, "metadata_bytes": 7}, "body_bytes: "),
        ({"checkpoint_id": "x" * 129}, "checkpoint_id: "),
        ({"ns": "x" * 8193}, "ns: "),
        ({"step": 2**63}, "step: "),
        ({"file_commit": "../../etc/passwd"}, "file_commit: "),
        ({"stored_at": "yesterday"}, "stored_at: "),
        ({"shown": "{"}, "Expecting"),
        ({"shown": "[" * 30_000}, "too deeply"),
        ({"shown": "[" * 300 + "]" * 300}, "too deeply"),
        ({"shown": "NaN"}, "NaN is not JSON"),
        ({"shown": "1e999"}, "Out of range"),
        ({"shown": '"\\ud800"'}, "surrogates"),
        ({"shown": json.dumps("x" * 65_536)}, "over 65536 bytes"),
        ({"shown": "1" * 5000}, "digits"),
    ],
)
def test_what_is_over_a_bound_is_refused(changes, reason):
    blob = history.encode(History(checkpoints=[checkpoint("a")], values=[], writes=[]))
    assert history.decode(replace_index(blob, shown="[1]")).checkpoints[0].shown == "[1]"
    for read in (history.decode, history.read_summary):
        with pytest.raises(InvalidHistory, match=reason):
            read(replace_index(blob, **changes))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not start"),
        (b"WTBHIST\x02" + bytes(8), "does not start"),
        (b"WTBHIST\x01" + b"\xff" * 8, "ends within its index"),
        (b"WTBHIST\x01" + bytes(8), "its index: "),
        (b"WTBHIST\x01" + (100_000).to_bytes(8, "big") + b"[" * 100_000, "its index: "),
    ],
)
def test_other_bytes_are_no_history(tmp_path, data, reason):
    path = tmp_path / "blob"
    path.write_bytes(data)
    for read in (
        lambda: history.decode(data),
        lambda: history.read_summary(data),
        lambda: history.read_summary(path),
    ):
        with pytest.raises(InvalidHistory, match=reason):
            read()


def test_a_summary_is_read_from_a_file_and_counts_the_whole_state(tmp_path):
    rows = [
        checkpoint("a", shown='{"x":[1]}', versions={"x": "1", "gone": "1"}),
        checkpoint("b", ns="inner:1", versions={"x": "1"}),
        checkpoint("c", commit=None),
    ]
    values = [
        ValueRow(ns=ns, channel="x", version="1", type="msgpack", body=body)
        for ns, body in (("", b"seven.."), ("inner:1", b"two"))
    ]
    path = tmp_path / "blob"
    path.write_bytes(history.encode(History(checkpoints=rows, values=values, writes=[])))
    first, second, third = found = history.read_summary(path)
    assert first == CheckpointSummary(
        checkpoint_id="a",
        parent_id=None,
        ns="",
        step=1,
        source="loop",
        created_at="2026-01-02T03:04:05.678Z",
        file_commit_id="ab" * 32,
        forkable=True,
        size_bytes=13,
        state={"x": [1]},
        state_truncated=False,
    )
    assert (second.forkable, second.state, second.state_truncated) == (False, None, False)
    assert (second.size_bytes, third.forkable, third.state_truncated) == (9, False, True)
    assert found == history.read_summary(path.read_bytes())


def test_only_a_root_checkpoint_with_its_files_is_a_fork_point():
    rows = [
        checkpoint("s", ns="inner:0"),
        checkpoint("a"),
        checkpoint("b", ns="inner:1"),
        checkpoint("c", commit=None),
        checkpoint("same", ns="inner:1"),
        checkpoint("same"),
    ]
    blob = history.encode(History(checkpoints=rows, values=[], writes=[]))
    summaries = history.read_summary(blob)
    assert history.find(summaries, "a").checkpoint_id == "a"
    assert history.find(summaries, "same").ns == ""
    for name, reason in (
        ("b", "a checkpoint of a subgraph is no fork point; take the root checkpoint before it: a"),
        ("c", "could not be committed; take the root checkpoint before it: a"),
        ("s", "there is no root checkpoint before it"),
    ):
        with pytest.raises(NotForkable, match=reason):
            history.find(summaries, name)
    with pytest.raises(NotFound, match="no checkpoint 'z'"):
        history.find(summaries, "z")
