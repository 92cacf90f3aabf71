"""The library's reference as Markdown for Sphinx's Python domain, read from the source without importing it.

The docstrings are Markdown with sections such as `Args:`. Sphinx's own autodoc would read them as reStructuredText, and
needs torch.
"""

import ast
import inspect
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAPERS = json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))
FIELDS = {"Args": "param", "Attributes": "ivar", "Raises": "raises"}
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def link_papers(text: str) -> str:
    """Markdown in which each known paper is a link, and each arXiv number."""
    for paper in sorted(PAPERS, key=len, reverse=True):
        words = r"\s+".join(map(re.escape, paper.split()))  # a line may end within
        text = re.sub(rf"(?<!\[){words}(?!\d|, arXiv)", f"[{paper}]({PAPERS[paper]})", text)
    return ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", text)


def field_list(body: str, field: str) -> str:
    """`name: text` entries of a docstring's section, as a field list."""
    entries = []
    for line in inspect.cleandoc(body).splitlines():
        if match := re.match(r"([*\w.]+(?:, [*\w.]+)*): (.*)", line):
            entries.append(f":{field} {match[1].replace('*', '')}: {match[2]}")
        elif entries:
            entries[-1] += " " + line.strip()
        else:
            return inspect.cleandoc(body)  # plain sentences
    return "\n".join(entries)


def markdown(docstring: str | None) -> str:
    """A docstring as Markdown, its sections as field lists, its papers as links."""
    parts = re.split(
        r"(?m)^(Args|Attributes|Raises|Returns|Yields|Source):[ ]*\n(?=[ ])", inspect.cleandoc(docstring or "")
    )
    text = [link_papers(parts[0])]
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        fields, _, rest = re.match(r"((?:(?:[ ].*)?\n)*?(?:[ ].*(?:\n|\Z))+)(\n*)(?=\S|\Z)([\s\S]*)", body).group(
            1, 2, 3
        )
        shown = field_list(fields, FIELDS[name]) if name in FIELDS else f":{name.lower()}: " + " ".join(fields.split())
        text += [link_papers(shown), link_papers(rest)]
    return "\n\n".join(part.strip("\n") for part in text if part.strip())


def signature(node: ast.FunctionDef) -> str:
    """`(x: Tensor, …) -> Tensor`, without self."""
    arguments = node.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments = ast.parse(f"def f({ast.unparse(arguments)}): ...").body[0].args
        arguments.args = arguments.args[1:]
        if len(arguments.defaults) > len(arguments.args):
            arguments.defaults = arguments.defaults[1:]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(arguments)}){returns}"


def directive(kind: str, head: str, body: str, options: tuple[str, ...] = ()) -> str:
    """A directive with a fence longer than any inside it."""
    inside = max((len(fence) for fence in re.findall(r"(?m)^:{3,}", body)), default=2)
    fence = ":" * (inside + 1)
    return "\n".join([f"{fence}{{py:{kind}}} {head}", *options, "", body, fence])


def entry(node: ast.stmt) -> str:
    """A public class or function with all that is public in it."""
    body = markdown(ast.get_docstring(node))
    if isinstance(node, ast.FunctionDef):
        return directive("function", node.name + signature(node), body)
    members, head = [], ""
    for member in node.body:
        if not isinstance(member, ast.FunctionDef):
            continue
        if member.name == "__init__":
            head = signature(member).removesuffix(" -> None")
        elif not member.name.startswith("_"):
            marks = {ast.unparse(mark) for mark in member.decorator_list}
            documented = markdown(ast.get_docstring(member))
            if marks & {"property", "functools.cached_property"}:
                kind = ("property", member.name, documented, (f":type: {ast.unparse(member.returns)}",))
                members.append(directive(*kind))
            else:
                marked = tuple(f":{mark}:" for mark in ("classmethod", "staticmethod") if mark in marks)
                members.append(directive("method", member.name + signature(member), documented, marked))
    return directive("class", node.name + head, "\n\n".join([body, *members]))


def page(path: Path) -> tuple[str, str]:
    """The module's name, and its page."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    head = f"# {module.removeprefix('course_lib.')}\n\n```{{py:module}} {module}\n```\n\n"
    return module, head + "\n\n".join([markdown(ast.get_docstring(tree)), *map(entry, public)]) + "\n"
