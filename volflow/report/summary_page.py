"""A page of HTML that sums up a run of many parts: facts, and a table; nothing is loaded by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["summary_page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
h1 { font-size: 1.35rem; margin: 0 0 1rem }
table { border-collapse: collapse; margin: 0 0 1.5rem; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0;
  border-bottom: 1px solid rgba(128,128,128,.25); overflow-wrap: anywhere }
th { font-weight: 600; opacity: .7 }
table.facts { width: auto } table.facts td:first-child { opacity: .7; white-space: nowrap }
tr.bad td { background: rgba(220,60,50,.14) }
"""


def summary_page(
    title: str,
    facts: Mapping[str, str],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    bad: int = 0,
) -> str:
    """Return a page as HTML, legible on light and on dark ground.

    Parameters
    ----------
    title
        What ran, and how it ended.
    facts
        Lines above the table, by name.
    heads, rows
        The table: all texts, which are escaped here.
    bad
        How many of the rows, from the first, are marked as bad.

    Examples
    --------
    >>> page = summary_page("1 failed", {"model": "<m>"}, ["case"], [["p&1"], ["p2"]], bad=1)
    >>> "&lt;m&gt;" in page, '<tr class="bad"><td>p&amp;1</td></tr>' in page, "http" in page
    (True, True, False)
    """
    named = "".join(_row([name, value]) for name, value in facts.items() if value)
    head = "".join(f"<th>{_text(one)}</th>" for one in heads)
    body = "\n".join(_row(cells, "bad" if n < bad else "") for n, cells in enumerate(rows))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><h1>{_text(title)}</h1>\n<table class="facts"><tbody>{named}</tbody></table>\n'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></body></html>\n"
    )
    return page.encode("utf-8", "replace").decode()  # names of files may hold anything


def _row(cells: Sequence[str], kind: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    return f"<tr{marked}>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"


def _text(value: str) -> str:
    return escape(str(value), quote=True)
