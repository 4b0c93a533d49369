"""Tables and figures of the studies as files of their own: Markdown and SVG, for papers and pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tomosec.files import write_text
from tomosec.record import Store
from tomosec.report.figures import light
from tomosec.report.studies import Block, blocks
from tomosec.report.tables import Cell, Table


def export_studies(store: Store, folder: str | Path, *, ids: Sequence[str] | None = None) -> list[Path]:
    """Write every study of a store: ``<study>.md`` with its tables, and ``<study>-<n>.svg`` for each figure.

    Args:
        store: the folder of runs.
        folder: where to; made where it does not exist. Files of the same names are replaced.
        ids: only studies that these runs belong to, and only these of their cells; all if not given.

    Returns:
        What was written; empty where there is no study.
    """
    records = [store.read(name) for name in dict.fromkeys(ids)] if ids is not None else list(store.records())
    written: list[Path] = []
    for block in blocks(store, records):
        names = [f"{block.name}-{number}.svg" for number in range(1, len(block.figures) + 1)]
        for name, item in zip(names, block.figures, strict=True):
            written.append(Path(folder) / name)
            write_text(written[-1], light(item.drawing))
        written.append(Path(folder) / f"{block.name}.md")
        write_text(written[-1], _markdown(block, names))
    return written


def _markdown(block: Block, figures: Sequence[str]) -> str:
    parts = [f"## {_escaped(block.title)}", _escaped(f"{block.about} {block.progress}".strip())]
    parts += [f"![{_escaped(item.caption)}]({name})" for name, item in zip(figures, block.figures, strict=True)]
    for table in block.tables:
        parts += [f"**{_escaped(table.caption)}**", _table(table), *map(_escaped, table.notes)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    lines = [_line(map(_escaped, table.head)), _line(["---"] * len(table.head))]
    for row in table.rows:
        cells = [f"**{_escaped(row[0].text)}**", *[""] * (len(table.head) - 1)] if len(row) == 1 else map(_cell, row)
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Sequence[str] | map[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = f"**{_escaped(cell.text)}**" if cell.strong else _escaped(cell.text)
    return f"{text} ({_escaped(cell.small)})" if cell.small else text


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_<>\[\]`])", r"\\\1", text).replace("\n", " ")
