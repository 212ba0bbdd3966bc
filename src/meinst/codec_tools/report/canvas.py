"""A canvas with a coordinate system in inches from the top left corner, saved as PNG."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#1f2933", "#66727d", "#c5ccd3"
_DPI = 110


class Canvas:
    """Images, texts and plots at positions in inches, ``x`` to the right and ``y`` down.

    Images and texts share one set of axes, so that a hundred small images cost little. The height
    of the canvas is chosen at the end, in :meth:`png`.
    """

    def __init__(self, width: float) -> None:
        """Create an empty canvas, ``width`` inches wide."""
        from matplotlib.figure import Figure

        self.width = width
        self._figure = Figure(facecolor="white")
        self._sheet = self._figure.add_axes((0, 0, 1, 1))
        self._sheet.set_axis_off()
        self._plots: list[tuple[Axes, tuple[float, float, float, float]]] = []

    def image(
        self, pixels: NDArray[Any], x: float, y: float, width: float, height: float, **colors: Any
    ) -> None:
        """Draw ``(h, w)`` values or ``(h, w, 3)`` RGB in a rectangle with a thin frame."""
        self._sheet.imshow(
            pixels, extent=(x, x + width, y + height, y), interpolation="antialiased", **colors
        )
        self._sheet.plot(
            [x, x + width, x + width, x, x],
            [y, y, y + height, y + height, y],
            color=LINE,
            linewidth=0.6,
            solid_joinstyle="miter",
        )

    def text(self, x: float, y: float, text: str, size: float = 9, **style: Any) -> None:
        """Write text that starts at ``x`` on the baseline ``y``; ``$`` has no special meaning."""
        defaults: dict[str, Any] = {"color": INK, "fontsize": size, "parse_math": False}
        self._sheet.text(x, y, text, **defaults | style)

    def plot(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes that fill a rectangle; their labels are outside of it."""
        axes = self._figure.add_axes((0, 0, 1, 1), label=str(len(self._plots)))
        self._plots.append((axes, (x, y, width, height)))
        style_plot(axes)
        return axes

    def png(self, height: float) -> bytes:
        """The canvas, ``height`` inches high, as a PNG file."""
        self._figure.set_size_inches(self.width, height)
        for axes, (x, y, w, h) in self._plots:
            axes.set_position((x / self.width, 1 - (y + h) / height, w / self.width, h / height))
        # Set the limits last, since every image changes them.
        self._sheet.set(xlim=(0, self.width), ylim=(height, 0), aspect="auto")
        return png(self._figure)


def style_plot(axes: Axes) -> None:
    """Apply the style of the reports: light grid, no top and right spines, muted numbers."""
    axes.grid(color=LINE, alpha=0.5, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(labelsize=8, color=LINE, labelcolor=MUTED)
    axes.xaxis.label.set(size=8.5, color=MUTED)
    axes.yaxis.label.set(size=8.5, color=MUTED)


def png(figure: Figure) -> bytes:
    """A matplotlib figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names may be in any script, and fonts lack some.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
