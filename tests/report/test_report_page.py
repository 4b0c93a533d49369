"""The page itself: data cannot become markup, nothing is loaded from anywhere, and a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fabricated_runs as made
import pytest
from pages import ONE, report

from tomosec.record import Severity
from tomosec.report.build import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# --- safety, size, determinism ------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>$x_1${{7*7}}</details>"


def test_data_never_becomes_markup(store):
    setup = made.experiment(title=EVIL, description=EVIL)
    setup["threat"]["goal"] = {"target": EVIL, "sources": []}
    setup["acquisition"]["dose"] = EVIL
    setup["network"]["kind"] = EVIL
    base = made.record(ONE)
    assert base.data is not None
    assert base.physics is not None
    data = base.data.model_copy(
        update={"classes": (EVIL, "b"), "split": EVIL, "dataset": EVIL, "slices": {"test": {EVIL: 3, "b": 2}}}
    )
    seed = made.seed_result(0)
    few = made.few(0.5).model_copy(update={"per_patient": {EVIL: 0.5}, "note": EVIL})
    odd = seed.conditions[0].model_copy(update={"model": EVIL, "input": EVIL, "metrics": {EVIL: few, "accuracy": few}})
    seed = seed.model_copy(
        update={"conditions": (*seed.conditions, odd), "curves": {EVIL: [{EVIL: 1.0, "epoch": 0.0}]}, "stealth": {EVIL: few}}
    )
    physics = base.physics.model_copy(update={"geometry": EVIL, "why_not_linear": EVIL, "path": "long"})
    record = made.record(
        ONE, seeds=(seed,), setup=setup, data=data, warnings=(EVIL,), untested=(EVIL,),
        severity=Severity(level="high", reason=EVIL), physics=physics,
    )  # fmt: skip
    failed = made.record("b" * 16, setup=setup, status="error", error=EVIL)
    made.save(store, record, failed, patient=EVIL, label=EVIL)
    html, page = report(store)
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert "49" not in page.all("title")
    assert page.text.count("<script>alert(1)</script>") > 15
    assert page.open == ["html", "body"][: len(page.open)]
    _, single = report(store, ids=[ONE])
    assert single.text.count("<script>alert(1)</script>") > 15


@pytest.mark.parametrize("which", ["one", "sweep"])
def test_nothing_is_loaded_from_anywhere(which, request):
    _, html, page = request.getfixturevalue(which)
    policy = next(attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
    assert "url(http" not in html
    assert "@import" not in html


@pytest.mark.parametrize("which", ["one", "sweep"])
def test_page_is_well_formed_and_accessible(which, request):
    _, _, page = request.getfixturevalue(which)
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    assert all("alt" in attrs for attrs in page.all("img"))
    assert all(attrs.get("scope") for attrs in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attrs.get("aria-label") for attrs in page.all("svg") if attrs.get("role") == "img")
    assert page.all("html")[0]["lang"] == "en"
    anchors = {attrs["href"][1:] for attrs in page.all("a") if attrs.get("href")}
    assert anchors <= set(ids)


def test_same_records_give_the_same_bytes(one, tmp_path):
    again = build_report(one[0], tmp_path / "again.html").read_bytes()
    assert again == one[1].encode()
    code = (
        "from pathlib import Path; from tomosec.record import Store; from tomosec.report.build import build_report\n"
        f"build_report(Store({str(one[0].root)!r}), Path({str(tmp_path / 'other.html')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert (tmp_path / "other.html").read_bytes() == again


def test_one_record_of_full_size_slices_stays_small(store):
    made.save(store, made.record(ONE, seeds=made.three_seeds()), size=512)
    html, page = report(store)
    assert len(html.encode()) < 3_000_000
    assert "averaged over 2 × 2 pixels" in page.text


def test_no_torch(one, tmp_path):
    code = (
        "import sys; from pathlib import Path; from tomosec.record import Store; from tomosec.report.build import build_report\n"
        f"build_report(Store({str(one[0].root)!r}), Path({str(tmp_path / 'r.html')!r}))\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules, 'too much was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_report_replaces_whole_or_not_at_all(one, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match="no space left"):
        build_report(one[0], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- a real browser -----------------------------------------------------------------------------------------------------


def browse(path: Path) -> tuple[str, str]:
    """The page's DOM after its script has run, and what the browser logged."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        quiet = "no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync no-first-run"
        command = [CHROMIUM, "--headless", *(f"--{name}" for name in quiet.split()), f"--user-data-dir={profile}"]
        command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000", "--window-size=1200,900", "--dump-dom"]
        command.append(path.as_uri())
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip("chromium did not finish in two minutes")
    if done.returncode != 0 or "</html>" not in done.stdout:
        pytest.skip(f"chromium cannot run here (exit status {done.returncode})")
    return done.stdout, done.stderr


@pytest.mark.parametrize("which", ["one", "sweep"])
def test_browser_shows_it_without_console_messages(which, request, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(request.getfixturevalue(which)[1], encoding="utf-8")
    dom, log = browse(path)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert re.search(r'class="controls"(?! hidden)', dom), "the script did not run"


def test_browser_controls_work(one, sweep, tmp_path):
    """Drives window, outline and blink, and sorts the overview; the policy is lifted for the driver alone."""
    driver = """
    const out = {};
    const viewer = document.querySelector(".viewer");
    const shown = (name) => getComputedStyle(viewer.querySelector(".clean .view-" + name)).display !== "none";
    out.lung = [shown("lung"), shown("soft")];
    viewer.querySelector("input[value=soft]").click();
    out.soft = [shown("lung"), shown("soft")];
    viewer.querySelector(".show-outline").click();
    out.outline = [...viewer.querySelectorAll(".outline")].every((image) => !image.hidden);
    const clean = viewer.querySelector(".clean .view-soft"), other = viewer.querySelector(".triggered .view-soft");
    const before = clean.src;
    viewer.querySelector(".blink").click();
    out.blinking = clean.src === other.src;
    viewer.querySelector(".blink").click();
    out.back = clean.src === before && viewer.querySelector(".clean figcaption").textContent === "Clean scan";
    const table = document.querySelector("table.sortable");
    if (table) {
      const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === "Budget");
      const values = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].textContent));
      const button = table.tHead.rows[0].cells[column].querySelector("button");
      button.click(); out.up = values();
      button.click(); out.down = values();
      location.hash = "#run-" + document.querySelectorAll("details.run")[3].id.slice(4);
    }
    setTimeout(() => { out.open = [...document.querySelectorAll("details.run")].map((item) => item.open);
      document.documentElement.setAttribute("data-out", JSON.stringify(out)); }, 200);
    """
    found = []
    for html in (one[1], sweep[1]):
        path = tmp_path / "driven.html"
        page = re.sub(r"<meta http-equiv=.*?>\n", "", html).replace("</body>", f"<script>{driver}</script></body>")
        path.write_text(page, encoding="utf-8")
        dom, _ = browse(path)
        result = re.search(r'data-out="(.*?)"', dom)
        assert result is not None
        found.append(json.loads(result.group(1).replace("&quot;", '"')))
    for out in found:
        assert out["lung"] == [True, False]
        assert out["soft"] == [False, True]
        assert out["outline"]
        assert out["blinking"]
        assert out["back"]
    assert found[1]["up"] == sorted(found[1]["up"])
    assert found[1]["down"] == sorted(found[1]["up"], reverse=True)
    assert found[1]["open"] == [index == 3 for index in range(11)]
