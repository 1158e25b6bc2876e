"""The accuracy report as JSON and as a section of a document."""

from pathlib import Path

import pytest
from trivec_server.types import InputType, ModelSettings

from benchmarks.accuracy.corpus import PASSAGE_ROWS, QUERY_ROWS, samples, tokenize
from benchmarks.accuracy.measuring import Absence, ModelAccuracy, Row
from benchmarks.accuracy.report import AccuracyReport, read_report, render_section, replace_section, write_report
from tests.numerics.agreement import Closeness, RankAgreement
from tests.numerics.retrieval_set import PASSAGES, QUERIES

_REPORT = AccuracyReport(
    device="cpu",
    machine={"cpu": "a CPU", "python": "3.11"},
    models=[
        ModelAccuracy(
            model="m3-mini",
            reference="onnxruntime float32",
            rows=[
                Row(
                    engine="openvino",
                    precision="int8",
                    device="cpu",
                    closeness=Closeness(
                        texts=600,
                        tokens=15000,
                        dense_cosine_min=0.99,
                        dense_cosine_mean=0.999,
                        multi_vector_cosine_min=0.98,
                        multi_vector_cosine_mean=0.998,
                        overlap_10=1.0,
                        overlap_50=0.5,
                        overlap_all=0.25,
                        weight_error=0.125,
                        difference=0.25,
                        worst_text=4,
                    ),
                    worst_text="a far text",
                    ranks={"dense": RankAgreement(top_1=1.0, top_10=0.75, kendall=0.875)},
                )
            ],
            missing=[Absence(engine="pytorch", precision="float8", reason="needs a GPU")],
        )
    ],
)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_report(_REPORT, tmp_path / "results" / "accuracy-cpu.json")

    assert read_report(tmp_path / "results" / "accuracy-cpu.json") == _REPORT


def test_the_section_tells_of_rows_outliers_ranks_and_what_was_not_run() -> None:
    section = render_section([_REPORT])

    assert "| openvino | int8 | 0.990000 / 0.999000 | 0.980000 / 0.998000 | 1.0000 / 0.5000 / 0.2500 |" in section
    assert "'a far text' (openvino int8)" in section
    assert "1.000 / 0.750 / 0.8750" in section
    assert "pytorch float8: not run: needs a GPU" in section
    assert "600 texts, 15,000 tokens, compared with onnxruntime float32" in section


def test_a_section_is_replaced_and_the_rest_kept() -> None:
    first = replace_section("# Title\n\nBefore.\n", "accuracy", "old")
    document = first + "\n## After\n"

    replaced = replace_section(document, "accuracy", "new")

    assert "old" in document
    assert replaced == document.replace("old", "new")
    assert replaced.startswith("# Title\n\nBefore.\n")


def test_a_section_without_its_end_is_refused() -> None:
    document = replace_section("", "accuracy", "old").partition("old")[0]

    with pytest.raises(ValueError, match="without"):
        replace_section(document, "accuracy", "new")


def test_there_are_more_than_500_texts_the_same_every_time() -> None:
    texts = samples()

    assert len(texts) >= 500
    assert texts == samples()
    assert [sample.text for sample in texts[QUERY_ROWS]] == [query.text for query in QUERIES]
    assert [sample.text for sample in texts[PASSAGE_ROWS]] == list(PASSAGES.values())


def test_texts_have_up_to_200_tokens_and_the_models_prefixes(mini_repository: Path) -> None:
    settings = ModelSettings(name="m3-mini", backend="onnxruntime", query_prefix="query: ")
    texts = samples()

    with_prefix = tokenize(texts, mini_repository / "m3-mini" / "1", settings)
    lengths = [len(sequence) for sequence in with_prefix]

    assert texts[0].input_type is InputType.QUERY
    assert (min(lengths), max(lengths) <= 200, max(lengths) > 150) == (2, True, True)
