"""Writes the diagram of a job's states into architecture.md, from the engine's table."""

from __future__ import annotations

from pathlib import Path

from gearman_twisted.engine.states import TRANSITIONS

PAGE = Path(__file__).with_name("build") / "architecture.md"
START, END = "<!-- states -->\n", "<!-- /states -->\n"


def diagram() -> str:
    """Return the states and their transitions, as Mermaid."""
    lines = [f"    {old.name} --> {new.name}: {why}" for (old, new), why in TRANSITIONS.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def page_with_diagram(page: str) -> str:
    """Return a page with the current diagram between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return before + START + diagram() + END + after


if __name__ == "__main__":
    PAGE.write_text(page_with_diagram(PAGE.read_text()))
