"""How the four kinds of compute look everywhere.

The colours stay apart for colour-blind eyes, and in grey: lighter from F over B and I to W.
"""

from __future__ import annotations

from crosspipe_ray.ops import Kind

COLOURS = {Kind.F: "#1f5a94", Kind.I: "#f2ac42", Kind.W: "#c3e3c6", Kind.B: "#c75f3c"}
INKS = {Kind.F: "#ffffff", Kind.I: "#24292f", Kind.W: "#24292f", Kind.B: "#ffffff"}
"""What can be read on the colours."""
NAMES = {
    Kind.F: "forward",
    Kind.I: "backward, input",
    Kind.W: "backward, weights",
    Kind.B: "backward, both",
}
