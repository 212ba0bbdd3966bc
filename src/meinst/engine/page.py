"""A page to draw on in inches from its top left corner, and the PNG that comes of it."""

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


class Page:
    """Pictures, texts and plots at places in inches, ``x`` to the right and ``y`` down.

    Everything but the plots lies on one set of axes, so a hundred small pictures cost little.
    How long the page is need not be known before it is full.
    """

    def __init__(self, width: float) -> None:
        """Open an empty page, ``width`` inches wide."""
        from matplotlib.figure import Figure

        self.width = width
        self._figure = Figure(facecolor="white")
        self._sheet = self._figure.add_axes((0, 0, 1, 1))
        self._sheet.set_axis_off()
        self._plots: list[tuple[Axes, tuple[float, float, float, float]]] = []

    def image(
        self, pixels: NDArray[Any], x: float, y: float, width: float, height: float, **colors: Any
    ) -> None:
        """Stretch ``(h, w)`` values or ``(h, w, 3)`` RGB over a rectangle with a thin frame."""
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
        """Write from ``x`` on, the letters standing on ``y``; a ``$`` is a ``$``."""
        own: dict[str, Any] = {"color": INK, "fontsize": size, "parse_math": False}
        self._sheet.text(x, y, text, **own | style)

    def plot(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes framed by a rectangle; their labels lie outside of it."""
        axes = self._figure.add_axes((0, 0, 1, 1), label=str(len(self._plots)))
        self._plots.append((axes, (x, y, width, height)))
        style_plot(axes)
        return axes

    def png(self, height: float) -> bytes:
        """The page, cut at ``height`` inches, as a PNG file."""
        self._figure.set_size_inches(self.width, height)
        for axes, (x, y, w, h) in self._plots:
            axes.set_position((x / self.width, 1 - (y + h) / height, w / self.width, h / height))
        # At the end, since every picture sets them when it is added.
        self._sheet.set(xlim=(0, self.width), ylim=(height, 0), aspect="auto")
        return png(self._figure)


def style_plot(axes: Axes) -> None:
    """Give a plot the look of all of ours: light grid, half a frame, muted numbers."""
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
        # The names of classes may be in any script; the font has not all of them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
