"""The first code in every process that runs user code: `python -I -B boot.py MODE SOCKET...`.

The interpreter may be another virtual environment, with its own langgraph and without this
package. Only the package's own directory is made importable; the site-packages around it stay out
of `sys.path`.
"""

import importlib.util
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


def main() -> None:
    """Become what the command line says."""
    mode, *numbers = sys.argv[1:]
    sys.argv[:] = [""]
    _make_package_importable()
    session, *leash = [socket.socket(fileno=int(number)) for number in numbers]
    for sock in (session, *leash):
        sock.set_inheritable(False)
    if mode == "child":
        _run(mode, session)
    from wtb_core.sandbox import init

    init.supervise(leash[0], lambda: _run(mode, session))


def _run(mode: str, session: socket.socket) -> NoReturn:
    """What each mode imports stays out of the others, above all langgraph out of the init."""
    if mode == "zygote":
        from wtb_core.sandbox import zygote

        zygote.serve(session)
    elif mode == "launcher":
        from wtb_core.sandbox import forking

        forking.launch_fresh(session, Path(__file__).resolve())
    from wtb_core.sandbox import child

    child.main(session, None)


if __name__ == "__main__":
    main()
