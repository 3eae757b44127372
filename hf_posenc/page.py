"""Pages of HTML, each one file that needs no other and asks for none."""

from __future__ import annotations

from typing import Any

from .extras import extra

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
code, pre { font: .9rem ui-monospace, monospace; }
pre { background: #f5f5f5; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.missing { border-left: 4px solid #D55E00; padding-left: 1rem; }
{% block style %}{% endblock %}</style>
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""


def check_pages() -> None:
    """Raise ImportError where what makes pages and the pictures in them is not installed."""
    with extra("report"):
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401


def render(template: str, **values: Any) -> str:
    """A template that extends "page", with its `title` among the values; whatever a value holds is shown, not obeyed."""
    with extra("report"):
        from jinja2 import DictLoader, Environment, StrictUndefined
    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=DictLoader({"page": PAGE}))
    return pages.from_string(template).render(**values)
