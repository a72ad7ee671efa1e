"""What became of each tensor of a weights file, as a table and as an error."""

import re
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

_SHOWN = 10  # errors in the table


@dataclass
class Report:
    """What a load did, by name of the tensor.

    Attributes:
        source: where the weights came from.
        loaded: taken as they were.
        derived: made out of other tensors (warm starts), and how.
        resized: fitted to another size, and from which to which.
        initialised: not in the weights, left as the model initialised them, and why that is right.
        unexpected: in the weights and left out, and why that is right.
        errors: missing, of another shape, or unknown, without a reason.
        notes: what else to know.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    derived: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str, str]]:
        """(what happened, tensors, how or why); names that differ in the number of their block share a row."""
        rows = [("loaded", f"{len(self.loaded)} tensors", "")] if self.loaded else []
        for kind in ("derived", "resized", "initialised", "unexpected", "errors"):
            grouped: dict[tuple[str, str], list[str]] = {}
            for name, reason in getattr(self, kind).items():
                key = (re.sub(r"\bblocks\.\d+\.", "blocks.*.", name), reason)
                grouped.setdefault(key, []).append(name)
            label = "ERROR" if kind == "errors" else kind
            for (pattern, reason), names in grouped.items():
                rows.append((label, names[0] if len(names) == 1 else f"{pattern} ({len(names)})", reason))
        return rows

    def show(self, console: Console | None = None) -> None:
        """Prints the table, of the errors a few; nothing where no tensor fits, of which `check` tells in a line."""
        if self.errors and not (self.loaded or self.derived or self.resized):
            return
        table = Table(title=f"weights from {self.source}", title_justify="left", caption_justify="left")
        for column in ("", "tensors", "how or why"):
            table.add_column(column, overflow="fold")
        rows = self.rows()
        wrong = [row for row in rows if row[0] == "ERROR"]
        for kind, names, reason in [row for row in rows if row not in wrong[_SHOWN:]]:
            table.add_row(kind, names, reason, style="bold red" if kind == "ERROR" else None)
        if len(wrong) > _SHOWN:
            table.add_row("ERROR", f"and {len(wrong) - _SHOWN} more rows", "", style="bold red")
        table.caption = "\n".join(self.notes) or None
        (console or Console()).print(table)

    def check(self) -> None:
        """Raises a one-line ValueError if anything is unexplained."""
        if not self.errors:
            return
        if not (self.loaded or self.derived or self.resized):
            if any(name.startswith("decoder.") for name in self.errors):
                raise ValueError(
                    f"weights {self.source} are of a captioner, and a classifier is wanted here: give a classifier's "
                    "(lookupvit predict and test take captioners)"
                )
            names = [name for name, reason in self.errors.items() if "not in the model" in reason] or list(self.errors)
            raise ValueError(
                f"weights {self.source} are of another kind of model, no tensor of them fits: they have {names[0]} and "
                f"{len(names) - 1} more; expected a LookupViT, or a plain ViT as timm names its weights"
            )
        name, reason = next(iter(self.errors.items()))
        more = f" (and {len(self.errors) - 1} more, see the table)" if len(self.errors) > 1 else ""
        raise ValueError(f"weights {self.source} do not fit the model: {name} {reason}{more}")
