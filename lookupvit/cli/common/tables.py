"""Tables of several commands."""

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.table import Table

from lookupvit.writing import whole


def new_table(title: str, columns: Collection[str], text: Collection[str] = (), caption: str | None = None) -> Table:
    """An empty table: in a narrow terminal text folds and figures stay whole.

    Args:
        title: What stands above it.
        columns: Their headings.
        text: The headings of the columns that hold text instead of figures.
        caption: What stands below it.
    """
    table = Table(title=title, caption=caption)
    for name in columns:
        is_text = name in text
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    return table


def write_csv(rows: list[dict[str, Any]], path: Path) -> Path:
    """Writes rows with full precision; all have the keys of the first one."""
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
