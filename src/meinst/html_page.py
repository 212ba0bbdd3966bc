"""Self-contained HTML pages from templates."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class EmbeddedPicture:
    """A PNG file for a template: its alternative text and its bytes in base64."""

    alt: str
    base64: str

    @classmethod
    def from_png(cls, png: bytes, alt: str) -> EmbeddedPicture:
        """Encode a PNG file."""
        return cls(alt, base64.b64encode(png).decode("ascii"))


def render_page(package: str, template: str, **values: Any) -> bytes:
    """Fill in a template that lies in a package; values are escaped.

    Args:
        package: the package, for example ``meinst.diagnosis``.
        template: file name of the template.
        values: what the template uses, besides ``version``, that of meinst.
    """
    environment = Environment(
        loader=PackageLoader(package, ""), autoescape=True, undefined=StrictUndefined
    )
    page: str = environment.get_template(template).render(version=version("meinst"), **values)
    return page.encode()
