"""The report says what the run shows, escapes what the data says, and stands on what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from report_run import BREAKER, SCRIPT, evaluation, lost, write_run

from stillhouse.errors import RunError
from stillhouse.report import figures
from stillhouse.report.figures import Bar, Dot, Series
from stillhouse.report.numbers import Metric
from stillhouse.report.page import write_report
from stillhouse.report.reading import Evaluation
from stillhouse.report.story import fraction, tell
from stillhouse.report.writing import markdown
from stillhouse.terminal import outcome_text

ACCURACY = "tasks.accuracy"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def page(run: Path) -> str:
    return write_report(run)[0].read_text(encoding="utf-8")


def story(evaluated: dict[str, Any]) -> str:
    """The headline with ordinary spaces."""
    return str(tell(Evaluation(evaluated))).replace("\u00a0", " ").replace("\u202f", " ")


def compared(difference: float, low: float, high: float, pair: str = "student - control") -> dict[str, Any]:
    evaluated = evaluation()
    change = {"difference": difference, "low": low, "high": high, "resolved": low > 0 or high < 0, "stderr": 0.02}
    evaluated["comparisons"][pair][ACCURACY] = {**change, "mde": 0.061, "n": 500}
    return evaluated


class TestHeadline:
    def test_better(self) -> None:
        said = story(compared(0.124, 0.081, 0.169))
        assert "The student keeps 84 % of its teacher’s accuracy at 1/9 of the size (95 % interval 79 to 89 %)." in said
        assert "Distilling is worth +12.4 points over plain training on the same data" in said
        assert "(95 % interval +8.1 to +16.9, n = 500)" in said

    def test_unresolved_names_the_smallest_visible_effect(self) -> None:
        evaluated = compared(0.012, -0.031, 0.055)
        said = story(evaluated)
        assert "unresolved" in said
        assert "worth" not in said
        assert (
            "+1.2 points, 95 % interval −3.1 to +5.5, n = 500; the smallest effect this test could see is 6.1 points"
            in said
        )
        assert tell(Evaluation(evaluated)).verdict == "unresolved"

    def test_worse_than_the_control(self) -> None:
        evaluated = compared(-0.08, -0.12, -0.04)
        assert "Distilling did harm: −8.0 points against plain training" in story(evaluated)
        assert tell(Evaluation(evaluated)).verdict == "worse"

    def test_worse_than_before_training(self) -> None:
        said = story(compared(-0.05, -0.08, -0.02, "student - student_before"))
        assert "It is worse than the same student before training (−5.0 points, 95 % interval −8.0 to −2.0" in said

    def test_no_control_concludes_nothing(self) -> None:
        evaluated = evaluation()
        del evaluated["models"]["control"], evaluated["comparisons"]["student - control"]
        said = story(evaluated)
        assert "There is no control" in said
        assert "nothing can be concluded about what the teacher added" in said
        assert tell(Evaluation(evaluated)).verdict == "unknown"

    def test_control_without_the_metric(self) -> None:
        evaluated = evaluation()
        del evaluated["comparisons"]["student - control"][ACCURACY]
        assert "The control was not compared on accuracy, so nothing can be concluded" in story(evaluated)

    def test_a_loss_as_the_headline(self) -> None:
        evaluated = evaluation() | {"headline": "likelihood.loss"}
        said = story(evaluated)
        assert "The student’s loss is 1.521 nats/token, its teacher’s 1.312 nats/token, at 1/9 of the size" in said
        assert "Distilling lowers it by 0.167 nats/token below plain training" in said
        worse = evaluated["comparisons"]["student - control"]["likelihood.loss"]
        worse.update(difference=0.1, low=0.05, high=0.15)
        assert "Distilling did harm: it is 0.100 nats/token higher than after plain training" in story(evaluated)

    @pytest.mark.parametrize("headline", [None, "tasks.exact_match"])
    def test_no_headline_metric(self, headline: str | None) -> None:
        said = story(evaluation() | {"headline": headline})
        assert "This run has no headline" in said
        assert (headline or "no metric was named") in said

    def test_a_diverged_student(self) -> None:
        evaluated = compared(float("nan"), float("nan"), float("nan"))
        evaluated["models"]["student"][ACCURACY]["value"] = float("nan")
        evaluated["recovery"][ACCURACY] = None
        said = story(evaluated)
        assert "The student’s accuracy is NaN" in said
        assert "is not a finite number, because one of the two diverged" in said

    def test_sizes(self) -> None:
        assert fraction(0.11) == "1/9 of the size"
        assert fraction(0.4) == "40\u00a0% of the size"
        assert fraction(1.004) == "the same size"
        assert fraction(0.004) == "1/250 of the size"


class TestPage:
    def test_all_parts_are_there(self, page: str) -> None:
        for part in ("models", "kept", "training", "calibration", "size", "samples", "cost", "choices", "recipe"):
            assert f'<section id="{part}">' in page
        assert page.count('role="img"') == 12  # headline, 2 kept, 2 losses, 2 quality, 3 reliability, size, stages
        for name in ("Student before", "plain training", "distilled"):
            assert name in page

    def test_it_is_well_formed(self, page: str) -> None:
        Balanced().check(page)
        names = re.findall(r' id="([^"]+)"', page)
        assert len(names) == len(set(names))

    def test_it_fetches_nothing_and_runs_nothing(self, page: str) -> None:
        assert not re.search(r"https?://", page.replace('xmlns="http://www.w3.org/2000/svg"', ""))
        assert "default-src 'none'" in page
        assert not re.search(r"<(script|link rel=.stylesheet|iframe|object|img)\b|url\(|@import|\son\w+=\"", page)

    def test_hostile_text_is_shown_as_text(self, page: str) -> None:
        assert SCRIPT not in page
        assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 4  # prompt, output, choice, recipe
        assert "<img src=x" not in page
        assert "\x00" not in page

    def test_numbers(self, page: str) -> None:
        for text in (
            "61.2\u00a0%",
            "± 2.2",
            "1.521",
            "+12.4\u00a0points",
            "9.0\u00a0× less",
            "1\u00a0min 28\u00a0s",
            "1.84\u00a0M",
        ):
            assert text in page
        assert "1 value that is not a finite number is left out" in page

    def test_the_same_run_gives_the_same_page(self, run: Path) -> None:
        first = [path.read_bytes() for path in write_report(run)]
        assert [path.read_bytes() for path in write_report(run)] == first
        assert not list(run.glob("*.partial"))

    def test_samples_show_both_sides(self, page: str) -> None:
        for why in (
            "The student is right where plain training is wrong",
            "The teacher is right where the student is wrong",
        ):
            assert why in page
        assert 1 <= page.count('<article class="sample">') <= 8
        assert '<details><summary><span class="said">Let us think' in page

    def test_lone_surrogates_do_not_stop_it(self, run: Path) -> None:
        (run / "samples.jsonl").write_text('{"prompt": "\\ud800", "outputs": {"student": "a", "control": "b"}}\n')
        assert "\ufffd" in write_report(run)[0].read_text(encoding="utf-8")


class TestMarkdown:
    def test_it_tells_the_same_story(self, run: Path) -> None:
        text = write_report(run)[1].read_text(encoding="utf-8").replace("\u00a0", " ")
        assert (
            "**The student keeps 84 % of its teacher’s accuracy at 1/9 of the size** (95 % interval 79 to 89 %)."
            in text
        )
        assert "| Accuracy ↑ (n = 500) | 61.2 % ± 2.2 |" in text
        assert "<details><summary>Choices made automatically</summary>" in text

    def test_tables_survive_hostile_text(self, run: Path) -> None:
        rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(write_report(run)[1].read_text())
        for row in re.findall(r"<tr>.*?</tr>", rendered, re.DOTALL):
            assert len(re.findall(r"<t[hd]", row)) in (2, 4, 7, 8)
        assert "<script" not in rendered
        assert "<img" not in rendered
        assert 'href="javascript' not in rendered
        assert rendered.count("<details>") == rendered.count("</details>") == 3
        assert "@everyone" not in rendered

    def test_escaping(self) -> None:
        for text in (BREAKER, SCRIPT, "a\nb | c", "\\| x", "~~s~~ $x$ :tada: www.x.org #12"):
            rendered = (
                MarkdownIt("commonmark", {"html": True})
                .enable(["table", "strikethrough"])
                .render(f"| a |\n| - |\n| {markdown(text)} |")
            )
            tags = set(re.findall(r"<(\w+)", rendered))
            assert tags == {"table", "thead", "tbody", "tr", "th", "td"}
            shown = "".join(ElementTree.fromstring(rendered).itertext()).split()
            assert shown == ["a", *text.split()]


class TestWhatWasLost:
    @pytest.fixture
    def pages(self, tmp_path: Path) -> tuple[str, str]:
        html, text = write_report(write_run(tmp_path / "run", lost()))
        return html.read_text(encoding="utf-8"), text.read_text(encoding="utf-8").replace("\u00a0", " ")

    def test_a_signature_stands_between_headline_and_models(self, pages: tuple[str, str]) -> None:
        html, text = pages
        Balanced().check(html)
        assert html.index('class="headline"') < html.index("Failure signature: <b>overfitted</b>") < html.index("<nav")
        for said in ("Its gap is +0.32", "<li>More training data</li>", "(arXiv 2504.14772)"):
            assert said in html
        assert SCRIPT not in html
        assert "<img src=x" not in html
        assert text.index("Distilling is worth") < text.index("**Failure signature: overfitted.**")
        assert text.index("- more training data") < text.index("### The models")

    def test_the_table_of_less_familiar_data(self, pages: tuple[str, str]) -> None:
        html, text = pages
        section = html.partition('<section id="generalisation">')[2].partition("</section>")[0]
        assert "From training data to held-out data" in section
        assert "From held-out data to wizard of oz" in section
        assert re.findall(r'<small class="(\w+)">', section) == ["worse"] * 2 + ["worse", "worse"] + [
            "worse",
            "unresolved",
        ]
        assert '<td>+0.300<small>+0.270 to +0.330</small><small class="worse">resolved, worse</small></td>' in section
        assert '<a href="#generalisation">' in html
        row = next(line for line in text.splitlines() if line.startswith("| Accuracy ↑, points | from held-out"))
        assert row.count("|") == 11
        assert "| – |" in row  # the student before was not measured there
        assert "−19.0 points (−22.0 to −16.0) | resolved, worse |" in row

    def test_markdown_tables_hold(self, pages: tuple[str, str]) -> None:
        rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(pages[1])
        widths = {len(re.findall(r"<t[hd]", row)) for row in re.findall(r"<tr>.*?</tr>", rendered, re.DOTALL)}
        assert widths == {2, 4, 7, 8, 10}
        assert "<blockquote>" in rendered
        assert "<script" not in rendered
        assert "<img" not in rendered

    def test_nothing_of_it_where_there_is_nothing_to_show(self, page: str, run: Path) -> None:
        text = (run / "report.md").read_text(encoding="utf-8")
        for absent in ("Failure signature", "less familiar", "#generalisation"):
            assert absent not in page
            assert absent not in text

    def test_without_a_control_its_column_is_gone(self, tmp_path: Path) -> None:
        evaluated = lost()
        del evaluated["models"]["control"], evaluated["comparisons"]["student - control"]
        for row in evaluated["generalisation"]:
            del row["changes"]["control"], row["excess"]["student - control"]
        html = write_report(write_run(tmp_path / "run", evaluated))[0].read_text(encoding="utf-8")
        Balanced().check(html)
        assert "Student − teacher<" in html
        assert "Student − control<" not in html

    def test_the_command_line_names_it_too(self) -> None:
        facts = {"skipped": [], "report": "r.html", "student": "s"}
        told = outcome_text(facts, lost())
        assert "Failure signature overfitted: The student is overfitted to the distillation data.\n" in told
        assert "  Try: more training data\n" in told
        assert "Failure" not in outcome_text(facts, evaluation())


class TestMissingPieces:
    def test_no_evaluation(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"no evaluation\.json.*Finish the run first"):
            write_report(tmp_path)

    def test_another_format(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", evaluation() | {"format": 2})
        with pytest.raises(RunError, match="format 2"):
            write_report(run)

    def test_broken_rows(self, run: Path) -> None:
        (run / "metrics.jsonl").write_text('{"model": "student"\n{"model": "student", "step": 1, "loss": 1.0}\n')
        with pytest.raises(RunError, match=r"metrics\.jsonl, line 1"):
            write_report(run)

    def test_evaluation_alone(self, tmp_path: Path) -> None:
        page, text = write_report(write_run(tmp_path / "a-run", only_evaluation=True))
        html = page.read_text(encoding="utf-8")
        Balanced().check(html)
        assert "<b>a-run</b>" in html
        assert "recorded no costs" in html
        assert "no recipe" in html
        assert "The run recorded no costs." in text.read_text(encoding="utf-8")

    def test_next_to_nothing(self, tmp_path: Path) -> None:
        bare = {"format": 1, "models": {"student": {"likelihood.loss": {"value": 2.0, "stderr": None, "n": None}}}}
        page, _ = write_report(write_run(tmp_path / "run", bare, only_evaluation=True))
        html = page.read_text(encoding="utf-8")
        Balanced().check(html)
        assert "This run has no headline" in html
        assert 'role="img"' not in html

    def test_without_control(self, tmp_path: Path) -> None:
        evaluated = evaluation()
        del evaluated["models"]["control"], evaluated["comparisons"]["student - control"]
        evaluated["gap_closed"] = {}
        html = write_report(write_run(tmp_path / "run", evaluated))[0].read_text(encoding="utf-8")
        assert "Student − control<" not in html
        assert "Gap closed" not in html
        assert "Without a control" in html

    def test_everything_not_finite(self, tmp_path: Path) -> None:
        evaluated = evaluation()
        for values in evaluated["models"].values():
            for number in values.values():
                number.update(value=float("nan"), stderr=float("inf"))
        for pair in evaluated["comparisons"].values():
            for change in pair.values():
                change.update(dict.fromkeys(("difference", "low", "high", "mde"), float("-inf")))
        for kind in ("recovery", "gap_closed"):
            for share in filter(None, evaluated[kind].values()):
                share.update(low=float("-inf"), high=float("inf"))
        html, text = (path.read_text(encoding="utf-8") for path in write_report(write_run(tmp_path / "run", evaluated)))
        Balanced().check(html)
        assert "NaN" in html
        assert "NaN" in text
        assert not re.search(r'="[^"]*\b(nan|inf)\b', html)  # no such number reaches a drawing


class TestFigures:
    DOTS = (Dot("teacher", 0.6, 0.02, "60 %"), Dot("student", 0.5, 0.0, "50 % <&"))

    def test_they_are_xml_with_a_description(self) -> None:
        steps = [(float(step), 100.0 / (step + 1)) for step in range(50)]
        series = [Series("student", steps, [(step, y, y * 2) for step, y in steps]), Series("control", steps[:1], [])]
        made = [
            figures.dots("a", "A <b>", self.DOTS, "x & y", figures.plain_number),
            figures.intervals("b", "B", [Bar("<m>", 0.5, -7.0, 9.0, "50 %")], "share", {0.0: "none", 1.0: "all"}),
            figures.curves("c", "C", series, self.DOTS[0], figures.plain_number, log=True),
            figures.reliability("d", "student", [(0.5, 0.4, 10)], "note"),
            figures.size_scatter(
                "e", "E", [(dot, 10.0**place) for place, dot in enumerate(self.DOTS)], "bytes", (str, str)
            ),
            figures.stage_bars("f", [("train", 0.0), ("\x1b[31m", 0.0)]),
        ]
        for figure in made:
            root = ElementTree.fromstring(str(figure))
            kinds = [child.tag.rpartition("}")[2] for child in root]
            assert kinds[:2] == ["title", "desc"]
            assert root.get("aria-labelledby")
            assert "nan" not in str(figure)

    @pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-9, 1e-9], [1e12, 3e12]])
    def test_odd_ranges_still_have_ticks(self, values: list[float]) -> None:
        series = [Series("student", [(float(step), y) for step, y in enumerate(values)], [])]
        figure = figures.curves("c", "C", series, None, figures.plain_number, log=True)
        assert str(figure).count('class="tick"') >= 3


def test_metric_writes_what_is_known() -> None:
    loss, share = Metric("l", "Loss", "nats/token", "lower"), Metric("s", "Accuracy", "share", "higher")
    assert (loss.value(1.52149, 0.0182), loss.stderr(0.0182)) == ("1.521", "0.018")
    assert (share.value(0.5, 0.0), share.stderr(None), share.value(float("inf"))) == ("50.0\u00a0%", "", "∞")
    assert loss.difference(-1e-9, 0.01) == "0.000"
    assert Metric("oz:l", "Loss").name == "loss on oz"


def test_the_report_loads_no_torch() -> None:
    code = "import sys, stillhouse.report.page; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Balanced(HTMLParser):
    """Checks that every element is closed in its place."""

    VOID = frozenset({"meta", "link"})

    def check(self, page: str) -> None:
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag
