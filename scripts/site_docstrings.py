"""Docstrings on the documentation site; an extension of griffe, named in mkdocs.yml.

Ours are written to be read in the source, with roles (``:func:`unfold```), ``.. math::`` and
``Example::``; here they become Markdown. A role leads to the page of a public name; any other name
is shown as code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

#: Modules whose ``__all__`` is on the site.
PUBLIC = ("fastsn", "fastsn.analysis", "fastsn.functional")

_ROLE = re.compile(r":(?:func|class|meth|mod|data):`(~?)([\w.]+)`")
_MATH = re.compile(r"^( *)\.\. math:: (.*(?:\n(?!\s*\n).*)*)", re.MULTILINE)
_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_CODE = re.compile(r"``([^`]+)``")


class Docstrings(griffe.Extension):
    """Rewrites every docstring once, after its package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self.paths = {
            name.rsplit(".", 1)[-1]: f"{module}.{name}"
            for module in PUBLIC
            for name in (pkg[module.partition(".")[2]] if "." in module else pkg).exports or ()
            for name in [str(name)]
        }
        self._visit(pkg)
        for name in map(str, pkg.exports or ()):
            # a function named as the module that it is in: the package has the function
            if pkg.members[name].is_module and name in pkg.members[name].members:
                function = pkg.members[name].members[name]
                pkg.members[name] = griffe.Alias(name, function, parent=pkg)

    def _visit(self, obj: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = self._markdown(obj.docstring.value)
        for member in obj.members.values():
            if not member.is_alias:
                self._visit(member)

    def _markdown(self, text: str) -> str:
        text = _INLINE_MATH.sub(r"$\1$", text)
        text = _MATH.sub(lambda m: f"{m[1]}$$\n{m[1]}{m[2]}\n{m[1]}$$", text)
        text = _ROLE.sub(self._link, text)
        text = re.sub(r"^Example::$", "Example:", text, flags=re.MULTILINE)
        return _CODE.sub(r"`\1`", text)

    def _link(self, match: re.Match[str]) -> str:
        short, name = match.groups()
        shown = name.rsplit(".", 1)[-1] if short else name
        path = self.paths.get(name.rsplit(".", 1)[-1])
        return f"[`{shown}`][{path}]" if path else f"`{shown}`"
