"""The per-sample table: what it refuses, and that its file gives it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tomosec.errors import InputError
from tomosec.metrics.table import Row, SampleTable

ROW = Row(0, "clean", "clean", "P1/3", "P1", 1, 0, (0.75, 0.25))
HEADER = "seed,model,input,sample,patient,target,prediction,score_0,score_1"


def table(*changes: dict[str, object]) -> SampleTable:
    return SampleTable.from_rows([replace(ROW, **change) for change in changes])  # type: ignore[arg-type]


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    names = draw(st.lists(texts, unique=True, max_size=5))
    out = []
    for name in names:
        first = draw(st.floats(0, 1))
        fields = (draw(st.integers(-(2**40), 2**40)), draw(texts), draw(texts), name, draw(texts), draw(st.integers(0, 1)))
        out.append(Row(*fields, draw(st.integers(0, 1)), (first, 1 - first)))
    return out


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows())
def test_file_gives_back_the_table(rows: list[Row], tmp_path: Path) -> None:
    before, path = SampleTable.from_rows(rows, classes=2), tmp_path / "samples.csv"
    before.write(path)
    after = SampleTable.read(path)
    assert list(before.rows()) == list(after.rows()) == rows
    assert after.classes == 2
    first = path.read_bytes()
    after.write(path)
    assert path.read_bytes() == first
    assert [item.name for item in tmp_path.iterdir()] == ["samples.csv"]


def test_file_is_plain(tmp_path: Path) -> None:
    table({}).write(tmp_path / "new" / "samples.csv")
    assert (tmp_path / "new" / "samples.csv").read_text() == f"{HEADER}\n0,clean,clean,P1/3,P1,1,0,0.75,0.25\n"


def test_line_breaks_in_names_survive(tmp_path: Path) -> None:
    before = table({"sample": "a\rb"}, {"sample": "a\nb"}, {"sample": 'a",b'})
    before.write(tmp_path / "samples.csv")
    assert list(SampleTable.read(tmp_path / "samples.csv").rows()) == list(before.rows())


def test_names_of_undecodable_files_survive(tmp_path: Path) -> None:
    table({"sample": "caf\udce9"}).write(tmp_path / "samples.csv")
    assert SampleTable.read(tmp_path / "samples.csv").sample[0] == "caf\udce9"


GOOD = "0,clean,clean,P1/3,P1,1,0,0.75,0.25"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: column 1 is '', expected 'seed'"),
        (f"{HEADER.replace('patient', 'patients')}\n", r"line 1: column 5 is 'patients', expected 'patient' \(did you mean"),
        (f"{HEADER.replace('score_1', 'score_2')}\n", r"column 9 is 'score_2', expected 'score_1'"),
        ("seed,model,input,sample,patient,target,prediction\n", r"column 8 is '', expected 'score_0'"),
        (f"{HEADER}\n{GOOD}\n0,clean\n", r"line 3: 2 columns, expected 9"),
        (f"{HEADER}\n\n{GOOD}\n", r"line 2: 0 columns, expected 9"),
        (f"{HEADER}\nx,clean,clean,a,P1,1,0,1,0\n", r"line 2, column seed: 'x' is not an integer"),
        (f"{HEADER}\n99999999999999999999,clean,clean,a,P1,1,0,1,0\n", r"line 2, column seed"),
        (f"{HEADER}\n0,clean,clean,a,P1,1.0,0,1,0\n", r"line 2, column target: '1.0' is not an integer"),
        (f"{HEADER}\n0,clean,clean,a,P1,2,0,1,0\n", r"line 2, column target: 2 is not in 0 to 1"),
        (f"{HEADER}\n0,clean,clean,a,P1,1,-1,1,0\n", r"line 2, column prediction: -1 is not in 0 to 1"),
        (f"{HEADER}\n0,clean,,a,P1,1,0,1,0\n", r"line 2, column input: empty"),
        (f"{HEADER}\n{GOOD}\n0,clean,clean,a,P1,1,0,nan,0\n", r"line 3, column score_0: 'nan' is not a number in \[0, 1\]"),
        (f"{HEADER}\n0,clean,clean,a,P1,1,0,0.5,high\n", r"line 2, column score_1: 'high'"),
        (f"{HEADER}\n0,clean,clean,a,P1,1,0,1,inf\n", r"line 2, column score_1: 'inf'"),
        (f"{HEADER}\n0,clean,clean,a,P1,1,0,0.5,0.2\n", r"do not sum to 1"),
        (f"{HEADER}\n{GOOD}\n{GOOD}\n", r"row 1: sample 'P1/3' is listed twice for seed 0, model 'clean', input 'clean'"),
        (f'{HEADER}\n0,clean,clean,"a,P1,1,0,1,0\n', r"line 2: not CSV"),
    ],
)
def test_malformed_files_are_named_by_line_and_column(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        SampleTable.read(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        SampleTable.read(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"scores": (float("nan"), 0.5)}], "row 0: scores .* not all finite"),
        ([{"scores": (1.2, -0.2)}], r"in \[0, 1\]"),
        ([{"scores": (0.2, 0.2)}], "sum to 1"),
        ([{}, {"sample": "b", "scores": (1.0,)}], "row 1: 1 scores, expected 2"),
        ([{"target": 2}], "target 2 is not in 0 to 1"),
        ([{"prediction": -1}], "prediction -1"),
        ([{"patient": ""}], "patient is empty"),
        ([{}, {}], "listed twice"),
        ([{}, {"input": "triggered", "patient": "P2"}], "has patient 'P2' and target 1, elsewhere 'P1' and 1"),
        ([{}, {"input": "triggered", "target": 0}], "elsewhere 'P1' and 1"),
        ([], "number of classes is not given"),
    ],
)
def test_bad_rows_are_refused(changes: list[dict[str, object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        table(*changes)


def test_predictions_of_one_condition() -> None:
    made = SampleTable.from_predictions(
        seed=3,
        model="attacked",
        input="triggered",
        samples=["a", "b"],
        patients=["P", "P"],
        targets=[1, 0],
        scores=np.array([[0.5, 0.5], [0.1, 0.9]], np.float32),
    )
    assert made.prediction.tolist() == [0, 1]
    with pytest.raises(InputError, match="scores of shape"):
        SampleTable.from_predictions(seed=3, model="m", input="i", samples=["a"], patients=["P"], targets=[1], scores=[0.5])
    with pytest.raises(InputError, match="patient of shape"):
        SampleTable.from_predictions(seed=3, model="m", input="i", samples=["a"], patients=[], targets=[1], scores=[[0.5, 0.5]])


def test_selection_and_joining() -> None:
    whole = SampleTable.concat([table({}, {"input": "triggered"}), table({"seed": 1}), table({"model": "attacked"})])
    assert len(whole) == 4
    assert whole.seeds() == (0, 1)
    assert len(whole.select(model="clean", input="clean")) == 2
    assert len(whole.select(seed=1)) == 1
    assert len(whole.select(model="none")) == 0
    with pytest.raises(InputError, match="cannot be joined"):
        SampleTable.concat([whole, table({"scores": (0.2, 0.3, 0.5)})])
    with pytest.raises(InputError, match="listed twice"):
        SampleTable.concat([whole, table({})])


def test_columns_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        table({}).scores[0, 0] = 1.0
