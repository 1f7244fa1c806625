"""The maker of slots, without a project."""

import subprocess
import sys

import pytest
from levels import LEVELS, find_obstacle

FAIL_ONCE = """
import errno, os, socket
from wtb_core.sandbox import kernel, launcher, slots
from wtb_core.sandbox.wire import Channel

kernel.enter_user_namespace(os.CLONE_NEWPID)
if (launched := os.fork()):
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(launched, 0)[1]))
fork, pids = os.fork, os.open("/proc/self/ns/pid", os.O_RDONLY)

def ask():
    ours, theirs = socket.socketpair()
    control, _ = socket.socketpair()
    launcher._fork_init(control, theirs.detach(), pids, None)
    return Channel(ours).receive()[0]

def refuse():
    raise OSError(errno.EAGAIN, "no process more")

slots.become_init = lambda leash, sources: Channel(leash).send({"pid": os.getpid()})
os.fork = refuse
assert ask()["failed"]["errno"] == errno.EAGAIN
os.fork = fork
assert ask() == {"pid": 1}
"""


def test_a_launcher_that_could_not_fork_once_makes_slots_again(tmp_path):
    if (obstacle := find_obstacle(LEVELS["overlay"], tmp_path)) is not None:
        pytest.skip(obstacle)
    ended = subprocess.run(
        [sys.executable, "-c", FAIL_ONCE], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
