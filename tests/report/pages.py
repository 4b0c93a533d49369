"""Reading a report back: its elements, its text, and whether every tag is closed where it should be."""

from __future__ import annotations

from html.parser import HTMLParser

from tomosec.record import Store
from tomosec.report.build import build_report

ONE = "ab12" * 4
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Elements, text, and whether every tag is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> inside <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def report(store: Store, **options) -> tuple[str, Page]:
    path = build_report(store, store.root.parent / "report.html", **options)
    html = path.read_text(encoding="utf-8")
    return html, Page(html)
