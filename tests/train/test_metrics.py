"""Each metric against a published implementation, or against cases worked out by hand from its definition."""

import subprocess
import sys
import unicodedata

import jiwer
import numpy as np
import pytest
import sacrebleu
from anls_star import anls_score
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import confusion_matrix, f1_score
from transformers.data.metrics.squad_metrics import compute_f1

from vlmdata.errors import ConfigError, DataError
from vlmtrain.metrics import METRICS, compare, find_metrics, score, score_rows, tabulate_confusion
from vlmtrain.metrics.vqa import REPAIRED, normalise_answer

WORDS = st.lists(st.sampled_from(["a", "cat", "sat", "on", "the", "mat", "7", "Žlutý", "北京"]), max_size=8)
SENTENCES = WORDS.map(" ".join)
ROWS = st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=6)
ASCII = st.text(alphabet="abc XY,.-'7", max_size=20)


def value(name, prediction, *references):
    return METRICS[name].function(prediction, references)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS)
def test_error_rates_of_a_set_are_those_of_jiwer(rows):
    predictions, references = map(list, zip(*rows, strict=True))
    scored = score(predictions, [[text] for text in references], ["cer", "wer"], resamples=2)
    assert scored["cer"].value == pytest.approx(jiwer.cer(references, predictions))
    assert scored["wer"].value == pytest.approx(jiwer.wer(references, predictions))


@settings(max_examples=200, deadline=None)
@given(prediction=SENTENCES, references=st.lists(SENTENCES, min_size=1, max_size=4))
def test_error_rates_of_a_row_are_the_lowest_over_its_references(prediction, references):
    assert value("cer", prediction, *references) == pytest.approx(min(jiwer.cer(r, prediction) for r in references))
    assert value("wer", prediction, *references) == pytest.approx(min(jiwer.wer(r, prediction) for r in references))


def test_error_rates_take_line_breaks_as_word_breaks_and_composed_characters_as_equal():
    assert value("wer", "one\ntwo", "one two") == 0
    assert value("cer", "one\ntwo", "one two") == pytest.approx(1 / 7)
    assert value("cer", unicodedata.normalize("NFD", "žluť"), "žluť") == 0


def test_an_empty_reference_counts_what_was_written():
    assert value("cer", "", "") == 0
    assert value("cer", "ab", "") == jiwer.cer("", "ab") == 2
    assert value("wer", "ab cd", "") == jiwer.wer("", "ab cd") == 2


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(ASCII, st.lists(ASCII, min_size=2, max_size=2)), min_size=1, max_size=5))
def test_chrf_is_that_of_sacrebleu(rows):
    predictions = [prediction for prediction, _ in rows]
    references = [accepted for _, accepted in rows]
    scored = score(predictions, references, ["chrf"], resamples=2)["chrf"].value
    oracle = sacrebleu.corpus_chrf(predictions, [list(column) for column in zip(*references, strict=True)])
    assert scored == pytest.approx(oracle.score / 100, abs=1e-9)
    assert value("chrf", predictions[0], *references[0]) == pytest.approx(
        sacrebleu.sentence_chrf(predictions[0], references[0]).score / 100, abs=1e-9
    )


@settings(max_examples=200, deadline=None)
@given(prediction=ASCII, references=st.lists(ASCII, min_size=1, max_size=3))
def test_rouge_l_is_that_of_rouge_score(prediction, references):
    scorer = RougeScorer(["rougeL"])
    oracle = max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in references)
    assert value("rouge_l", prediction, *references) == pytest.approx(oracle)


def test_rouge_l_reads_other_scripts():
    assert value("rouge_l", "красный дом", "красный дом") == 1
    assert value("rouge_l", "一只狗", "一只猫") == pytest.approx(2 / 3)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("abcdx"), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_macro_f1_and_confusion_are_those_of_scikit_learn(rows):
    predictions, references = map(list, zip(*rows, strict=True))
    accepted = [[text] for text in references]
    labels = sorted(set(references))
    oracle = f1_score(references, predictions, labels=labels, average="macro", zero_division=0)
    assert score(predictions, accepted, ["macro_f1"], resamples=2)["macro_f1"].value == pytest.approx(oracle)
    table = tabulate_confusion(predictions, accepted)
    assert table.labels == tuple(labels)
    assert table.columns == (*labels, "(other)")
    within = [text if text in labels else "zz" for text in predictions]
    # scikit-learn wants a square table: the row of "zz", which is no reference, is empty.
    assert table.counts == tuple(map(tuple, confusion_matrix(references, within, labels=[*labels, "zz"])[:-1].tolist()))


def test_labels_are_shown_as_written_and_any_accepted_one_counts():
    table = tabulate_confusion(["t-shirt", "DRESS", "hat"], [["T-Shirt"], ["Gown", "Dress"], ["Dress"]])
    assert table.labels == ("Dress", "T-Shirt")
    assert table.counts == ((1, 0, 1), (0, 1, 0))


def test_macro_f1_refuses_texts():
    texts = [f"text {index}" for index in range(1001)]
    with pytest.raises(DataError, match="macro_f1 is for labels, and there are 1001 different ones"):
        score(texts, [[text] for text in texts], ["macro_f1"])


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "folded"),
    [
        (" 7\n", ["7"], 1, 1),
        ("7", ["8", "7"], 1, 1),
        ("Cat", ["cat"], 0, 1),
        ("caf\u0065\u0301", ["caf\u00e9"], 1, 1),
        ("a  b", ["a b"], 0, 0),
        ("", ["7"], 0, 0),
        ("STRASSE", ["straße"], 0, 1),
    ],
)
def test_exact_match(prediction, references, exact, folded):
    assert value("exact_match", prediction, *references) == exact
    assert value("exact_match_casefold", prediction, *references) == folded


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("Moore", ["moore"], 1),
        ("the  end", ["The end"], 1),
        ("abcd", ["abcx"], 0.75),
        ("ab", ["ax"], 0.5),
        ("abc", ["axx"], 0),
        ("abc", ["zzz", "abd"], 2 / 3),
        ("", ["a"], 0),
    ],
)
def test_anls(prediction, references, expected):
    assert value("anls", prediction, *references) == pytest.approx(expected)


NEAR_TEXTS = st.text(alphabet="abAB \n", max_size=7)


@settings(max_examples=300, deadline=None)
@given(prediction=NEAR_TEXTS, references=st.lists(NEAR_TEXTS, min_size=2, max_size=3))
def test_anls_is_that_of_anls_star(prediction, references):
    assert value("anls", prediction, *references) == pytest.approx(anls_score(tuple(references), prediction))


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("-95", "-100", 1),
        ("20%", "0.2", 1),
        ("20%", "20", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("Blue", "blue", 1),
        ("1,000", "1000", 0),
        ("nan", "5", 0),
        ("NaN", "nan", 1),
        ("Infinity", "infinity", 1),
        ("2010", "blue", 0),
    ],
)
def test_relaxed_accuracy(prediction, reference, expected):
    assert value("relaxed_accuracy", prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("The cat sat.", ["a cat sat"], 1),
        ("cat", ["the black cat"], 2 / 3),
        ("cat cat", ["cat"], 2 / 3),
        ("dog", ["cat", "dog"], 1),
        ("the", ["a"], 1),
        ("the", ["cat"], 0),
    ],
)
def test_token_f1(prediction, references, expected):
    assert value("token_f1", prediction, *references) == pytest.approx(expected)


SQUAD_WORDS = st.lists(st.sampled_from(["the", "The", "a", "an", "cat", "cat.", "dog", "don't", "...", "Žlutý"]))


@settings(max_examples=300, deadline=None)
@given(prediction=SQUAD_WORDS.map(" ".join), reference=SQUAD_WORDS.map(" ".join))
def test_token_f1_is_that_of_squads_evaluation(prediction, reference):
    assert value("token_f1", prediction, reference) == pytest.approx(compute_f1(reference, prediction))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Cat", "cat"),
        ("two", "2"),
        ("None", "0"),
        ("yes!", "yes"),
        ("t-shirt", "t shirt"),
        ("red , blue", "red blue"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("ow's'at", "'ow's'at"),
        ("black/white", "black white"),
        ("a\nb", "b"),
        ("it's", "it's"),
    ],
)
def test_vqa_answers_are_normalised_as_in_the_evaluation(answer, expected):
    assert normalise_answer(answer) == expected


def test_every_contraction_is_repaired_to_one_that_stays():
    assert {"aint", "yall'd've", "twas", "oclock", "wouldntve"} - REPAIRED.keys() == {"wouldntve"}
    assert all(normalise_answer(whole) == whole for whole in REPAIRED.values())


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_leaves_each_annotator_out(agreeing, expected):
    answers = ["two"] * agreeing + [f"other {index}" for index in range(10 - agreeing)]
    assert value("vqa_accuracy", "2", *answers) == pytest.approx(expected)


def test_vqa_accuracy_with_a_single_reference_compares_it():
    assert value("vqa_accuracy", "The dog!", "dog") == 1
    assert value("vqa_accuracy", "cat", "dog") == 0


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ('{"total": 12.50, "items": [{"name": "tea"}, {"name": "milk"}], "paid": true}', 1),
        ('```json\n{"paid": true, "total": 12.5, "items": [{"name": " tea"}, {"name": "milk"}]}\n```', 1),
        ('{"total": 12, "items": [{"name": "tea"}, {"name": "milk"}], "paid": true}', 3 / 4),
        ('{"total": "12.5", "items": [{"name": "tea"}, {"name": "milk"}], "paid": 1}', 2 / 4),
        ('{"items": [{"name": "tea"}]}', 1 / 4),
        ('{"total": 12.5, "items": [{"name": "tea"}, {"name": "milk"}], "paid": true, "tax": 1}', 4 / 5),
        ("{}", 0),
        ("not json", 0),
        ("[" * 100_000, 0),
        ("", 0),
    ],
)
def test_json_fields(prediction, expected):
    reference = '{"total": 12.5, "items": [{"name": "tea"}, {"name": "milk"}], "paid": true}'
    assert value("json_fields", prediction, reference) == pytest.approx(expected)


def test_json_fields_refuses_references_that_are_not_json():
    with pytest.raises(DataError, match="json_fields needs references that are JSON, not 'tea'"):
        value("json_fields", "{}", "tea")


TEXT_METRICS = sorted(set(METRICS) - {"json_fields"})


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_a_right_answer_scores_best_and_a_wrong_one_worse(name):
    metric = METRICS[name]
    right, wrong = metric.function("red house", ["red house"] * 10), metric.function("xyz", ["red house"] * 10)
    assert right == (1 if metric.higher_is_better else 0)
    assert wrong < right if metric.higher_is_better else wrong > right
    with pytest.raises(ValueError, match="without a reference"):
        metric.function("red house", [])


@pytest.mark.parametrize("name", TEXT_METRICS)
@settings(max_examples=30, deadline=None)
@given(prediction=st.text(max_size=20), references=st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_no_text_breaks_a_metric(name, prediction, references):
    row_value = METRICS[name].function(prediction, references)
    assert 0 <= row_value
    assert row_value <= 1 or not METRICS[name].higher_is_better
    scored = score([prediction], [references], [name], resamples=2)[name]
    assert (scored.value, scored.low, scored.high) == pytest.approx((row_value,) * 3)


def test_rows_are_scored_one_by_one():
    rows = score_rows(["7", "8"], [["7"], ["7", "9"]], ["exact_match", "cer"])
    assert rows == [{"exact_match": 1, "cer": 0}, {"exact_match": 0, "cer": 1}]


def test_the_interval_is_that_of_the_normal_approximation():
    predictions = ["7"] * 300 + ["8"] * 100
    scored = score(predictions, [["7"]] * 400, ["exact_match"], resamples=4000, seed=3)["exact_match"]
    assert scored.value == 0.75
    assert scored.rows == 400
    half_width = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (scored.value - scored.low, scored.high - scored.value) == pytest.approx((half_width,) * 2, rel=0.08)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        predictions = np.where(rng.random(150) < 0.7, "a", "b").tolist()
        scored = score(predictions, [["a"]] * 150, ["exact_match"], resamples=300, seed=trial)["exact_match"]
        held += scored.low <= 0.7 <= scored.high
    assert 0.91 <= held / 300 <= 0.985


def test_scores_are_repeatable_and_depend_on_the_seed():
    predictions, references = ["a", "b", "c", "a", "b"] * 5, [["a"], ["a"], ["c"], ["c"], ["b"]] * 5
    first, again, other = (
        score(predictions, references, ["macro_f1", "cer"], resamples=200, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first["macro_f1"].value == other["macro_f1"].value


def test_a_paired_comparison_sees_what_separate_intervals_do_not():
    references = [["a"]] * 200
    base = ["a"] * 100 + ["b"] * 100
    better = ["a"] * 110 + ["b"] * 90
    result = compare(better, base, references, ["exact_match"])["exact_match"]
    assert (result.value, result.base) == (0.55, 0.5)
    assert result.difference == pytest.approx(0.05)
    assert 0 < result.low < 0.05 < result.high < 0.1
    assert result.p_value < 0.01
    alone = [score(texts, references, ["exact_match"])["exact_match"] for texts in (better, base)]
    assert alone[0].low < alone[1].high
    same = compare(base, base, references, ["exact_match"])["exact_match"]
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_large_sets_are_resampled_in_blocks():
    predictions = ["a"] * 30_000 + ["b"] * 10_000
    scored = score(predictions, [["a"]] * 40_000, ["exact_match"], resamples=250)["exact_match"]
    assert scored.high - scored.low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 40_000) ** 0.5, rel=0.2)


def test_wrong_names_and_sets_are_refused_in_words():
    with pytest.raises(ConfigError, match="unknown metric 'exactmatch': did you mean 'exact_match'") as caught:
        find_metrics(["exactmatch", "bleu", "cer"])
    assert len(caught.value.problems) == 2
    assert list(find_metrics(["wer", "cer"])) == ["wer", "cer"]
    with pytest.raises(DataError, match="2 predictions for 1 rows"):
        score(["a", "b"], [["a"]], ["cer"])
    with pytest.raises(DataError, match="there is no row to score"):
        score([], [], ["cer"])
    with pytest.raises(DataError, match="1 rows have no reference to score against, the first is row 1"):
        score(["a", "b"], [["a"], []], ["cer"])


def test_metrics_need_no_torch():
    code = "import sys, vlmtrain.metrics; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
