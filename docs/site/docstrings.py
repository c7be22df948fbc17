# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
An extension of griffe, which reads the package for the API reference. It turns docstrings in Hugging Face style into
Markdown:

    Args:
        tokens, scores (`[B, C]`): the candidates.          - **tokens**, **scores** (`[B, C]`): the candidates.

and [`DraftTree`], [`~DraftTree.num_nodes`] or [`~transformers_jakiro.core.tree.DraftTree`] into links.
"""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from griffe import Alias, Extension, Object, get_logger

logger = get_logger(__name__)
LISTS = ("Args", "Attributes", "Raises")  # sections that are lists of items
TEXTS = ("Returns", "Example")
SECTION = re.compile(rf"^({'|'.join(LISTS + TEXTS)}):\n((?:    .*\n|\n)*)", re.MULTILINE)
REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")


class HuggingFaceDocstrings(Extension):
    """Rewrites the docstrings of the package once griffe has read it."""

    def on_package(self, *, pkg: Object, **kwargs: Any) -> None:
        """Called by griffe."""
        objects = list(walk(pkg))
        # docstrings may refer to classes and functions by their short names
        names: dict[str, str | None] = {obj.path: obj.path for obj in objects}
        names |= {obj.path.removeprefix(f"{obj.module.path}."): obj.path for obj in objects if not obj.is_module}
        names |= {member.path: member.target_path for member in pkg.members.values() if isinstance(member, Alias)}
        for obj in objects:
            if obj.is_module and obj.exports is not None:  # a name is shown only where it is defined
                obj.exports = [name for name in obj.exports if not obj.members[str(name)].is_alias]
            if obj.docstring is not None:
                known = {**dict.fromkeys(obj.module.members), **names}
                obj.docstring.value = to_markdown(obj.docstring.value, known, obj.path)


def walk(obj: Object) -> Iterator[Object]:
    """An object and all that is defined in it and has a docstring, or is a module or class."""
    yield obj
    for member in obj.members.values():
        if not isinstance(member, Alias) and (member.has_docstring or member.is_module or member.is_class):
            yield from walk(member)


def to_markdown(docstring: str, names: dict[str, str | None], path: str) -> str:
    """
    The Markdown of a docstring.

    Args:
        docstring: in Hugging Face style.
        names: the full path of each name that can be referred to, or None if the reference does not show it.
        path: that of the object with this docstring, for warnings.
    """

    def section(match: re.Match[str]) -> str:
        title, body = match[1], textwrap.dedent(match[2]).strip("\n")
        if title in LISTS:
            body = "\n".join(item(head, text) for head, text in items(body))
        return f"**{title}**\n\n{body}\n\n"

    def reference(match: re.Match[str]) -> str:
        short, name = match.groups()
        shown = name.rpartition(".")[2] if short else name
        if "." in name and name.partition(".")[0].islower() and not name.startswith("transformers_jakiro."):
            return f"`{shown}`"  # it belongs to another package
        owner = name.rpartition(".")[0]  # fields without a docstring are shown with their class
        found = name if name in names else owner
        if found not in names:
            logger.warning("%s refers to `%s`, which does not exist", path, name)
        target = names.get(found)
        return f"[`{shown}`][{target}]" if target else f"`{shown}`"

    return REFERENCE.sub(reference, SECTION.sub(section, docstring + "\n"))


def items(body: str) -> Iterator[tuple[str, str]]:
    """
    Heads and texts of the items in a section. An item starts at each line that is not indented, unless the line before
    it ends with a comma.
    """
    blocks: list[str] = []
    for line in body.split("\n"):
        if blocks and (not line or line.startswith(" ") or blocks[-1].endswith(",")):
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
    for block in blocks:
        end = head_end(block)
        first, _, rest = block[end + 1 :].partition("\n")
        yield " ".join(block[:end].split()), f"{first.strip()}\n{textwrap.dedent(rest)}".strip()


def head_end(block: str) -> int:
    """The index of the first colon outside parentheses and code."""
    depth = 0
    code = False
    for index, character in enumerate(block):
        if character == "`":
            code = not code
        elif not code:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if character == ":" and depth == 0:
                return index
    return len(block)


def item(head: str, text: str) -> str:
    """A list item whose names are bold."""
    parts = re.split(r"(\([^()]*(?:\([^()]*\)[^()]*)*\))", head)  # every second part is in parentheses: left unchanged
    parts[::2] = [re.sub(r"\b[A-Za-z_]\w*", r"**\g<0>**", part) if "`" not in part else part for part in parts[::2]]
    names = "".join(parts)
    return textwrap.indent(f"- {names}: {text}" if text else f"- {names}", "    ").removeprefix("    ")
