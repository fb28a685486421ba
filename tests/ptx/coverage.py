"""Which instructions never ran."""

from __future__ import annotations

from collections import Counter, defaultdict

from . import build
from .counts import Statistics


class Coverage:
    def __init__(self) -> None:
        #: By kernel and line of its PTX: where that is in the source, and how often it ran.
        self.ran: dict[str, dict[int, tuple[str, int]]] = defaultdict(dict)

    def add(self, statistics: Statistics) -> None:
        for kernel, rows in statistics.rows.items():
            lines = self.ran[kernel]
            for row in rows:
                lines[row.line] = row.where, lines.get(row.line, ("", 0))[1] + row.issued

    def part(self, kernel: str) -> float:
        """Of a kernel's instructions, the part that ran."""
        counts = [count for _, count in self.ran[kernel].values()]
        return sum(count > 0 for count in counts) / len(counts)

    def lines_that_never_ran(self) -> list[str]:
        """Lines of the source that have instructions, none of which ran in any kernel.

        Loops are unrolled for every width and group that a tile can have, so a line has many
        copies; which of them a shape takes is not what tests of a line are about.
        """
        ran: dict[str, bool] = {}
        for rows in self.ran.values():
            for where, count in rows.values():
                ran[where] = ran.get(where, False) or count > 0
        return sorted(where for where, found in ran.items() if not found)

    def write(self) -> str:
        """The report: by kernel, and by line of the source where most did not run."""
        lines = []
        for kernel in sorted(self.ran):
            never = Counter(where for where, count in self.ran[kernel].values() if count == 0)
            lines.append(f"{kernel}: {self.part(kernel):.1%} of {len(self.ran[kernel])} ran")
            lines += [f"    {where}: {count}" for where, count in never.most_common(8)]
        text = "\n".join(lines) + "\n"
        (build.BUILD / "coverage.txt").write_text(text)
        return text
