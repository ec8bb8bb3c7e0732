"""Reports: which pages are listed, and that each opens once, by a ticket, without a way into the server's pages."""

import os
import time

import plotly.graph_objects as go
import pytest
from served_atlas import MARKUP, serving

from weightspace.pages.page import MARK, Card, Figure, Page, Table, save
from weightspace.web import reports
from weightspace.web.reports import Reports
from weightspace.web.served import Served, id_of, reports_of


def page(path, headline="Seven networks", title="Atlas"):
    """A report with one figure and one table."""
    dots = go.Figure(go.Scatter(x=[1.0, 2.0], y=[3.0, None], text=[MARKUP, "=1+1"], name='a, "b"'))
    table = Table("All <b>", ["name", "value"], [[MARKUP, "1"], ["=HYPERLINK(1)", "-2"]])
    save([Page("Map", headline, "lead", cards=[Card("a", "", "1")], parts=[Figure("The map", "", dots), table])], path,
         title=title)  # fmt: skip
    return path


@pytest.fixture
def folder(tmp_path):
    page(tmp_path / "map.html", headline=f"Best: {MARKUP}")
    return tmp_path


def test_pages_of_weightspace_are_listed_and_nothing_else(folder, tmp_path_factory):
    elsewhere = page(tmp_path_factory.mktemp("elsewhere") / "secret.html")
    (folder / "link.html").symlink_to(elsewhere)
    (folder / "folder.html").mkdir()
    (folder / "other.html").write_text("<!doctype html><title>other</title>")
    (folder / "late.html").write_text(f"<style></style>{MARK}")
    (folder / "map.txt").write_bytes((folder / "map.html").read_bytes())
    (folder / ".hidden.html").write_bytes((folder / "map.html").read_bytes())
    os.mkfifo(folder / "pipe.html")
    (folder / "large.html").write_text(MARK)
    os.truncate(folder / "large.html", (64 << 20) + 1)
    (row,) = Reports(folder).rows()
    assert (row.name, row.title, row.headline) == ("map.html", "Atlas", f"Best: {MARKUP}")
    assert row.id == id_of("map.html") and row.bytes == (folder / "map.html").stat().st_size


def test_the_newest_comes_first_and_changes_are_seen(folder):
    found = Reports(folder)
    page(folder / "new.html", "New")
    os.utime(folder / "map.html", (1, 1))
    assert [row.name for row in found.rows()] == ["new.html", "map.html"]
    page(folder / "new.html", "Newer")
    assert found.rows()[0].headline == "Newer"
    (folder / "new.html").unlink()
    assert [row.name for row in found.rows()] == ["map.html"] and [*found._read] == ["map.html"]


def test_a_name_that_is_no_text_hides_no_report(folder):
    os.rename(page(folder / "new.html"), os.fsencode(folder) + b"/bad\xffname.html")
    with serving(folder) as client:
        status, told = client.get("/api/reports")
        assert status == 200 and {row["name"] for row in told["reports"]} == {"map.html", "bad\udcffname.html"}
        odd = next(row["id"] for row in told["reports"] if row["name"] != "map.html")
        assert client.post(f"/api/reports/{odd}/ticket", {})[0] == 200


def test_a_folder_that_is_not_there_has_no_reports(tmp_path):
    assert Reports(tmp_path / "nothing").rows() == []
    with serving(tmp_path / "nothing") as client:
        assert client.get("/api/reports")[1] == {"folder": "nothing", "reports": [], "more": 0}


def test_a_report_opens_once_in_an_origin_of_its_own(folder):
    with serving(folder) as client:
        (row,) = client.get("/api/reports")[1]["reports"]
        path = client.post(f"/api/reports/{row['id']}/ticket", {})[1]["path"]
        answer = client.client.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200 and answer.content == (folder / "map.html").read_bytes()
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        assert policy["sandbox"] == "allow-scripts allow-downloads" and policy["default-src"] == "'none'"
        assert "connect-src" not in policy and policy["frame-ancestors"] == "'none'"
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
        again = client.client.get(path, follow_redirects=False)
        assert again.status_code == 303 and again.headers["location"] == "/reports"


def test_a_ticket_needs_the_token_and_a_report(folder):
    with serving(folder) as client:
        id = id_of("map.html")
        answer = client.client.post(f"/api/reports/{id}/ticket", content=b"{}",
                                    headers={"Authorization": "", "content-type": "application/json"})  # fmt: skip
        assert answer.status_code == 401
        for wrong in ("0" * 32, "map.html", "..%2fmap.html", "%2e%2e%2f" * 3, "x" * 5000):
            assert client.post(f"/api/reports/{wrong}/ticket", {})[0] in (404, 422), wrong
        assert client.post(f"/api/reports/{id}/ticket", {"path": "/etc/passwd"})[0] == 422
        for wrong in ("x" * 43, "map.html", "..%2f..%2fetc%2fpasswd", "x" * 44):
            assert client.client.get(f"/reports/view/{wrong}", follow_redirects=False).status_code in (303, 404, 422)


def test_a_ticket_is_good_for_a_minute_and_few_are_kept(folder, monkeypatch):
    found = Reports(folder)
    id = id_of("map.html")
    words = [found.ticket(id) for _ in range(150)]
    assert len(found._tickets) == 100 and len({*words}) == 150
    now = time.monotonic()
    monkeypatch.setattr(reports.time, "monotonic", lambda: now + 61)
    with pytest.raises(Exception, match="once"):
        found.page(words[-1])
    found.ticket(id)
    assert len(found._tickets) == 1


@pytest.mark.parametrize("how", ["changed", "link", "gone", "pipe"])
def test_a_file_that_was_changed_after_its_ticket_is_not_shown(folder, how):
    found, path = Reports(folder), folder / "map.html"
    word = found.ticket(id_of("map.html"))
    if how == "changed":
        path.write_text("something else")
    else:
        path.unlink()
    if how == "link":
        (folder / "secret").write_text("secret")
        path.symlink_to(folder / "secret")
    if how == "pipe":
        os.mkfifo(path)
    with pytest.raises(Exception, match="changed or is gone"):
        found.page(word)


def test_where_reports_are(tmp_path, monkeypatch):
    """Those of an atlas lie in it; without one, in reports of the working folder, or, where that is not, in itself."""
    monkeypatch.chdir(tmp_path)
    page(tmp_path / "report.html")
    assert [row.name for row in Reports(reports_of(None, None)).rows()] == ["report.html"]
    (tmp_path / "reports").mkdir()
    assert str(reports_of(None, None)) == "reports" and reports_of(str(tmp_path), None) == tmp_path / "reports"
    assert Served(tmp_path).jobs == 1
