"""The verdict as JUnit XML, which GitHub, GitLab and Jenkins show: a suite for each device, a case for each file."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from gallery.files import write_whole
from gallery.results import EvaluationResults, ModelResult, Thresholds
from mobile_eval.formatting import plain
from mobile_eval.gate import row_failures


def write(proof: EvaluationResults, path: Path) -> Path:
    """Writes the file, whole or not at all.

    A file that broke or is over a limit is a failure, one that was not run is skipped.  What the verdict says of no
    file in particular is the case "gate" of the suite "verdict".
    """
    root = Element("testsuites", name=plain(proof.name))
    rows = sorted(proof.models, key=lambda row: row.device)
    for device, own in groupby(rows, key=lambda row: row.device):
        suite = SubElement(root, "testsuite", name=plain(device), timestamp=proof.created)
        for row in own:
            _case(suite, row, proof.thresholds)
    told = {sentence for row in proof.models for sentence in row_failures(row, proof.thresholds)}
    if others := [sentence for sentence in proof.gate.failures if sentence not in told]:
        suite = SubElement(root, "testsuite", name="verdict", timestamp=proof.created)
        _failure(SubElement(suite, "testcase", classname="verdict", name="gate"), others)
    for part in (*root, root):
        _count(part)
    indent(root, " ")
    return write_whole(path, tostring(root, "utf-8", xml_declaration=True))


def _case(suite: Element, row: ModelResult, thresholds: Thresholds) -> None:
    case = SubElement(suite, "testcase", classname=plain(row.device), name=plain(row.variant), file=plain(row.path))
    if failures := row_failures(row, thresholds):
        _failure(case, failures)
    elif row.status == "skipped":
        SubElement(case, "skipped", message=plain(row.reason))


def _failure(case: Element, sentences: list[str]) -> None:
    lines = [plain(sentence) for sentence in sentences]
    SubElement(case, "failure", message=lines[0], type="gate").text = "\n".join(lines)


def _count(part: Element) -> None:
    """The counts that readers go by; "errors" are the runner's own, of which there are none."""
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        part.set(name, str(sum(1 for _ in part.iter(tag))))
    part.set("errors", "0")
