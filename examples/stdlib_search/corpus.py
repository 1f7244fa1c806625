"""The workspace: the docstrings of the running interpreter's standard library, and two indexes.

Python sources are parsed, never imported. What is written in C has no source; the modules in
`WRITTEN_IN_C` are imported for it, which none of them minds. Equal interpreters give equal files.
"""

import ast
import importlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from text import trigrams, words

MAX_DOC_CHARS = 2000

# Not libraries: tests, programs, generated tables.
LEFT_OUT = {"antigravity", "encodings", "ensurepip", "idlelib", "lib2to3", "this", "turtledemo"}
LEFT_OUT |= {"pydoc_data", "test", "tests"}
WRITTEN_IN_C = """
array binascii builtins cmath codecs collections contextvars csv datetime decimal errno faulthandler
fcntl functools gc hashlib io itertools marshal math mmap operator os pickle pwd re resource select
signal socket sqlite3 ssl struct sys syslog termios threading time types unicodedata weakref zlib
""".split()  # noqa: SIM905 - fifty lines of one name each are harder to read


class Document(NamedTuple):
    """A docstring: where it is found, as in `csv.DictWriter.writerow`, and what it says."""

    name: str
    kind: str
    doc: str


def build(workspace: Path) -> None:
    """Write the documents, one JSON object a line and sorted by name, and the indexes over them.

    An index has each document's length in terms, and for each term the numbers of the documents
    that have it with its count in them: `{"lengths": [12, ...], "postings": {"sort": [[7, 2]]}}`.
    """
    found = {document.name: document for document in _written_in_c()}
    found |= {document.name: document for document in _written_in_python()}
    documents = [found[name] for name in sorted(found)]
    lines = (json.dumps(document._asdict()) + "\n" for document in documents)
    (workspace / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    texts = [f"{document.name} {document.doc}" for document in documents]
    _write_index(workspace / "words.json", [words(text) for text in texts])
    headlines = [f"{document.name} {_headline(document.doc)}" for document in documents]
    _write_index(workspace / "trigrams.json", [trigrams(text) for text in headlines])


def _headline(doc: str) -> str:
    return doc.partition("\n")[0]


def _write_index(path: Path, documents: list[list[str]]) -> None:
    postings: dict[str, dict[int, int]] = {}
    for number, terms in enumerate(documents):
        for term in terms:
            counts = postings.setdefault(term, {})
            counts[number] = counts.get(number, 0) + 1
    index = {
        "lengths": [len(terms) for terms in documents],
        "postings": {term: list(postings[term].items()) for term in sorted(postings)},
    }
    path.write_text(json.dumps(index, separators=(",", ":")), encoding="utf-8")


def _written_in_python() -> Iterator[Document]:
    library = Path(sysconfig.get_path("stdlib"))
    for name in sys.stdlib_module_names - LEFT_OUT:
        single = library / f"{name}.py"
        for path in [single] if single.is_file() else (library / name).rglob("*.py"):
            parts = path.relative_to(library).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if all(_is_public(part) and part not in LEFT_OUT for part in parts):
                tree = ast.parse(path.read_bytes())
                yield from _of_tree(tree, ".".join(parts), "module")


def _of_tree(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, kind: str
) -> Iterator[Document]:
    yield from _document(name, kind, ast.get_docstring(node))
    if kind in {"function", "method"}:
        return
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if _is_public(child.name):
            inside = "method" if kind == "class" else "function"
            child_kind = "class" if isinstance(child, ast.ClassDef) else inside
            yield from _of_tree(child, f"{name}.{child.name}", child_kind)


def _written_in_c() -> Iterator[Document]:
    for name in WRITTEN_IN_C:
        try:
            module = importlib.import_module(name)
        except ImportError:  # an interpreter may be built without some of them
            continue
        yield from _of_module(module)


def _of_module(module: ModuleType) -> Iterator[Document]:
    name = module.__name__
    yield from _document(name, "module", inspect.getdoc(module))
    for attribute, value in sorted(vars(module).items()):
        if not _is_public(attribute) or not _is_at_home(value, name):
            continue
        if inspect.isclass(value):
            yield from _document(f"{name}.{attribute}", "class", vars(value).get("__doc__"))
            for method, function in sorted(vars(value).items()):
                if _is_public(method) and callable(getattr(value, method)):
                    doc = getattr(function, "__doc__", None)
                    yield from _document(f"{name}.{attribute}.{method}", "method", doc)
        elif inspect.isbuiltin(value):
            yield from _document(f"{name}.{attribute}", "function", value.__doc__)


def _is_at_home(value: object, name: str) -> bool:
    """Whether the module defines the object, itself or in its part that is written in C."""
    home = getattr(value, "__module__", None)
    return home in {name, f"_{name}"} or (name, home) == ("os", "posix")


def _document(name: str, kind: str, doc: object) -> Iterator[Document]:
    if isinstance(doc, str) and doc.strip():
        yield Document(name, kind, inspect.cleandoc(doc)[:MAX_DOC_CHARS])


def _is_public(name: str) -> bool:
    return not name.startswith("_")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    build(target)
