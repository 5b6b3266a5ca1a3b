"""Which names a piece of Python binds, and which it takes from outside."""

import ast
import builtins
from typing import NamedTuple

MODULE_NAMES = ("__name__", "__file__", "__doc__", "__package__", "__spec__")
KNOWN = {*dir(builtins), *MODULE_NAMES, "__class__", "__qualname__"}


class Use(NamedTuple):
    """A name taken from outside; `now`: while the module is imported."""

    name: str
    line: int
    now: bool


class Bindings(ast.NodeVisitor):
    """Collects what statements bind in their own scope."""

    def __init__(self):
        self.names: set[str] = set()
        self.elsewhere: set[str] = set()

    def visit_Name(self, node):
        if not isinstance(node.ctx, ast.Load):
            self.names.add(node.id)

    def visit_FunctionDef(self, node):
        self.names.add(node.name)

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef

    def visit_Import(self, node):
        for name in node.names:
            self.names.add(name.asname or name.name.split(".")[0])

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node):
        self.names |= {node.name} - {None}
        self.generic_visit(node)

    visit_MatchAs = visit_MatchStar = visit_ExceptHandler

    def visit_MatchMapping(self, node):
        self.names |= {node.rest} - {None}
        self.generic_visit(node)

    def visit_Global(self, node):
        self.elsewhere |= set(node.names)

    visit_Nonlocal = visit_Global

    def visit_Lambda(self, node):
        """A scope of its own."""

    def visit_ListComp(self, node):
        inner = (n for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
        self.names |= {n.target.id for n in inner}

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp


def bound(nodes) -> set[str]:
    """The names that `nodes` bind in the scope they stand in."""
    visitor = Bindings()
    for node in nodes:
        visitor.visit(node)
    return visitor.names - visitor.elsewhere


class Uses(ast.NodeVisitor):
    """Collects the names that a module's statements do not bind inside."""

    def __init__(self, lazy: bool = False):
        self.found: list[Use] = []
        self.visible: set[str] = set()  # here
        self.enclosing: set[str] = set()  # in a function defined here
        self.now = True
        self.lazy = lazy  # annotations are not evaluated
        self.annotation = False

    def use(self, name, line):
        if name not in self.visible:
            self.found.append(Use(name, line, self.now))

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load):
            self.use(node.id, node.lineno)

    def visit_AugAssign(self, node):
        if isinstance(node.target, ast.Name):
            self.use(node.target.id, node.lineno)
        self.generic_visit(node)

    def visit_Global(self, node):
        self.visible = self.visible - set(node.names)
        for name in node.names:
            self.use(name, node.lineno)

    def within(self, nodes, **state):
        """Visit nodes (or Nones) with some of the state changed."""
        saved = dict(self.__dict__)
        self.__dict__.update(state)
        for node in nodes:
            if node is not None:
                self.visit(node)
        self.__dict__.update(saved)

    def inside(self, names, nodes, now):
        """Visit nodes in a nested scope that binds `names`."""
        seen = self.enclosing | names
        self.within(nodes, visible=seen, enclosing=seen, now=now)

    def visit_FunctionDef(self, node):
        self.within(node.decorator_list)
        self.within([*node.args.defaults, *node.args.kw_defaults])
        arguments = every_argument(node.args)
        self.annotated([node.returns, *(a.annotation for a in arguments)])
        local = {a.arg for a in arguments} | bound(node.body)
        self.inside(local, node.body, now=False)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node):
        self.within([*node.args.defaults, *node.args.kw_defaults])
        local = {a.arg for a in every_argument(node.args)}
        self.inside(local, [node.body], now=False)

    def visit_ClassDef(self, node):
        self.within([*node.decorator_list, *node.bases, *node.keywords])
        here = set(self.enclosing)
        for statement in node.body:
            self.within([statement], visible=here)
            here |= bound([statement])

    def visit_ListComp(self, node):
        first, *later = node.generators
        self.visit(first.iter)
        targets = [g.target for g in node.generators]
        rest = [c for g in node.generators for c in g.ifs]
        value = [v for f, v in ast.iter_fields(node) if f != "generators"]
        inner = [*targets, *(g.iter for g in later), *rest, *value]
        self.inside(bound(targets), inner, self.now)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_AnnAssign(self, node):
        self.within([node.value, node.target])
        self.annotated([node.annotation])

    def annotated(self, nodes):
        """Visit annotations: quoted ones name things too."""
        self.within(nodes, annotation=True, now=self.now and not self.lazy)

    def visit_Subscript(self, node):
        label = ast.unparse(node.value).rpartition(".")[2]
        quotes = self.annotation and label not in ("Literal", "Annotated")
        self.visit(node.value)
        self.within([node.slice], annotation=quotes)

    def visit_Constant(self, node):
        if self.annotation and isinstance(node.value, str):
            quoted = ast.parse(f"({node.value})", mode="eval").body
            ast.increment_lineno(quoted, node.lineno - 1)
            self.within([quoted], now=False)


def every_argument(arguments: ast.arguments) -> list[ast.arg]:
    """All the parameters of a function, stars included."""
    stars = [arguments.vararg, arguments.kwarg]
    plain = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    return plain + [star for star in stars if star]


def uses(nodes, lazy: bool = False) -> list[Use]:
    """The names that statements take from outside, builtins too."""
    visitor = Uses(lazy)
    for node in nodes:
        visitor.visit(node)
    return visitor.found
