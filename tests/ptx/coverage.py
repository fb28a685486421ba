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
            own = self.ran[kernel]
            for row in rows:
                own[row.line] = row.where, own.get(row.line, ("", 0))[1] + row.issued

    def part(self, kernel: str) -> float:
        """Of a kernel's instructions, the part that ran."""
        counts = [count for _, count in self.ran[kernel].values()]
        return sum(count > 0 for count in counts) / len(counts)

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
