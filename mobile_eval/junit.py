"""The result of the quality gate as JUnit XML: a test suite per device, a test case per model."""

from itertools import groupby
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from gallery.console import plain
from gallery.files import atomic_write
from gallery.results import EvaluationResults
from mobile_eval.gate import row_failures


def write_junit(results: EvaluationResults, path: Path) -> Path:
    """Write the file, whole or not at all.

    A model that failed or is over a threshold is a failure.  Failures of no model in particular are the case "gate" of
    the suite "gate".
    """
    root = Element("testsuites", name=plain(results.name))
    rows = sorted(results.models, key=lambda row: row.device)
    reported: set[str] = set()
    for device, group in groupby(rows, key=lambda row: row.device):
        suite = SubElement(root, "testsuite", name=plain(device), timestamp=results.created)
        for row in group:
            names = {"classname": row.device, "name": row.variant, "file": row.path}
            case = SubElement(suite, "testcase", {key: plain(value) for key, value in names.items()})
            if failures := row_failures(row, results.thresholds):
                _add_failure(case, failures)
                reported |= set(failures)
            elif row.status == "skipped":
                SubElement(case, "skipped", message=plain(row.reason))
    if others := [sentence for sentence in results.gate.failures if sentence not in reported]:
        suite = SubElement(root, "testsuite", name="gate", timestamp=results.created)
        _add_failure(SubElement(suite, "testcase", classname="gate", name="gate"), others)
    for element in (*root, root):
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
            element.set(name, str(sum(1 for _ in element.iter(tag))))
        element.set("errors", "0")
    indent(root, " ")
    return atomic_write(path, tostring(root, "utf-8", xml_declaration=True))


def _add_failure(case: Element, sentences: list[str]) -> None:
    lines = [plain(sentence) for sentence in sentences]
    SubElement(case, "failure", message=lines[0], type="gate").text = "\n".join(lines)
