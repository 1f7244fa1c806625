"""The first code in every process that runs user code: `python -I -B boot.py MODE KIND SOCKET...`.

The interpreter may be another virtual environment, with its own langgraph and without this
package. Only the package's own directory is made importable; the site-packages around it stay out
of `sys.path`.
"""

import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn


def _make_package_importable() -> None:
    directory = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        directory.name, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{directory} is not a package")
    package = importlib.util.module_from_spec(spec)
    sys.modules[directory.name] = package
    spec.loader.exec_module(package)


def _close_all_but(kept: list[int]) -> None:
    """Descriptors that the replica's starter left open for programs are not user code's."""
    first = 3
    for number in sorted(kept):
        os.closerange(first, number)
        first = number + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def main() -> None:
    """Become what the command line says: a mode, the kind of namespaces, and sockets."""
    mode, kind, *numbers = sys.argv[1:]
    sys.argv[:] = [""]
    _close_all_but([int(number) for number in numbers])
    _make_package_importable()
    sockets = [socket.socket(fileno=int(number)) for number in numbers]
    for sock in sockets:
        sock.set_inheritable(False)
    if mode == "child":
        _run(mode, sockets[0])
    from wtb_core.sandbox import init, kernel

    kernel.leave_session_keyring()
    if kind == "none":
        source, leash = sockets
        init.supervise(leash, lambda: _run(mode, source))
    from wtb_core.sandbox import launcher, root
    from wtb_core.sandbox.wire import Channel

    source, control, leash = sockets
    readable = root.find_readable()
    try:
        launcher.enter_namespaces(kind)
    except OSError as error:
        Channel(control).send(launcher.explain(error))
        sys.exit(1)
    init.supervise(
        leash, lambda: launcher.serve(control, source, readable, lambda: _run(mode, source))
    )


def _run(mode: str, session: socket.socket) -> NoReturn:
    """What each mode imports stays out of the others, above all langgraph out of the init."""
    if mode == "zygote":
        from wtb_core.sandbox import zygote

        zygote.serve(session)
    elif mode == "starter":
        from wtb_core.sandbox import forking

        forking.start_fresh(session, Path(__file__).resolve())
    elif mode == "prober":
        from wtb_core.sandbox import probing

        probing.serve(session)
    from wtb_core.sandbox import child

    child.main(session, None)


if __name__ == "__main__":
    main()
