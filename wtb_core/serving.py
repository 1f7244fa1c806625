"""The service as a process: which Serve config it has, with which changes, and what may be wrong.

The config is Ray Serve's. That of the repository is also in the wheel, for folders without one.
"""

import copy
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import wtb_core
from wtb_core.data import DataDir
from wtb_core.errors import InvalidRequest, Unavailable
from wtb_core.projects import find_project_files
from wtb_core.testbench import DEFAULT_PROJECTS

CONFIG = "serve_config.yaml"
APPLICATION = "deployments.app:build_app"
OURS = ("deployments", "wtb_core")
_PACKAGE = Path(wtb_core.__file__).parent


class ServeConfig(NamedTuple):
    """A Serve config with our application in it."""

    path: Path
    content: dict[str, Any]

    @property
    def host(self) -> str:
        """Where the proxy listens; Serve's own default is every address."""
        return str(self._http.get("host", "0.0.0.0"))  # noqa: S104 - what Serve does

    @property
    def port(self) -> int:
        """The proxy's port."""
        return int(self._http.get("port", 8000))

    @property
    def url(self) -> str:
        """Where this machine reaches the service."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - see `host`
        return f"http://{host}:{self.port}"

    @property
    def args(self) -> dict[str, Any]:
        """The application's arguments."""
        return _find_application(self.content).get("args") or {}

    @property
    def root(self) -> Path:
        """Where relative paths start."""
        return Path(self.args.get("root") or os.environ.get("WTB_ROOT") or ".").resolve()

    @property
    def data_dir(self) -> Path:
        """Where batches, events and files are kept."""
        return self.root / self.args.get("data_dir", ".wtb")

    @property
    def data(self) -> DataDir:
        """All places of data."""
        blobs, cache = (self.args.get(key) for key in ("blob_dir", "cache_dir"))
        return DataDir(
            self.data_dir,
            None if blobs is None else self.root / blobs,
            None if cache is None else self.root / cache,
        )

    @property
    def patterns(self) -> list[str]:
        """Project files and globs."""
        return list(self.args.get("projects", ["examples/*/project.yaml"]))

    @property
    def tokens(self) -> dict[str, str]:
        """References to tokens, by user."""
        return self.args.get("tokens") or {}

    @property
    def _http(self) -> dict[str, Any]:
        return self.content.get("http_options") or {}

    def change(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        projects: Sequence[str] = (),
        data_dir: str | None = None,
    ) -> "ServeConfig":
        """The same config with what is given instead of what it says."""
        content = copy.deepcopy(self.content)
        http = content["http_options"] = content.get("http_options") or {}
        http |= {k: v for k, v in (("host", host), ("port", port)) if v is not None}
        application = _find_application(content)
        args = application["args"] = application.get("args") or {}
        if projects:
            args["projects"] = list(projects)
        if data_dir is not None:
            args["data_dir"] = str(Path(data_dir).absolute())
        return self._replace(content=content)

    def find_projects(self) -> list[Path]:
        """The project files that the service will find now."""
        return find_project_files(self.root, self.patterns)

    def write(self, folder: Path) -> Path:
        """The file that was read, or when something was changed one in `folder`."""
        if _load(self.path) == self.content:
            return self.path
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / CONFIG
        file.write_text(yaml.safe_dump(self.content, sort_keys=False), encoding="utf-8")
        return file


def read_config(path: Path | None = None) -> ServeConfig:
    """The config at `path`, else in this folder, else the packaged one.

    The packaged one looks for projects in the working directory and below.

    Raises:
        InvalidRequest: when the file is no config with our application.
    """
    if path is None and Path(CONFIG).is_file():
        path = Path(CONFIG)
    if path is not None:
        return ServeConfig(path, _load(path))
    # A clone has the one file at its root; a wheel has it beside the code.
    found = next(p for p in (_PACKAGE / CONFIG, _PACKAGE.parent / CONFIG) if p.is_file())
    return ServeConfig(found, _load(found)).change(projects=DEFAULT_PROJECTS)


def serve_command(config: Path) -> list[str]:
    """The command that runs the service of `config` in a Ray cluster of its own.

    Raises:
        Unavailable: when Ray Serve is not installed.
    """
    arguments = ["run", "--address", "local", str(config)]
    script = Path(sys.executable).with_name("serve")  # on the PATH it may be another program
    if script.is_file():
        return [str(script), *arguments]
    if importlib.util.find_spec("ray") is None:
        raise Unavailable("Ray Serve is not installed for " + sys.executable)
    return [sys.executable, "-m", "ray.serve.scripts", *arguments]


def find_shadow(folder: Path) -> Path | None:
    """A package in `folder` that hides one of ours: Ray puts the working directory on the path."""
    for name in OURS:
        for path in (folder / name / "__init__.py", folder / f"{name}.py"):
            if path.is_file() and path.resolve() != (_PACKAGE.parent / name / "__init__.py"):
                return path
    return None


def is_free(host: str, port: int) -> bool:
    """Whether a service could listen there.

    Raises:
        InvalidRequest: when this machine has no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError) as error:
        raise InvalidRequest("host", f"{host}:{port} is no address: {error}") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def find_free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(str(path), f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(str(path), f"is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequest(str(path), "a Serve config is a mapping")
    http = content.get("http_options")
    if http is not None and not isinstance(http, dict):
        raise InvalidRequest(str(path), "http_options: a mapping with `host` and `port`")
    if not str((http or {}).get("port", 8000)).isdigit():
        raise InvalidRequest(str(path), "http_options.port: a number")
    try:
        args = _find_application(content).get("args")
    except InvalidRequest as error:
        raise InvalidRequest(str(path), error.message) from None
    if args is not None and not isinstance(args, dict):
        raise InvalidRequest(str(path), "args: a mapping")
    return content


def _find_application(content: dict[str, Any]) -> dict[str, Any]:
    applications: Any = content.get("applications")
    for application in applications if isinstance(applications, list) else []:
        if isinstance(application, dict) and application.get("import_path") == APPLICATION:
            return application
    raise InvalidRequest("applications", f"none has the import_path {APPLICATION}")
