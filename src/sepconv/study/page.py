"""HTML pages in the one frame that `page.html` is."""

from typing import Any

import jinja2
from markupsafe import Markup

from sepconv.text import printable


def render_page(template: str, **values: Any) -> str:
    """The page of a template beside this file, by its path from here. All but Markup is text, and printable."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sepconv.study", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )
    return environment.get_template(template).render(**values)
