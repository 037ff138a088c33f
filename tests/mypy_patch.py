"For mypy: a function with `@patch` (lesson 12) is a method of the class that its first parameter is annotated with."

from mypy.nodes import Decorator, IfStmt, NameExpr
from mypy.plugin import Plugin
from mypy.types import UnboundType


def patched_class(node):
    "The name of the class that a statement adds a method to, or None."
    if not isinstance(node, Decorator) or not any(
        isinstance(d, NameExpr) and d.name == 'patch' for d in node.original_decorators
    ):
        return None
    first = node.func.arguments[0].type_annotation
    return first.name if isinstance(first, UnboundType) else None


def move_methods(ctx):
    "Before mypy reads a class: move what the module adds to it into its body; drop what stands in for it in the base."
    module, body = ctx.api.cur_mod_node, ctx.cls.defs.body
    methods = [node for node in module.defs if patched_class(node) == ctx.cls.name]
    if ctx.cls.name == '_Patched':
        body[:] = [node for node in body if not isinstance(node, IfStmt)]
    for node in methods:
        module.defs.remove(node)
        node.func.is_decorated, node.func.info = False, ctx.cls.info
        body.append(node.func)


class Patch(Plugin):
    "Asks for every class of the course."

    def get_customize_class_mro_hook(self, fullname):
        return move_methods if fullname.startswith('lmcourse.') else None


def plugin(version):
    "What mypy calls."
    return Patch
