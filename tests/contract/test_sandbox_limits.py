"""The limits of an execution: time, memory, processes, sizes of what it says and writes."""

import pytest


@pytest.mark.parametrize("graph", ["loop_graph", "close_everything_graph"])
def test_an_endless_node_times_out(hostile, graph):
    outcome = hostile.run("hostile", graph, {}, limits={"timeout": 0.5})
    assert (outcome.failure.kind, outcome.failure.node) == ("timeout", "bad")
    assert "0.5 s" in outcome.failure.reason
    assert 400 <= outcome.duration_ms <= 5000


def test_an_output_over_the_limit_is_refused_with_both_sizes(hostile):
    failure = hostile.run("hostile", "big_graph", {}, limits={"output": 1000}).failure
    assert failure.kind == "invalid_output"
    assert "5012 bytes" in failure.reason
    assert "1000" in failure.reason
    assert hostile.run("hostile", "big_graph", {}, limits={"output": 5012}).status == "succeeded"


def test_a_hog_runs_out_of_its_own_memory(hostile):
    outcome = hostile.run("hostile", "hog_graph", {}, limits={"memory": 200 * 1024**2})
    assert (outcome.failure.kind, outcome.failure.node) == ("out_of_memory", "bad")
    assert hostile.run("hostile", "hog_graph", {}).output == '{"value":1073741824}'


def test_a_file_over_the_limit_is_an_error(hostile):
    failure = hostile.run("hostile", "big_file_graph", {}, limits={"file_size": 1024**2}).failure
    assert (failure.kind, failure.error_type) == ("error", "OSError")


def test_a_long_log_is_cut_and_says_so(hostile):
    stdout = hostile.blobs.get(hostile.run("hostile", "chatter_graph", {}).stdout)
    assert len(stdout) < 10 * 1024**2 + 200
    assert b"[cut: the first 10485760 of 11534337 bytes are kept]" in stdout[-200:]


def test_a_process_may_have_a_name_that_is_no_text(bench):
    bench.add_scripted()
    code = """
        import ctypes, time
        set_name = 15
        assert ctypes.CDLL(None).prctl(set_name, b"w\\xc3", 0, 0, 0) == 0
        time.sleep(0.7)
        value = "alive"
    """
    assert bench.find_value(code) == "alive"
