"""An overlay mount in a user namespace of a forked process, which does what it is sent."""

# The plain calls of the kernel, which pathlib would normalise.
# ruff: noqa: PTH101, PTH102, PTH105, PTH106, PTH108, PTH112, PTH114, PTH115, PTH118, PTH123, PTH211

import contextlib
import ctypes
import os
import pickle
import shutil
import signal
import stat
import struct
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_PDEATHSIG = 1


def look(root):
    """Everything below `root` as {path: (kind, mode, content or target)}, read the plain way."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            key = os.path.relpath(path, root)
            if stat.S_ISLNK(info.st_mode):
                found[key] = ("link", 0o777, os.readlink(path))
            elif stat.S_ISDIR(info.st_mode):
                found[key] = ("directory", stat.S_IMODE(info.st_mode), None)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    found[key] = ("file", stat.S_IMODE(info.st_mode), file.read())
    return found


def do(root, operation):
    """One operation of user code below `root`; what the kernel refuses is not done."""
    name, path, *rest = operation
    path = f"{root}/{path}"
    with contextlib.suppress(OSError):
        _DO[name](root, path, *rest)


def _write(_root, path, data):
    with open(path, "wb") as file:
        file.write(data)


def _append(_root, path, data):
    with open(path, "r+b") as file:
        file.seek(0, 2)
        file.write(data)


def _chmod(_root, path, mode):
    if not os.path.islink(path):
        needed = 0o700 if os.path.isdir(path) else 0 if os.geteuid() == 0 else 0o600
        os.chmod(path, mode | needed)


def _remove(_root, path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _move(root, path, target):
    if not os.path.lexists(f"{root}/{target}"):
        shutil.move(path, f"{root}/{target}")


def _replace(root, path, target):
    if not any(os.path.isdir(place) for place in (path, f"{root}/{target}")):
        os.replace(path, f"{root}/{target}")


def _become_file(root, path, data):
    _remove(root, path)
    _write(root, path, data)


def _become_directory(root, path):
    _remove(root, path)
    os.mkdir(path)


def _become_link(root, path, target):
    _remove(root, path)
    os.symlink(target, path)


_DO = {
    "write": _write,
    "append": _append,
    "truncate": lambda _root, path, size: os.truncate(path, size),
    "chmod": _chmod,
    "symlink": lambda _root, path, target: os.symlink(target, path),
    "mkdir": lambda _root, path, mode: os.mkdir(path, mode | 0o700),
    "rmdir": lambda _root, path: os.rmdir(path),
    "remove": _remove,
    "move": _move,
    "replace": _replace,
    "become_file": _become_file,
    "become_directory": _become_directory,
    "become_link": _become_link,
    "mkfifo": lambda _root, path: os.mkfifo(path),
}


class Overlay:
    """`lower` directories, the topmost first, below `place`/upper.

    Raises:
        OSError: when the kernel refuses such a mount.
    """

    def __init__(self, place, lower):
        self.upper = place / "upper"
        for name in ("upper", "work", "merged"):
            (place / name).mkdir(parents=True)
        self._merged = place / "merged"
        mine, its = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(its[0])
                os.close(mine[1])
                _serve(place, lower, mine[0], its[1])
            finally:
                os._exit(1)
        os.close(mine[0])
        os.close(its[1])
        self._send, self._receive = mine[1], its[0]
        self._ask(None)

    def do(self, operations):
        return self._ask(operations)

    def look(self):
        return self._ask([])

    def close(self):
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._send)
        os.close(self._receive)

    def _ask(self, message):
        _send(self._send, message)
        answer = _receive(self._receive)
        if isinstance(answer, OSError):
            self.close()
            raise answer
        return answer


def _serve(place, lower, receive, send):
    _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)
    _receive(receive)
    try:
        _mount(place, lower)
    except OSError as error:
        _send(send, error)
        return
    _send(send, None)
    while True:
        for operation in _receive(receive):
            do(place / "merged", operation)
        _send(send, look(place / "merged"))


def _mount(place, lower):
    uid, gid = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1\n")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1\n")
    _call_mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    layers = ":".join(str(path) for path in lower)
    options = f"lowerdir={layers},upperdir={place}/upper,workdir={place}/work,userxattr,volatile"
    _call_mount("overlay", f"{place}/merged", "overlay", 0, options)


def _call_mount(source, target, kind, flags, options):
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    data = None if options is None else os.fsencode(options)
    if _LIBC.mount(*texts, ctypes.c_ulong(flags), data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _send(descriptor, message):
    data = pickle.dumps(message)
    data = struct.pack("Q", len(data)) + data
    while data:
        data = data[os.write(descriptor, data) :]


def _receive(descriptor):
    (size,) = struct.unpack("Q", _read(descriptor, 8))
    return pickle.loads(_read(descriptor, size))


def _read(descriptor, size):
    data = b""
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
