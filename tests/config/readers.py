"""Which config keys are read where: attribute reads of the code, with the types that a reader of it would infer.

Enough of inference for this: annotations of arguments, results and fields; assignments, loops and comprehensions; the
attributes of a section. A name's type is the set of all sections it may be; what is not inferred is no read.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from modelzoo.config.loading.walk import models

Types = frozenset[type[BaseModel]]
NONE: Types = frozenset()


class Readers:
    """The (section, key) pairs that the code under some folders reads, with the files that do.

    Args:
        sections: every section of the schema.
        files: the code, config and all.
        inside: whether a file belongs to the schema itself, where a read counts only if what it serves is read outside.
    """

    def __init__(self, sections: Iterable[type[BaseModel]], files: Iterable[Path], inside):
        self.sections = {s.__name__: s for s in sections}
        self.inside = inside
        self.trees = {f: ast.parse(f.read_text(encoding="utf-8")) for f in files}
        self.results: dict[str, Types] = {}  # functions and properties by name
        self.members: dict[str, Types] = {}  # attributes of other classes by name
        self.reads: dict[tuple[type[BaseModel], str], set[Path]] = {}
        self.strings: dict[str, set[Path]] = {}  # text in the code, by what it says
        self.served: dict[tuple[type[BaseModel], str], set[tuple[type[BaseModel] | None, str]]] = {}
        for _ in range(3):  # types travel from one module to the next
            for file, tree in self.trees.items():
                self._module(file, tree)

    def of(self, section: type[BaseModel], key: str) -> set[Path]:
        """The files that read a key, or call a function or property of the schema's that reads it."""
        return self._of(section, key, set())

    def _of(self, section, key: str, seen: set) -> set[Path]:
        found = {f for f in self.reads.get((section, key), ()) if not self.inside(f)}
        for owner, method in self.served.get((section, key), set()) - seen:
            seen.add((owner, method))
            heirs = [s for s in self.sections.values() if issubclass(s, owner)] if owner else [None]
            for heir in heirs:
                found |= self._of(heir, method, seen)
        return found

    def _annotated(self, node: ast.expr | None) -> Types:
        if node is None:
            return NONE
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                node = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return NONE
        named = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & self.imported.keys()
        found = {self.imported[n] for n in named}
        found |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        return frozenset(self.sections[n] for n in found if n in self.sections)

    def _module(self, file: Path, tree: ast.Module) -> None:
        self.file, self.aliases, self.imported = file, {}, {}
        if self.inside(file):
            self.imported = {name: name for name in self.sections}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.strings.setdefault(node.value, set()).add(file)
            if isinstance(node, ast.ImportFrom):
                self.aliases |= {a.asname: a.name for a in node.names if a.asname}
                if ".config" in (node.module or ""):
                    self.imported |= {a.asname or a.name: a.name for a in node.names if a.name in self.sections}
        self._block(tree.body, {}, None, None)

    def _block(self, body: list[ast.stmt], scope: dict[str, Types], owner: type[BaseModel] | None, method) -> None:
        for statement in body:
            self._statement(statement, scope, owner, method)

    def _statement(self, node: ast.stmt, scope, owner, method) -> None:
        if isinstance(node, ast.ClassDef):
            section = self.sections.get(node.name) if self.inside(self.file) else None
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and section is None:
                    self._join(self.members, item.target.id, self._annotated(item.annotation))
                self._statement(item, dict(scope), section, None)
        elif isinstance(node, ast.FunctionDef):
            inner = dict(scope)
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for i, a in enumerate(arguments):
                inner[a.arg] = frozenset({owner}) if i == 0 and owner is not None else self._annotated(a.annotation)
            for d in node.decorator_list:  # `@rate.register(LinearLR)`: functools.singledispatch
                self._expression(d, scope, method)
                if isinstance(d, ast.Attribute) and d.attr == "register" and arguments[0].annotation is not None:
                    self._expression(arguments[0].annotation, scope, method)
                if isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute) and d.func.attr == "register":
                    first = arguments[0].arg
                    inner[first] |= frozenset().union(*(self._annotated(a) for a in d.args))
            self._join(self.results, node.name, self._annotated(node.returns))
            serves = (owner, node.name) if self.inside(self.file) and method is None else method
            self._block(node.body, inner, None, serves)
        elif isinstance(node, ast.For):
            self._expression(node.iter, scope, method)
            self._bind(node.target, self._type(node.iter, scope, method), scope, node.iter, method)
            self._block([*node.body, *node.orelse], scope, owner, method)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    self._statement(child, scope, owner, method)
                elif isinstance(child, ast.ExceptHandler | ast.withitem | ast.match_case):
                    for part in ast.iter_child_nodes(child):
                        visit = self._statement if isinstance(part, ast.stmt) else self._expression
                        visit(part, scope, owner, method) if isinstance(part, ast.stmt) else visit(part, scope, method)
                elif isinstance(child, ast.expr):
                    self._expression(child, scope, method)
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bind(target, self._type(node.value, scope, method), scope, node.value, method)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                scope[node.target.id] = self._annotated(node.annotation)

    def _bind(self, target: ast.expr, found: Types, scope, value: ast.expr, method) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = scope.get(target.id, NONE) | found
        elif isinstance(target, ast.Attribute):
            self._join(self.members, target.attr, found)
        elif isinstance(target, ast.Tuple | ast.List):
            pairs = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
            for i, part in enumerate(target.elts):
                own = self._type(value.elts[i], scope, method) if pairs else found
                self._bind(part, own, scope, value.elts[i] if pairs else value, method)

    def _expression(self, node: ast.AST, scope, method) -> None:
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            scope = dict(scope)
            for g in node.generators:
                self._expression(g.iter, scope, method)
                self._bind(g.target, self._type(g.iter, scope, method), scope, g.iter, method)
        elif isinstance(node, ast.Lambda):
            scope = dict(scope)
        elif isinstance(node, ast.NamedExpr):
            self._bind(node.target, self._type(node.value, scope, method), scope, node.value, method)
        for child in ast.iter_child_nodes(node):
            self._expression(child, scope, method)
        if isinstance(node, ast.Name):
            self.reads.setdefault((None, self.aliases.get(node.id, node.id)), set()).add(self.file)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            self.reads.setdefault((None, node.attr), set()).add(self.file)
            self._read(self._type(node.value, scope, method), node.attr, method)
        elif isinstance(node, ast.Call) and _called(node) in ("getattr", "hasattr") and len(node.args) > 1:
            key = node.args[1]
            self._read(self._type(node.args[0], scope, method), getattr(key, "value", ""), method)

    def _read(self, owners: Types, key: str, method) -> None:
        for section in owners:
            self.reads.setdefault((section, key), set()).add(self.file)
            if method is not None:
                self.served.setdefault((section, key), set()).add(method)

    def _type(self, node: ast.expr, scope, method) -> Types:
        if isinstance(node, ast.Name):
            return scope.get(node.id, NONE)
        if isinstance(node, ast.Attribute):
            owners, found = self._type(node.value, scope, method), NONE
            for section in owners:
                if node.attr == "value" and "value" not in section.model_fields:
                    found |= {m for f in section.model_fields.values() for m in models(f.annotation)}
                elif node.attr in section.model_fields:
                    found |= set(models(section.model_fields[node.attr].annotation))
                else:
                    found |= self.results.get(node.attr, NONE)
            return frozenset(found) if owners else self.members.get(node.attr, NONE)
        if isinstance(node, ast.Call):
            f = node.func
            if isinstance(f, ast.Name) and f.id in self.imported:
                return frozenset({self.sections[self.imported[f.id]]})
            if isinstance(f, ast.Attribute) and f.attr in ("model_validate", "model_copy", "items", "values", "get"):
                named = self._annotated(f.value) if f.attr == "model_validate" else NONE
                return named or self._type(f.value, scope, method)
            if _called(node) in ("list", "tuple", "reversed", "sorted", "enumerate", "zip", "next", "iter"):
                return frozenset().union(*(self._type(a, scope, method) for a in node.args), NONE)
            if _called(node) in ("load", "validate"):
                named = frozenset().union(*(self._annotated(a) for a in node.args if isinstance(a, ast.Name)), NONE)
                if named:
                    return named
            return self.results.get(self.aliases.get(_called(node), _called(node)), NONE)
        if isinstance(node, ast.Subscript | ast.Starred | ast.Await):
            return self._type(node.value, scope, method)
        if isinstance(node, ast.NamedExpr):
            return self._type(node.value, scope, method)
        if isinstance(node, ast.IfExp):
            return self._type(node.body, scope, method) | self._type(node.orelse, scope, method)
        if isinstance(node, ast.BoolOp):
            return frozenset().union(*(self._type(v, scope, method) for v in node.values))
        if isinstance(node, ast.Tuple | ast.List):
            return frozenset().union(*(self._type(v, scope, method) for v in node.elts), NONE)
        if isinstance(node, ast.GeneratorExp | ast.ListComp):
            inner = dict(scope)
            for g in node.generators:
                self._bind(g.target, self._type(g.iter, inner, method), inner, g.iter, method)
            return self._type(node.elt, inner, method)
        if isinstance(node, ast.BinOp):
            return self._type(node.left, scope, method) | self._type(node.right, scope, method)
        return NONE

    @staticmethod
    def _join(where: dict[str, Types], name: str, found: Types) -> None:
        if found:
            where[name] = where.get(name, NONE) | found


def _called(node: ast.Call) -> str:
    """The last part of what is called."""
    f = node.func
    return f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else ""
