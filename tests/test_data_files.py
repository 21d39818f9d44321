"""Users' files and data sets from the Hub: good ones give equal rows, bad ones a one-line error."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data_files import dataset_revision, file_hash, load_hub_dataset, read_pairs, read_rows
from common.errors import RunError, UsageError
from common.formats import table_name
from training.utils.columns import map_columns
from training.utils.data_loading import load_dev_sets, load_training_data
from training.utils.options import LOSSES, DatasetEntry

ROWS = [
    {"sentence1": "Zwölf Boxkämpfer, “quoted”", "sentence2": 'a "b", c', "score": 0.5},
    {"sentence1": "قطع أخي فرعًا يابسًا", "sentence2": "two\nlines", "score": 1.0},
    {"sentence1": "tab\tinside", "sentence2": "ends with space ", "score": 0.0},
    {"sentence1": "NA", "sentence2": "null", "score": 0.25},
]

# a TSV file cannot hold a tab or a line end in a field, and its quotation marks are characters like any other
TSV_ROWS = [
    {
        key: value.replace("\t", " ").replace("\n", " ") if isinstance(value, str) else value
        for key, value in row.items()
    }
    for row in ROWS
]
TSV_ROWS[2]["sentence1"], TSV_ROWS[3]["sentence1"] = '"opens', 'closes"'


def write_rows(path, rows, encoding="utf-8"):
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding=encoding, newline="") as file:
            if path.suffix == ".csv":
                writer = csv.writer(file)
                writer.writerow(rows[0])
                writer.writerows(row.values() for row in rows)
            else:  # as the field's are written: nothing is quoted
                file.writelines("\t".join(map(str, fields)) + "\n" for fields in (rows[0], *(r.values() for r in rows)))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".CSV"])
def test_good_files_give_equal_rows(tmp_path, hub, suffix):
    if suffix == ".CSV":
        path = write_rows(tmp_path / "pairs.csv", ROWS).rename(tmp_path / "pairs.CSV")
    else:
        path = write_rows(tmp_path / f"pairs{suffix}", ROWS if suffix != ".tsv" else TSV_ROWS)
    rows = ROWS if suffix != ".tsv" else TSV_ROWS
    assert read_pairs(path) == {"default": {key: [row[key] for row in rows] for key in rows[0]}}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_byte_order_mark_and_windows_line_ends(tmp_path, hub, suffix):
    plain = [row for row in TSV_ROWS if "\n" not in row["sentence2"]]
    path = write_rows(tmp_path / f"pairs{suffix}", plain, encoding="utf-8-sig")
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert read_pairs(path)["default"]["sentence1"] == [row["sentence1"] for row in plain]


def test_subsets_are_kept_apart(tmp_path, hub):
    rows = [{"subset": "ab"[i % 2], **row} for i, row in enumerate(ROWS + ROWS)]
    sets = read_pairs(write_rows(tmp_path / "pairs.jsonl", rows))
    assert {name: pairs["score"] for name, pairs in sets.items()} == {
        "a": [0.5, 0.0, 0.5, 0.0],
        "b": [1.0, 0.25, 1.0, 0.25],
    }


def test_a_changed_file_is_read_again(tmp_path, hub):
    path = write_rows(tmp_path / "pairs.parquet", ROWS)
    assert len(read_rows(path)) == 4
    write_rows(path, ROWS[:3])
    assert len(read_rows(path)) == 3


GOOD = "sentence1,sentence2,score\na,b,1\nc,d,2\ne,f,3\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "the file is empty"),
        ("x.csv", b"sentence1,sentence2,score\n", "has no rows"),
        ("x.csv", b"\n\n", "has no rows"),
        ("x.jsonl", b"\n \n", "has no rows"),
        ("x.csv", GOOD + "a,b\n", "line 5: 2 fields, but the header has 3"),
        ("x.csv", GOOD + "a,b,1,2\n", "line 5: 4 fields, but the header has 3"),
        ("x.csv", GOOD + '"a,b,1\n', "line 5: unexpected end of data"),
        ("x.csv", "score,sentence1,sentence2,score\n1,a,b,2\n", "line 1: the column name 'score' is duplicated"),
        ("x.csv", "sentence1,sentence2,score,,\na,b,1,,\n", "line 1: 2 of the 5 columns have no name"),
        ("x.csv", GOOD.encode("utf-16"), "line 1: not UTF-8 text (byte 0xff); convert the file to UTF-8"),
        ("x.csv", (20_000 * GOOD + "é,b,1\n").encode("latin-1"), "line 80001: not UTF-8 text (byte 0xe9)"),
        (
            "x.csv",
            GOOD.replace("sentence2", "second"),
            "no column 'sentence2'; the columns are sentence1, second, score: rename them to sentence1, sentence2, score",
        ),
        ("x.csv", GOOD.replace(",", ";"), "line 1: the header is one field, 'sentence1;sentence2;score': separate"),
        ("x.csv", GOOD.replace(",", ";").replace("a;", "a, b, c;"), "separate the fields with commas, not ';'"),
        ("x.csv", GOOD.replace(",", "\t"), "separate the fields with commas, not tabs"),
        ("x.csv", GOOD + "a,b,high\n", "row 4: column 'score' must be a finite number, not 'high'"),
        ("x.csv", GOOD + "a,b,nan\n", "row 4: column 'score' must be a finite number, not 'nan'"),
        ("x.csv", GOOD + "a,b,inf\n", "row 4: column 'score' must be a finite number, not 'inf'"),
        ("x.csv", GOOD + "a,b,\n", "row 4: column 'score' must be a finite number, not ''"),
        ("x.csv", GOOD + "a, ,4\n", "row 4: column 'sentence2' is empty"),
        ("x.csv", GOOD + "\u00a0\u200a,b,4\n", "row 4: column 'sentence1' is empty"),
        ("x.csv", "sentence1,sentence2,score\na,b,1\n", "1 graded pair; a correlation needs at least 3"),
        ("x.csv", "sentence1,sentence2,score\na,b,1\nc,d,1\ne,f,1\n", "every score is 1"),
        ("x.csv", GOOD.replace("score", "score,subset").replace("\n", ",\n").replace("subset,", "subset"), "subset"),
        ("x.tsv", GOOD, "no column 'sentence1'"),
        ("x.jsonl", '{"sentence1": "a"', "line 1: not valid JSON"),
        ("x.jsonl", '{"sentence1": "a"}\n[1]\n', "line 2: must be a JSON object"),
        ("x.jsonl", '{"a": "b"}\n{"c": "d"}\n', "line 2: the row has none of the keys of the first row, which are a"),
        ("x.jsonl", '{"a": ["b"]}\n{"a": ["c", 5]}\n', "column 'a', in its lists, holds text and, in row 2, a number"),
        ("x.jsonl", '{"a": {"x": 1}}\n{"a": {"x": "s"}}\n', "column 'a', key 'x', holds a number and, in row 2, text"),
        (
            "x.jsonl",
            '{"a": 1}\n{"a": ' + str(2**70) + "}\n",
            "column 'a' holds, in row 2, an integer of more than 64 bits",
        ),
        (
            "x.json",
            '{"sentence1": {"0": "a", "1": "b"}, "sentence2": {"0": "a", "1": "b"}}',
            "holds a single object: it must",
        ),
        ("x.json", '{"data": [{"sentence1": "a"}]}', "holds a single object: it must hold a list of objects"),
        ("x.json", '{\n"data": [{"sentence1": "a"}]}', "holds a single object: it must hold a list of objects"),
        ("x.jsonl", '{"a": "b"}\n{"a": 1}\n', "x.jsonl: column 'a' holds text and, in row 2, a number: use one type"),
        ("x.jsonl", '{"a": "b"}\n{"a": ["c"]}\n', "x.jsonl: column 'a' holds text and, in row 2, a list: use one type"),
        ("x.jsonl", '{"a": "b"}\n{"a": "\\ud800"}\n', "line 2: 'a' is not valid Unicode (a lone surrogate)"),
        ("x.jsonl", '{"sentence1": ["a"], "sentence2": "b", "score": 1}\n', "column 'sentence1' holds"),
        ("x.jsonl", '{"sentence1": null, "sentence2": "b", "score": 1}\n', "column 'sentence1'"),
        (
            "x.jsonl",
            '{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sentence1": null, "sentence2": "b", "score": 1}\n',
            "row 2: column 'sentence1' has no value",
        ),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b", "score": true}\n', "row 1: column 'score' must be a finite"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b", "score": null}\n', "row 1: column 'score' must be a finite"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b", "score": NaN}\n', "row 1: column 'score' must be a finite"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b", "score": ' + "9" * 400 + "}\n", "x.jsonl"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b", "score": ' + "9" * 5000 + "}\n", "line 1: Exceeds the limit"),
        ("x.jsonl", "[" * 100_000, "line 1: nested too deeply"),
        ("x.parquet", b"not a parquet file at all", "not a readable Parquet file"),
        ("x.parquet", b"", "the file is empty"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_bad_files(tmp_path, hub, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    with pytest.raises(RunError) as error:
        read_pairs(path)
    assert type(error.value) is RunError
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_parquet_file(tmp_path, hub):
    path = write_rows(tmp_path / "x.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match="not a readable Parquet file"):
        read_rows(path)


def test_a_parquet_file_whose_name_is_a_pattern(tmp_path, hub):
    for name, rows in (("mined1.parquet", ROWS[:1]), ("mined[1].parquet", ROWS)):
        write_rows(tmp_path / name, rows)
    assert len(read_rows(tmp_path / "mined[1].parquet")) == len(ROWS) > 1


def test_a_parquet_file_without_rows(tmp_path, hub):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"sentence1": pa.array([], pa.string())}), path)
    with pytest.raises(RunError, match="has no rows"):
        read_rows(path)


cells = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.text(), max_size=2)
rows_of_pairs = st.lists(
    st.fixed_dictionaries({"sentence1": cells, "sentence2": cells, "score": cells}, optional={"subset": cells}),
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows_of_pairs)
def test_any_rows_are_read_or_refused_in_one_line(tmp_path, hub, rows):
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        sets = read_pairs(path)
    except RunError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert sum(len(pairs["score"]) for pairs in sets.values()) == len(rows)
        for pairs in sets.values():
            assert all(text.strip() for text in (*pairs["sentence1"], *pairs["sentence2"]))
            assert all(math.isfinite(score) for score in pairs["score"]) and len(set(pairs["score"])) > 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path, hub, content, suffix):
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    try:
        assert len(read_rows(path)) > 0
    except RunError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1


def test_not_a_file_of_ours(tmp_path, hub):
    (tmp_path / "x.txt").write_text("a")
    (tmp_path / "folder.csv").mkdir()
    for name, message in (
        ("none.csv", "no such file"),
        ("x.txt", "not a supported format"),
        ("folder.csv", "a folder"),
    ):
        with pytest.raises(UsageError, match=message):
            read_rows(tmp_path / name)


# Training data


def entry(path, loss="mnrl", **more):
    return DatasetEntry(str(path), loss, **more)


def test_triplets_come_in_the_order_of_the_roles(tmp_path, hub):
    rows = [{"negative": f"n{i}", "id": i, "positive": f"p{i}", "anchor": f"a{i}"} for i in range(4)]
    dataset = load_training_data(entry(write_rows(tmp_path / "x.csv", rows)), max_train_samples=3)
    assert dataset.column_names == ["anchor", "positive", "negative"]
    assert dataset[:] == {"anchor": ["a0", "a1", "a2"], "positive": ["p0", "p1", "p2"], "negative": ["n0", "n1", "n2"]}


@pytest.mark.parametrize(
    ("columns", "loss", "roles"),
    [
        (["query", "answer"], "mnrl", ["anchor", "positive"]),
        (["premise", "entailment", "contradiction"], "mnrl", ["anchor", "positive", "negative"]),
        (["premise", "hypothesis", "label"], "softmax", ["sentence1", "sentence2", "label"]),
        (["english", "non_english"], "distill", ["sentence", "translation"]),
        (["sentence"], "distill", ["sentence"]),
        (["text1", "text2", "similarity"], "cosent", ["sentence1", "sentence2", "score"]),
    ],
)
def test_columns_of_public_data_sets_are_known(columns, loss, roles):
    known = LOSSES[loss]
    assert map_columns("x", columns, known.columns, None, known.optional) == dict(zip(roles, columns, strict=True))


def test_columns_may_be_named(tmp_path, hub):
    path = write_rows(tmp_path / "x.jsonl", [{"q": "a", "d": "b", "anchor": "c"}, {"q": "d", "d": "e", "anchor": "f"}])
    dataset = load_training_data(entry(path, columns={"anchor": "q", "positive": "d"}))
    assert dataset[:] == {"anchor": ["a", "d"], "positive": ["b", "e"]}
    with pytest.raises(
        UsageError, match="'columns' names 'achor', but the loss reads anchor, positive, negative, label"
    ):
        load_training_data(entry(path, columns={"achor": "q", "positive": "d"}))
    with pytest.raises(RunError, match="no column 'x'; the columns are q, d, anchor"):
        load_training_data(entry(path, columns={"anchor": "x", "positive": "d"}))
    with pytest.raises(RunError, match="no column for 'positive'; the columns are q, d, anchor"):
        load_training_data(entry(path))
    with pytest.raises(RunError, match="no column for 'positive'"):
        load_training_data(entry(path, columns={"anchor": "q"}))


def test_two_roles_of_one_column(tmp_path, hub):
    path = write_rows(tmp_path / "x.jsonl", [{"q": "a", "d": "b"}, {"q": "c", "d": "d"}])
    with pytest.raises(UsageError, match="the column 'q' is used for more than one of anchor, positive"):
        load_training_data(entry(path, columns={"anchor": "q", "positive": "q"}))


def test_scores_are_brought_to_0_and_1(tmp_path, hub):
    path = write_rows(
        tmp_path / "x.csv", [{**row, "score": score} for row, score in zip(ROWS, (1, 5, 2, 3), strict=True)]
    )
    dataset = load_training_data(entry(path, "cosent", score_range=[1, 5]))
    assert dataset["score"][:] == [0.0, 1.0, 0.25, 0.5]
    with pytest.raises(RunError, match="row 2: the score 5 is outside 0..1; set 'score_range' for this data set"):
        load_training_data(entry(path, "cosent"))


def test_classes(tmp_path, hub):
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 2, 1)]
    dataset = load_training_data(entry(write_rows(tmp_path / "x.csv", rows), "softmax"))
    assert dataset["label"][:] == [0, 2, 1]
    for labels, message in (
        ((0, -1), "row 2: column 'label' must be a non-negative integer"),
        ((0, 0.5), "row 2: column 'label' must be a non-negative integer"),
        ((0, "entailment"), "row 2: column 'label' must be"),
        ((1, 1), "every label is 1"),
        ((0, True), "row 2: column 'label' must be"),
    ):
        rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in labels]
        with pytest.raises(RunError, match=message):
            load_training_data(entry(write_rows(tmp_path / "x.csv", rows), "softmax"))


def test_training_data_that_is_too_little_or_blank(tmp_path, hub):
    one = write_rows(tmp_path / "one.csv", [{"anchor": "a", "positive": "b"}])
    with pytest.raises(RunError, match="one usable row; training needs at least 2"):
        load_training_data(entry(one))
    blank = write_rows(tmp_path / "blank.csv", [{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": " "}])
    with pytest.raises(RunError, match="row 2: column 'positive' is empty"):
        load_training_data(entry(blank))
    numbers = write_rows(tmp_path / "n.jsonl", [{"anchor": 1, "positive": "b"}, {"anchor": 2, "positive": "b"}])
    with pytest.raises(RunError, match="column 'anchor' holds int64 instead of text"):
        load_training_data(entry(numbers))


# From the Hub


def test_data_sets_of_the_hub(hub, groups):
    dataset = load_training_data(entry("sentence-transformers/all-nli", name="triplet"), 5)
    assert dataset.column_names == ["anchor", "positive", "negative"]
    assert dataset["negative"][:] == [group["contradiction_en"] for group in groups[:5]]
    dev, test = load_dev_sets(["auto"], "en")
    assert list(dev) == ["sts-dev"] and list(test) == ["sts-test"]
    assert len(dev["sts-dev"]["score"]) == 40 and max(dev["sts-dev"]["score"]) == 1
    dev, test = load_dev_sets(["en", "ar"], "en")
    assert list(dev) == ["sts-en-dev", "sts-ar-dev"] and list(test) == ["sts-en-test"]
    dev, test = load_dev_sets(["en-ar"], "en")
    assert list(dev) == ["translations-en-ar-dev"] and test == {}
    assert dev["translations-en-ar-dev"]["target"] == [group["premise_ar"] for group in groups[252:292]]
    assert load_dev_sets(["none"], "en") == ({}, {})


def test_dev_sets_of_ones_own(hub, tmp_path):
    path = write_rows(tmp_path / "mine.csv", ROWS)
    dev, test = load_dev_sets([str(path)], "en")
    assert list(dev) == ["mine"] and test == {}
    parallel = [{"english": f"e{i}", "non_english": f"a{i}"} for i in range(3)]
    dev, test = load_dev_sets([str(write_rows(tmp_path / "parallel.csv", parallel)), str(path)], "en")
    assert dev["parallel"] == {"source": ["e0", "e1", "e2"], "target": ["a0", "a1", "a2"]} and test == {}
    assert list(dev) == ["parallel", "mine"]
    for names, message in (
        (["none", "en"], "'none' cannot be combined"),
        (["fr"], "'fr' is not a file"),
        ([], "--dev_data"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dev_sets(names, "en")


def test_two_dev_sets_of_one_name(hub, tmp_path):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "dev.csv", ROWS)
    for names in ([str(tmp_path / folder / "dev.csv") for folder in ("one", "other")], ["en", "auto"]):
        with pytest.raises(UsageError, match="two sets have the name '(sts-en-)?dev'"):
            load_dev_sets(names, "en")


def test_revisions(hub, tmp_path):
    path = write_rows(tmp_path / "x.csv", ROWS)
    assert dataset_revision(str(path), read_rows(path)) == hashlib.sha1(path.read_bytes()).hexdigest()
    dataset = load_hub_dataset("sentence-transformers/stsb", None, "validation")
    revision = dataset_revision("sentence-transformers/stsb", dataset)
    assert any(f"/stsb/resolve/{revision}/" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("path", "name", "split", "message"),
    [
        ("nobody/nothing", None, "train", "not found on the Hub, or private"),
        ("sentence-transformers/all-nli", "triplets", "train", "triplet"),
        ("sentence-transformers/all-nli", None, "train", "triplet"),
        ("sentence-transformers/all-nli", "triplet", "validation", "validation"),
        ("not a name", None, "train", "not a name"),
    ],
)
def test_data_sets_that_are_not_there(hub, path, name, split, message):
    with pytest.raises(RunError) as error:
        load_hub_dataset(path, name, split)
    assert message in str(error.value) and path in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_are_finite():
    from common.data_files import finite_number

    assert finite_number("x", 1, "score", "3.5") == 3.5
    for value in (math.nan, math.inf, True, None, "x", [1], 10**400):
        with pytest.raises(RunError, match="x, row 1: column 'score' must be a finite number"):
            finite_number("x", 1, "score", value)


# Formats


def test_two_headlines_that_share_a_quotation_are_two_rows(tmp_path, hub):
    path = tmp_path / "x.tsv"
    path.write_text('sentence1\tsentence2\tscore\na\t"opens\t1\nb\tc\t2\nd\tcloses"\t3\n')
    assert read_pairs(path)["default"]["sentence2"] == ['"opens', "c", 'closes"']


@pytest.mark.parametrize(
    ("header", "reason"), [('"a"\t"b"', "the header is quoted"), ("a\tb", "every field of a is quoted")]
)
def test_a_tsv_file_that_is_plainly_quoted_is_read_as_that_and_said_so(tmp_path, hub, caplog, header, reason):
    path = tmp_path / "x.tsv"
    path.write_text(f'{header}\n"one ""word"""\tx\n"two"\ty\n')
    with caplog.at_level("INFO"):
        assert read_rows(path)[:] == {"a": ['one "word"', "two"], "b": ["x", "y"]}
    assert caplog.messages == [f"{path} is read as a quoted TSV file, because {reason}"]


def test_a_quoted_tsv_file_may_hold_tabs_and_line_ends(tmp_path, hub):
    path = tmp_path / "x.tsv"
    path.write_text('"a"\t"b"\n"one\ttab"\t"two\nlines"\n')
    assert read_rows(path)[:] == {"a": ["one\ttab"], "b": ["two\nlines"]}


def test_a_tsv_line_with_other_fields_is_named(tmp_path, hub):
    path = tmp_path / "x.tsv"
    path.write_text('a\tb\n"x\ty"\tz\n')
    with pytest.raises(RunError, match="line 2: 3 fields, but the header has 2"):
        read_rows(path)


def as_shards(folder, suffix):
    folder.mkdir()
    write_rows(folder / f"part-1{suffix}", TSV_ROWS[:2])
    write_rows(folder / f"part-2{suffix}", TSV_ROWS[2:])
    (folder / "README.md").write_text("no data")
    return folder


def write_format(folder, kind):
    if kind == ".json.gz":
        (folder / "x.json.gz").write_bytes(gzip.compress(json.dumps(TSV_ROWS).encode()))
        return folder / "x.json.gz"
    if kind.endswith(".gz"):
        plain = write_rows(folder / f"x{kind.removesuffix('.gz')}", TSV_ROWS)
        path = folder / f"x{kind}"
        path.write_bytes(gzip.compress(plain.read_bytes()))
        return path
    if kind == "json array":
        (folder / "x.json").write_text("\n " + json.dumps(TSV_ROWS, indent=1))
        return folder / "x.json"
    if kind == "json lines":
        return write_rows(folder / "x.jsonl", TSV_ROWS).rename(folder / "x.json")
    if kind == "folder":
        return as_shards(folder / "shards", ".parquet")
    if kind == "glob":
        as_shards(folder / "shards", ".csv")
        write_rows(folder / "shards/other.jsonl", ROWS)
        return folder / "shards/part-*.csv"
    from datasets import Dataset, DatasetDict

    saved = Dataset.from_list(TSV_ROWS)
    (saved if kind == "save_to_disk" else DatasetDict({"train": saved})).save_to_disk(folder / "saved")
    return folder / "saved"


KINDS = [
    ".csv.gz",
    ".tsv.gz",
    ".jsonl.gz",
    ".json.gz",
    "json array",
    "json lines",
    "folder",
    "glob",
    "save_to_disk",
    "dict",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_rows_to_training_dev_sets_and_evaluation(tmp_path, hub, kind):
    path = write_format(tmp_path, kind)
    wanted = {key: [row[key] for row in TSV_ROWS] for key in TSV_ROWS[0]}
    assert read_pairs(path) == {"default": wanted}
    assert load_training_data(entry(path, "cosent"))[:] == wanted
    [(name, pairs)] = load_dev_sets([str(path)], "en")[0].items()
    assert pairs == wanted and name == {
        "folder": "shards",
        "glob": "shards",
        "save_to_disk": "saved",
        "dict": "saved",
    }.get(kind, "x")
    before = dataset_revision(str(path), read_rows(path))
    assert before == file_hash(str(path)) and len(before) == 40


def test_the_hash_of_shards_depends_on_each(tmp_path, hub):
    folder = as_shards(tmp_path / "shards", ".csv")
    before = file_hash(str(folder)), file_hash(f"{folder}/*.csv")
    write_rows(folder / "part-2.csv", ROWS[:1])
    after = file_hash(str(folder)), file_hash(f"{folder}/*.csv")
    assert None not in (*before, *after) and not set(before) & set(after)


def test_files_that_cannot_be_read_together(tmp_path, hub):
    mixed, splits, other, empty = (tmp_path / name for name in ("mixed", "splits", "other", "empty"))
    for folder in (mixed, splits, other, empty):
        folder.mkdir()
    write_rows(mixed / "a.csv", ROWS), write_rows(mixed / "b.jsonl", ROWS)
    write_rows(splits / "train-1.csv", ROWS), write_rows(splits / "test-1.csv", ROWS)
    write_rows(other / "a.csv", ROWS), write_rows(other / "b.csv", [{"x": 1}])
    (tmp_path / "x.csv.zip").write_bytes(b"PK")
    (tmp_path / "bad.csv.gz").write_bytes(b"not gzip")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 100)[:-9])
    (tmp_path / "object.json").write_text('{"rows": 1,\n "more": 2}')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/state.json").write_text("{}")
    for error, name, message in (
        (UsageError, "mixed", "files of several formats, .csv, .jsonl"),
        (
            UsageError,
            "splits",
            r"files of several splits, test, train \(test-1.csv, train-1.csv\): select .* with a glob, such as '.*/splits/train\*'",
        ),
        (UsageError, "empty", "no file in a supported format: use .csv, .tsv, .json, .jsonl .* save_to_disk"),
        (UsageError, "none-*.csv", "no file matches"),
        (UsageError, "x.csv.zip", r"not a supported format: use .csv, .tsv, .json, .jsonl \(also gzipped"),
        (RunError, "other", "b.csv: the file has none of the columns of a.csv, which are sentence1, sentence2, score"),
        (RunError, "bad.csv.gz", "not a readable gzip file"),
        (RunError, "cut.csv.gz", "not a readable gzip file"),
        (RunError, "object.json", "the file holds a single object: it must hold a list of objects"),
        (RunError, "numbers.json", "row 1: must be a JSON object"),
        (RunError, "broken", "not a readable save_to_disk folder"),
    ):
        with pytest.raises(error, match=message) as raised:
            read_rows(tmp_path / name)
        assert type(raised.value) is error and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (("train", "val"), "train*"),
        (("train-1", "valid-1"), "train*"),
        (("nli_train", "nli_test"), "nli_train*"),
        (("Train", "Test"), "Train*"),
        (("NLITest", "NLITrain"), "NLITrain*"),
        (("dev", "eval"), "dev*"),
        (("trainset", "testset"), "trainset*"),
        (("training01", "validation01"), "training*"),
        (("en.train", "en.development"), "en.train*"),
        (("test-questions-train", "test-questions-test"), "test-questions-train*"),
        (("train/0", "test/0"), "train*/*"),
    ],
)
def test_a_folder_or_glob_with_files_of_several_splits_is_refused(tmp_path, hub, names, example):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_rows(tmp_path / f"{name}.csv", ROWS)
    for path in (tmp_path, tmp_path / "*.csv") if "/" not in names[0] else (tmp_path / "**/*.csv",):
        with pytest.raises(UsageError, match="files of several splits") as error:
            read_rows(path)
        assert str(error.value).endswith(f"such as '{tmp_path}/{example}'")
        assert all(f"{name}.csv" in str(error.value) for name in names)


@pytest.mark.parametrize(
    "names",
    [("train-1", "train-2"), ("train", "training_2"), ("train-en", "extra"), ("valid", "val"), ("contest", "trained"), ("a/train", "b/train")],
)  # fmt: skip
def test_files_of_one_split_are_read_together(tmp_path, hub, names):
    folder = tmp_path / "test"  # the name of the folder that the user asks for says nothing about the files in it
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        write_rows(folder / f"{name}.csv", ROWS)
    assert len(read_rows(folder / "**/*.csv")) == 2 * len(ROWS)


def test_a_folder_of_several_saved_splits_asks_which(tmp_path, hub):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(TSV_ROWS)
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match="splits test, train: use one of them, such as .*/saved/train"):
        read_rows(tmp_path / "saved")
    assert len(read_rows(tmp_path / "saved/test")) == 4


def test_shards_may_hold_integers_or_decimals_and_different_numbers_of_negatives(tmp_path, hub):
    (tmp_path / "a.jsonl").write_text('{"anchor": "a", "negative_1": "x", "score": 4}\n')
    (tmp_path / "b.jsonl").write_text('{"anchor": "b", "negative_1": "y", "negative_2": "z", "score": 4.5}\n')
    rows = read_rows(tmp_path)
    assert rows["score"][:] == [4.0, 4.5] and rows["negative_2"][:] == [None, "z"]


def test_rows_and_shards_may_lack_keys(tmp_path, hub, caplog):
    (tmp_path / "a.jsonl").write_text('{"anchor": "a", "id": 1}\n{"anchor": "b", "neg": ["x"]}\n')
    (tmp_path / "b.jsonl").write_text('{"anchor": "c"}\n')
    with caplog.at_level("INFO"):
        rows = read_rows(tmp_path)
    assert rows[:] == {"anchor": ["a", "b", "c"], "id": [1, None, None], "neg": [None, ["x"], None]}
    assert "not every row has a value for 'id' (1 of 2 rows), 'neg' (1 of 2 rows)" in caplog.text
    assert "the column 'neg' is not in all of the files, so it has no value in the rows of b.jsonl" in caplog.text


def test_nan_is_a_missing_text_and_a_number_elsewhere(tmp_path, hub):
    """pandas writes NaN where a text is missing."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "x", "b": ["y"], "c": NaN}\n{"a": NaN, "b": NaN, "c": 1}\n')
    rows = read_rows(path)
    assert rows["a"][:] == ["x", None] and rows["b"][:] == [["y"], None] and math.isnan(rows["c"][0])


def test_spaces_after_a_comma_are_not_part_of_a_field(tmp_path, hub):
    path = tmp_path / "x.csv"
    path.write_text('a, b\n"x, y", "z, ""w"" "\nv,  "u"\n s , t\n')
    assert read_rows(path)[:] == {"a": ["x, y", "v", "s "], "b": ['z, "w" ', "u", "t"]}


def test_names_of_columns_may_have_invisible_marks(tmp_path, hub):
    columns = ["\ufeffAnchor", "positive\u200f", "\u200bneg_1 "]
    dataset = load_training_data(entry(write_rows(tmp_path / "x.jsonl", [dict(zip(columns, "abc", strict=True))] * 2)))
    assert dataset[0] == {"anchor": "a", "positive": "b", "negative": "c"}
    path = write_rows(tmp_path / "y.jsonl", [{"\u200fq": "a", "": "b"}])
    with pytest.raises(RunError, match=r"no column for 'anchor'; the columns are '\\u200fq', ''; map"):
        load_training_data(entry(path))


def test_invisible_marks_around_a_column_name_are_removed(tmp_path, hub):
    path = tmp_path / "x.csv"
    path.write_text("\u200fanchor\u200b, positive\u00a0\na,b\n")
    assert read_rows(path).column_names == ["anchor", "positive"]


def test_long_types_and_values_are_cut(tmp_path, hub):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"anchor": {str(i): "a" for i in range(3000)}, "positive": "b"}) + "\n")
    with pytest.raises(RunError, match="column 'anchor' holds struct<0: string, .*… instead of text") as error:
        load_training_data(entry(path))
    assert len(str(error.value)) < len(str(path)) + 150


@pytest.mark.parametrize("name", ["[en]", "a*b"])
def test_a_glob_in_a_folder_whose_name_has_wildcards(tmp_path, hub, name):
    as_shards(tmp_path / name, ".csv")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/part-1.csv").write_text("of,another,folder\n1,2,3\n")
    path = tmp_path / name / "part-*.csv"
    assert len(read_rows(path)) == len(ROWS) and table_name(path) == name
