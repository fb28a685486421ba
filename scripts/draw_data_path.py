"""Draws docs/images/data-path.svg, the path of a weight: ``python scripts/draw_data_path.py``.

It is narrow, so that a telephone can show it; tests/test_docs.py holds the file to this program,
and the names in it to the modules there are.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "data-path.svg"

#: Stages: when, ground colour, and steps: what happens, where, and what goes on to the next.
STAGES = (
    (
        "once, at registration",
        "#eef2ff",
        (
            ("layer.weight becomes a property", "parametrization.py", "shape, dim, method"),
            ("a plan: unfoldings, kinds, scales", "plan.py", "one norm for each layer"),
            ("layers of equal settings: a batch", "group.py", ""),
        ),
    ),
    (
        "at every forward of the model",
        "#ecfdf5",
        (
            ("a frame opens, in this thread", "frames.py", "weights, u and v as they are now"),
            ("compute, or use again? advance?", "forward.py", "plan, W, u, v"),
            ("one op call for the whole batch", "op.py", "device and dtype"),
            ("cuda | triton | cpu | batched | reference", "backends/", "normalized W, sigma"),
            ("numbers are given an autograd node", "node.py", "normalized W"),
            ("layer.weight reads its own; the frame closes", "frames.py", ""),
        ),
    ),
    (
        "at backward",
        "#fff7ed",
        (
            ("gradient of the normalized W arrives", "node.py", "G, normalized W, u, v, sigma"),
            ("backward op, same choice of backend", "op.py", "gradients of W and scale"),
            ("the optimizer changes the original W", "step.py", ""),
        ),
    ),
)

WIDTH, BOX, HEIGHT, GAP = 460, 420, 46, 26


def svg() -> str:
    """The picture."""
    parts: list[str] = []
    y = 8
    for when, ground, steps in STAGES:
        tall = 34 + len(steps) * HEIGHT + (len(steps) - 1) * GAP + 12
        parts.append(_box(6, y, WIDTH - 12, tall, ground, "#cbd5e1"))
        parts.append(_text(20, y + 22, when, size=13, weight="bold", fill="#334155"))
        y += 34
        for i, (what, where, handed) in enumerate(steps):
            parts.append(_box(20, y, BOX, HEIGHT, "#ffffff", "#64748b"))
            parts.append(_text(WIDTH / 2, y + 20, what, anchor="middle"))
            place = f"fastsn/{where}"
            parts.append(
                _text(WIDTH / 2, y + 37, place, anchor="middle", mono=True, fill="#4338ca")
            )
            y += HEIGHT
            if i + 1 < len(steps):
                parts.append(_arrow(WIDTH / 2, y, GAP))
                parts.append(_text(WIDTH / 2 + 12, y + 17, handed, size=12, fill="#475569"))
                y += GAP
        y += 12
        if when != STAGES[-1][0]:
            parts.append(_arrow(WIDTH / 2, y, 22))
            y += 22
    style = (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'width="{WIDTH}" height="{y + 8}" viewBox="0 0 {WIDTH} {y + 8}" role="img">'
    )
    title = "<title>The path of a weight, from registration to the kernel and back</title>"
    ground = f'<rect width="{WIDTH}" height="{y + 8}" fill="#ffffff"/>'
    return "\n".join([style, title, ground, *parts, "</svg>"]) + "\n"


def _box(x: float, y: float, width: float, height: float, fill: str, stroke: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )


def _arrow(x: float, y: float, length: float) -> str:
    end = y + length
    return (
        f'<path d="M{x:g} {y:g}V{end - 6:g}" stroke="#475569" stroke-width="1.5"/>'
        f'<path d="M{x - 4:g} {end - 7:g}h8L{x:g} {end:g}z" fill="#475569"/>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 14,
    weight: str = "normal", fill: str = "#0f172a", mono: bool = False,
) -> str:  # fmt: skip
    family = "monospace" if mono else "sans-serif"
    return (
        f'<text x="{x:g}" y="{y:g}" font-family="{family}" font-size="{size - 2 * mono}" '
        f'font-weight="{weight}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    OUT.write_text(svg(), encoding="utf-8")
