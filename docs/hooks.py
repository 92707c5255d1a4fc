"""What the site shows beside the pages (every key of the configuration, the gallery, drawings that lie elsewhere), and
what the theme leaves out for those who listen or use the keyboard.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from ffalora.cli.options import describe_type
from ffalora.config import Config, fields
from ffalora.config.names import dotted_names

ROOT = Path(__file__).resolve().parents[1]
DRAWINGS = re.compile(r"\]\(\.\./(benchmarks/data/[\w.-]+\.png)\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the drawings that pages take from outside their folder."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    for name in sorted({name for page in pages for name in DRAWINGS.findall(page.content_string)}):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the table of keys where the page asks for it, and the drawings where the site has them."""
    markdown = markdown.replace("<!-- every key -->", every_key()).replace("<!-- every example -->", every_example())
    return DRAWINGS.sub(r"](\1)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Makes the empty corners of tables plain cells: no heading without words."""
    return html.replace("<th></th>", "<td></td>")


def on_post_page(output: str, **_: Any) -> str:
    """Gives the search its name."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def every_example() -> str:
    """The gallery's files, each under its name."""
    files = sorted((ROOT / "examples" / "gallery").glob("*.py"))
    return "\n\n".join(f"## {file.stem.replace('_', ' ')}\n\n```python\n{file.read_text()}```" for file in files)


def every_key() -> str:
    """A table for each section: key, values, default, and what it means."""
    by_section: dict[str, list[str]] = {}
    for key, field in fields().items():
        section = key.rpartition(".")[0]
        names = "".join(f"<br>or `{other}`" for other in dotted_names(key))
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        values = describe_type(field.annotation).replace("|", " or ")
        cells = (f"`{key}`{names}", f"`{values}`", shown, (field.description or "").replace("|", "&#124;"))
        by_section.setdefault(section, []).append(f"| {' | '.join(cells)} |")
    parts = []
    for section, rows in by_section.items():
        about = (Config.model_fields[section].annotation.__doc__ or "").strip().splitlines()[0] if section else ""
        head = "| key | values | default | |\n| --- | --- | --- | --- |"
        parts.append(f"## {section or 'The whole run'}\n\n{about}\n\n{head}\n" + "\n".join(rows))
    return "\n\n".join(parts)
