"""A hook of MkDocs, which makes pages of documents that people also read in the repository.

A link to a file outside docs/ opens the file there. On the site it opens the file in the repository where mkdocs.yml
has `repo_url`, and is plain text where it has none. A file that does not exist is a warning, which `strict` refuses.

What follows the language of a fence, as in "sh run", is for the tests. Python's Markdown would not take it for code.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger("mkdocs.hooks.source_links")

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"^( *```\w+) +\w.*$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replace the links that lead out of docs/, and simplify fences."""
    docs = Path(config.docs_dir)
    root = docs.parent

    def replaced(match: re.Match[str]) -> str:
        folder = posixpath.dirname(page.file.src_uri)
        path = posixpath.normpath(posixpath.join(docs.name, folder, match["target"]))
        if path.startswith(f"{docs.name}/"):
            return match[0]
        if not _exists(root / path):
            logger.warning("%s links to %s, which does not exist", page.file.src_uri, path)
        if not config.repo_url:
            return match["text"]
        return f"[{match['text']}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{match['anchor'] or ''})"

    return LINK.sub(replaced, FENCE.sub(r"\1", markdown))


def _exists(path: Path) -> bool:
    """Whether it is a file, or a folder with a file in it; a removed package leaves its byte code behind."""
    return path.is_file() or any(each.is_file() for each in path.glob("*"))
