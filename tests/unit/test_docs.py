"""The docs say what the code says: keys, defaults, tables, types, routes, commands, links."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml
from pydantic import BaseModel

from wtb_core import cli, events, projects, specs, states, testbench

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def sections(name: str) -> dict[str, str]:
    """The text below each heading, up to the next heading of any level, without fenced code."""
    text = re.sub(r"^```.*?^```$", "", read(name), flags=re.DOTALL | re.MULTILINE)
    found: dict[str, str] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
            assert heading not in found, f"{name} has two headings {heading!r}"
        found[heading] = found.get(heading, "") + line + "\n"
    return found


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a text, each a list of rows with the head first."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not inside:
            found.append([])
            inside = True
        if not set("".join(cells)) <= {"-", ":"}:
            found[-1].append(cells)
    return found


def code(cell: str) -> str:
    return cell.strip("`")


def keys(name: str, heading: str, number: int = 0) -> dict[str, str]:
    """Keys and their defaults in a table of three columns."""
    _, *rows = tables(sections(name)[heading])[number]
    assert len({row[0] for row in rows}) == len(rows)
    return {code(row[0]): code(row[1]) for row in rows}


MODELS = [
    ("docs/spec.md", "Batch", 0, specs.BatchSpec, {"project": "p", "cases": [{"input": 1}]}),
    ("docs/spec.md", "Variant", 0, specs.Variant, {"name": "v"}),
    ("docs/spec.md", "Matrix", 0, specs.Matrix, {}),
    ("docs/spec.md", "Matrix", 1, specs.MatrixEntry, {}),
    ("docs/spec.md", "Limits", 0, specs.Limits, {}),
    ("docs/spec.md", "Retry", 0, specs.Retry, {}),
    ("docs/spec.md", "Workspace", 0, specs.Workspace, {}),
    ("docs/project.md", "Project", 0, projects.ProjectFile, {"name": "p"}),
    ("docs/project.md", "Score rule", 0, projects.ScoreRule, {}),
    ("docs/project.md", "Environment", 0, projects.Environment, {}),
]


@pytest.mark.parametrize(
    ("page", "heading", "number", "model", "required"),
    MODELS,
    ids=[f"{model[3].__name__}" for model in MODELS],
)
def test_every_key_is_documented_with_its_default(
    page: str, heading: str, number: int, model: type[BaseModel], required: dict[str, Any]
) -> None:
    """A documented default, read as YAML, is the value that a model without the key has."""
    documented = keys(page, heading, number)
    fields = {field.alias or name: name for name, field in model.model_fields.items()}

    assert documented.keys() == fields.keys()

    bare = model.model_validate(required)
    for key, default in documented.items():
        if model.model_fields[fields[key]].is_required():
            assert default == "required", key
        else:
            given = model.model_validate({**required, key: yaml.safe_load(default)})
            assert getattr(given, fields[key]) == getattr(bare, fields[key]), key


def test_every_key_of_a_case_is_documented() -> None:
    """Cases are plain dicts: their keys have no defaults, only presence."""
    documented = keys("docs/spec.md", "Case")

    assert documented.keys() == specs.Case.__annotations__.keys()
    required = {key for key, default in documented.items() if default == "required"}
    assert required == specs.Case.__required_keys__


def class_defaults(source: str, name: str) -> dict[str, str]:
    """The fields of a class and the text of their defaults, without importing its module."""
    module = ast.parse(read(source))
    found = next(n for n in module.body if isinstance(n, ast.ClassDef) and n.name == name)
    defaults: dict[str, str] = {}
    for statement in found.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        value = statement.value
        assert value is not None
        if isinstance(value, ast.Call):
            keywords = {k.arg: k.value for k in value.keywords}
            value = keywords.get("default", ast.Dict([], []))
        defaults[statement.target.id] = ast.unparse(value)
    return defaults


@pytest.mark.parametrize(("number", "name"), [(0, "AppArgs"), (1, "ExecutorArgs")])
def test_every_argument_of_the_application_is_documented(number: int, name: str) -> None:
    """`args` of the Serve config, with defaults."""
    documented = keys("docs/service.md", "Arguments of the application", number)
    defaults = class_defaults("deployments/app.py", name)

    assert documented.keys() == defaults.keys()
    for key, text in defaults.items():
        value = eval(text, {"__builtins__": {}})
        assert yaml.safe_load(documented[key]) == value, key


@pytest.mark.parametrize(
    ("heading", "table"), [("Execution", states.EXECUTION), ("Batch", states.BATCH)]
)
def test_the_state_tables_are_those_of_the_code(heading: str, table: dict[Any, str]) -> None:
    """Every transition, in the order of the code, and no other."""
    head, *rows = tables(sections("docs/concepts.md")[heading])[0]

    assert head == ["state", "input", "next state"]
    documented = [tuple(map(code, row)) for row in rows]
    assert documented == [(state, given, after) for (state, given), after in table.items()]


def test_the_failure_kinds_are_those_of_the_code() -> None:
    """Which kinds there are, which count against the variant, which may be retried."""
    _, *rows = tables(sections("docs/concepts.md")["Failure kinds"])[0]
    kinds = [code(row[0]) for row in rows]

    assert kinds == list(get_args(specs.FailureKind))
    assert {k for k, row in zip(kinds, rows, strict=True) if row[2] == "no"} == set(
        states.INFRASTRUCTURE_KINDS
    )
    assert {k for k, row in zip(kinds, rows, strict=True) if row[3] == "yes"} == set(
        get_args(specs.RetryableKind)
    )


def event_classes() -> dict[str, type[BaseModel]]:
    members, _discriminator = get_args(events.Event)
    classes = get_args(members)
    return {get_args(cls.model_fields["type"].annotation)[0]: cls for cls in classes}


def event_sections() -> dict[str, str]:
    found = sections("docs/events.md")
    return {code(heading): text for heading, text in found.items() if heading.startswith("`")}


def test_every_event_type_is_documented() -> None:
    """Seventeen headings, one a type."""
    assert sorted(event_sections()) == sorted(events.EVENT_TYPES)


@pytest.mark.parametrize("kind", events.EVENT_TYPES)
def test_every_payload_field_is_documented(kind: str) -> None:
    """The names of an attempt stand once, above."""
    text = event_sections()[kind]
    payload: Any = event_classes()[kind].model_fields["payload"].annotation
    names = set(payload.model_fields)
    attempt = {"execution_id", "attempt", "variant", "case_id", "repetition"}
    if attempt <= names:
        assert "The attempt's names" in text
        names -= attempt | {"actor_id", "replica_id"}

    assert not {name for name in names if f"`{name}`" not in text}


@pytest.mark.parametrize("kind", events.EVENT_TYPES)
def test_an_event_that_nothing_appends_is_said_to_be_so(kind: str) -> None:
    """A payload that no module of ours constructs is not appended in this version."""
    payload: Any = event_classes()[kind].model_fields["payload"].annotation
    sources = [*(ROOT / "wtb_core").rglob("*.py"), *(ROOT / "deployments").rglob("*.py")]
    appended = any(
        re.search(rf"\bev\.{payload.__name__}\(", source.read_text(encoding="utf-8"))
        for source in sources
    )

    assert ("Not appended in this version" in event_sections()[kind]) is not appended


def routes() -> set[str]:
    """`POST /v1/batches` and so on, from the source: importing it would import ray."""
    found = re.findall(r'@app\.(\w+)\(\s*"([^"]+)"', read("deployments/routes.py"))
    assert found
    return {f"{method.upper()} {path.replace(':any', '')}" for method, path in found}


@pytest.mark.parametrize(("page", "heading"), [("README.md", "HTTP"), ("docs/http.md", "HTTP")])
def test_the_route_tables_are_those_of_the_code(page: str, heading: str) -> None:
    """Every route, and no route that is not there."""
    _, *rows = tables(sections(page)[heading])[0]

    assert {code(row[0]) for row in rows} == routes()


def commands(group: click.Group, prefix: str = "wtb") -> set[str]:
    found: set[str] = set()
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        found |= commands(command, path) if isinstance(command, click.Group) else {path}
    return found


def test_the_command_table_is_that_of_the_code() -> None:
    """Every command, and no command that is not there."""
    _, *rows = tables(sections("README.md")["Commands"])[0]
    documented = {re.sub(r" [A-Z]+$", "", code(row[0])) for row in rows}

    assert documented == commands(cli.main)


COMMANDS = {
    re.sub(r"( [A-Z]+)+$", "", code(heading)): text
    for heading, text in sections("docs/cli.md").items()
    if heading.startswith("`wtb ")
}


def find_command(path: str) -> click.Command:
    command: click.Command = cli.main
    for name in path.split()[1:]:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def options_in(text: str) -> dict[str, str]:
    """The options in a table of three columns, with what is said of their defaults."""
    found: dict[str, str] = {}
    for table in tables(text):
        for row in table[1:]:
            for option in re.findall(r"`([^`]+)`", row[0]):
                found[option] = row[1]
    return found


def test_every_command_is_described() -> None:
    """One heading a command."""
    assert COMMANDS.keys() == commands(cli.main)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_of_a_command_is_documented_with_its_default(path: str) -> None:
    """Its own in a table, shared ones by a link to their section."""
    documented = options_in(COMMANDS[path])
    for heading in ("Options of a service", "Options of a selection"):
        if f"(#{heading.lower().replace(' ', '-')})" in COMMANDS[path]:
            documented |= options_in(sections("docs/cli.md")[heading])
    options = [p for p in find_command(path).params if isinstance(p, click.Option)]

    assert documented.keys() == {o for p in options for o in (*p.opts, *p.secondary_opts)}
    for option in options:
        default = option.to_info_dict()["default"]
        if isinstance(default, str | int) and not isinstance(default, bool):
            assert code(documented[option.opts[0]]) == str(default), option.opts


def signature(cls: type, name: str) -> str:
    parameters = inspect.signature(getattr(cls, name)).parameters.values()
    bare = [p.replace(annotation=p.empty) for p in parameters if p.name != "self"]
    text = str(inspect.Signature(bare))
    return name + re.sub(r"projects=\(.*?\)", "projects=...", text)


@pytest.mark.parametrize("cls", [testbench.TestBench, testbench.AsyncTestBench])
def test_every_method_of_a_bench_is_documented_with_its_parameters(cls: type) -> None:
    """Constructors in one table, the others in another; no method that is not there."""
    found = sections("docs/python.md")
    documented = [
        code(row[0])
        for heading in ("Which bench", "Methods")
        for row in tables(found[heading])[0][1:]
    ]

    names = [name for name in vars(cls) if not name.startswith("_")]
    assert sorted(documented) == sorted(signature(cls, name) for name in names)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    """Relative links: the file, and the heading in it."""
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            text = target.read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}
            assert anchor in slugs, link


def test_the_specs_in_the_docs_are_specs() -> None:
    """YAML blocks with cases pass the checks of form."""
    found = 0
    for page in PAGES:
        for block in re.findall(
            r"^```yaml\n(.*?)^```$",
            page.read_text(encoding="utf-8"),
            flags=re.DOTALL | re.MULTILINE,
        ):
            document = yaml.safe_load(block)
            if "cases" in document:
                assert specs.find_problems(document) == []
            else:
                projects.ProjectFile.model_validate(document)
            found += 1
    assert found >= 4
