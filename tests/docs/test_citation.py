"""CITATION.cff is what citation tools read: valid, and of this version."""

from pathlib import Path

import yaml

import moge_bench

ROOT = Path(__file__).parents[2]


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # What the schema of CFF 1.2.0 requires.
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == moge_bench.__version__
    assert citation["license"] == "MIT"
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]] == [
        "Kang",
        "Li",
        "Tian",
        "Huang",
    ]
    assert "2504.09265" in paper["url"]
