# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Extension of griffe, which reads the package for the API reference: makes Markdown of docstrings in Hugging Face style.

    Args:
        tokens, scores (`[B, C]`): the candidates.          - **tokens**, **scores** (`[B, C]`): the candidates.

and links of [`DraftTree`], [`~DraftTree.num_nodes`] or [`~transformers_jakiro.core.tree.DraftTree`].
"""

import re
import textwrap
from collections.abc import Iterator

from griffe import Extension, Object, get_logger

logger = get_logger(__name__)
LISTS, TEXTS = ("Args", "Attributes", "Raises"), ("Returns", "Example")
SECTION = re.compile(rf"^({'|'.join(LISTS + TEXTS)}):\n((?:    .*\n|\n)*)", re.MULTILINE)
REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")


class HuggingFaceDocstrings(Extension):
    """See above."""

    def on_package(self, *, pkg: Object, **kwargs) -> None:
        objects = list(walk(pkg))
        # classes and functions by their short names, as docstrings refer to them
        names = {obj.path.removeprefix(f"{obj.module.path}."): obj.path for obj in objects if not obj.is_module}
        names |= {obj.path: obj.path for obj in objects}
        names |= {member.path: member.target_path for member in pkg.members.values() if member.is_alias}
        for obj in objects:
            if obj.is_module and obj.exports is not None:  # what is defined elsewhere is shown there
                obj.exports = [name for name in obj.exports if not obj.members[str(name)].is_alias]
            if obj.docstring is not None:
                known = {**dict.fromkeys(obj.module.members), **names}
                obj.docstring.value = to_markdown(obj.docstring.value, known, obj.path)


def walk(obj: Object) -> Iterator[Object]:
    """An object and what is defined in it, that is public and has a docstring, or may hold such."""
    yield obj
    for member in obj.members.values():
        if not member.is_alias and (member.has_docstring or member.is_module or member.is_class):
            yield from walk(member)


def to_markdown(docstring: str, names: dict[str, str | None], path: str) -> str:
    """
    A docstring's Markdown. `names`: what can be referred to, and its full path, None for what the reference does not
    show; `path`: whose docstring it is.
    """

    def section(match: re.Match) -> str:
        title, body = match[1], textwrap.dedent(match[2]).strip("\n")
        if title in LISTS:
            body = "\n".join(item(head, text) for head, text in items(body))
        return f"**{title}**\n\n{body}\n\n"

    def reference(match: re.Match) -> str:
        short, name = match.groups()
        shown = name.rpartition(".")[2] if short else name
        if "." in name and name.partition(".")[0].islower() and not name.startswith("transformers_jakiro."):
            return f"`{shown}`"  # of another package
        owner = name.rpartition(".")[0]  # of a field without docstring, its class
        found = name if name in names else owner
        if found not in names:
            logger.warning("%s refers to `%s`, which is not there", path, name)
        target = names.get(found)
        return f"[`{shown}`][{target}]" if target else f"`{shown}`"

    return REFERENCE.sub(reference, SECTION.sub(section, docstring + "\n"))


def items(body: str) -> Iterator[tuple[str, str]]:
    """Heads and texts of a section's items: an item begins where a line is not indented, unless a head goes on."""
    blocks: list[str] = []
    for line in body.split("\n"):
        goes_on = blocks and (not line or line.startswith(" ") or blocks[-1].endswith(","))
        if goes_on:
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
    for block in blocks:
        end = head_end(block)
        first, _, rest = block[end + 1 :].partition("\n")
        yield " ".join(block[:end].split()), f"{first.strip()}\n{textwrap.dedent(rest)}".strip()


def head_end(block: str) -> int:
    """Where the first colon stands that is in no parentheses or code."""
    depth, code = 0, False
    for index, character in enumerate(block):
        if character == "`":
            code = not code
        elif not code:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if character == ":" and depth == 0:
                return index
    return len(block)


def item(head: str, text: str) -> str:
    """A list item, with the names in a head in bold."""
    parts = re.split(r"(\([^()]*(?:\([^()]*\)[^()]*)*\))", head)  # what is in parentheses is left as it is
    parts[::2] = [re.sub(r"\b[A-Za-z_]\w*", r"**\g<0>**", part) if "`" not in part else part for part in parts[::2]]
    names = "".join(parts)
    return textwrap.indent(f"- {names}: {text}" if text else f"- {names}", "    ").removeprefix("    ")
