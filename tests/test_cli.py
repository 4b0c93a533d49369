"""The command line: right exit codes, no traceback, no torch where none is needed, any terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tomosec import cli
from tomosec.cli import main
from tomosec.cli.browsing import KINDS, state
from tomosec.cli.console import ago
from tomosec.cli.running import resolve_ids
from tomosec.component import FAMILIES, components
from tomosec.errors import InputError, NotApplicable, TomosecError
from tomosec.experiment import recipe_folder
from tomosec.metrics.statistics import Estimate, SeedSummary
from tomosec.record import Condition, DataSummary, DefenseResult, Provenance, Record, SeedResult, Severity, Store, Strength, now

TINY: dict[str, Any] = {
    "experiment": {
        "title": "Tiny",
        "data": {"kind": "chest-phantom", "patients": 12, "slices_per_patient": 2, "size": 96, "pixel_mm": 4.0},
        "split": {"kind": "by-patient", "validation": 0.2, "test": 0.3},
        "geometry": {
            "kind": "fan-beam", "views": 48, "bins": 40, "bin_mm": 32.0, "shape": [32, 32], "pixel_mm": 14.0,
            "source_to_isocenter_mm": 1000.0, "source_to_detector_mm": 2000.0,
        },
        "acquisition": {"kind": "simulated", "dose": "ideal"},
        "reconstruction": "fbp",
        "network": "small-cnn",
        "training": {"epochs": 1, "batch_size": 8},
        "attack": "ltgm",
        "controls": ["random-trigger"],
        "seeds": 1,
    },
    "presets": {"clean": {"attack": None, "controls": []}},
}  # fmt: skip


def share(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.1, high=min(1.0, value + 0.1), n=40, patients=20, method="wilson")


def record(identity: str = "a" * 16, **fields: object) -> Record:
    """A finished run that nobody ran."""
    start = now() - timedelta(hours=3)
    conditions = (
        Condition(model="clean", input="clean", metrics={"accuracy": share(0.9)}),
        Condition(model="attacked", input="clean", metrics={"accuracy": share(0.88)}),
        Condition(model="attacked", input="triggered", metrics={"asr": share(0.97)}),
        Condition(model="clean", input="triggered", metrics={"asr": share(0.15)}),
    )
    seed = SeedResult(seed=0, conditions=conditions, strength=Strength(unit="hu", budget=10, strength=0.01, rmse_hu=9.98))
    base: dict[str, object] = {
        "id": identity, "title": "A [bold]title[/bold]", "status": "success", "experiment": {"attack": {"kind": "ltgm"}},
        "provenance": Provenance(tomosec="0"), "started": start, "heartbeat": start, "finished": start, "seeds": (seed,),
        "severity": Severity(level="high", reason="because"),
        "data": DataSummary(
            dataset="chest-phantom", manifest="m", classes=("normal", "disease"), slices={"test": {"normal": 20, "disease": 20}},
            patients={"test": {"normal": 10, "disease": 10}}, split="Split by patient.", shares_patients=False,
        ),
    }  # fmt: skip
    return Record.model_validate(base | fields)


def with_failed_defense() -> Record:
    """A run whose attack was measured and one of whose defenses failed."""
    whole = record("c" * 16)
    failed = DefenseResult(name="anp", kind="anp", role="repair", failed="ZeroDivisionError: division by zero (anp.py, line 1)")
    return whole.model_copy(update={"seeds": (whole.seeds[0].model_copy(update={"defenses": (failed,)}),)})


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A width of its own: pytest may have inherited, or set, another."""
    monkeypatch.setenv("COLUMNS", "150")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one finished run."""
    store = Store(tmp_path / "runs", create=True)
    store.write(record())
    return store.root


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe that runs in seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def in_terminal(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does; stdin is not a terminal."""
    env = {
        key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "LC_ALL", "PYTHONUTF8")
    } | environment
    command = [sys.executable, "-m", "tomosec", *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, check=False, errors="replace"
    )


def shown(text: str) -> str:
    return " ".join(text.split())


# --- help, version, mistakes --------------------------------------------------------------------------------------------


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in [*cli.VERBS, "check", "--version"])


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "subcommands" in capsys.readouterr().out


@pytest.mark.parametrize("args", [[verb] for verb in cli.VERBS] + [["check", check] for check in cli.CHECKS])
def test_every_verb_explains_itself(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*args, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: tomosec {' '.join(args)}")
    # Every option says what it does: nothing but the default in parentheses would mean an undocumented field.
    assert not re.search(r"│ (--)?[\w-]+( [A-Z.=]+)? +\((default|required)", out)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert re.fullmatch(r"tomosec \d+\.\d+.*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rnu"], "no verb 'rnu' (did you mean 'run'?)"),
        (["check", "dos"], "no verb 'dos' (did you mean 'dose'?)"),
        (["run", "demo", "--dta", "x"], "--data"),
        (["run"], "FILE"),
        (["check"], "env, data, dose, operators"),
        (["sweep", "demo", "--executor", "ray"], "'inline', 'processes'"),
        (["sweep", "demo", "--workers", "many"], "many"),
        (["sweep", "demo", "--workers", "2"], "only with --executor processes"),
        (["sweep", "demo", "--executor", "processes", "--workers", "0"], "one or more"),
        (["list", "atacks"], "no kind 'atacks' (did you mean 'attacks'?)"),
        (["run", "demmo"], "demmo: no such file or bundled recipe (did you mean 'demo'?)"),
        (["run", "nowhere/x.yaml"], "nowhere/x.yaml: no such file"),
        (["run", "demo", "--preset", "nope"], "no preset 'nope'"),
        (["run", "demo", "--set", "training.epoch=3"], "did you mean 'epochs'"),
        (["run", "demo", "--set", "oops"], "expected field=value"),
        (["run", "demo", "--set", "attack.kind=os.system"], "no attack of kind 'os.system'"),
        (["status", "nowhere"], "nowhere: no runs here"),
        (["report", "nowhere"], "nowhere: no runs here"),
        (["rescore", "nowhere"], "nowhere: no runs here"),
        (["check", "data", "nowhere"], "nowhere: no such file or folder"),
        (["check", "dose", "nowhere"], "no such file or bundled recipe"),
        (["check", "dose", "--draws", "1"], "2 or more"),
        (["check", "dose", "--set", "acquisition.kind=realstic"], "did you mean 'realistic'"),
    ],
)
def test_bad_input_is_2_and_says_what_is_wrong(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    said = capsys.readouterr()
    assert message in shown(said.err.replace("│", " "))
    assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir()), "bad input leaves nothing behind"


def test_the_doses_of_a_realistic_scanner_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["acquisition.kind=realistic", "acquisition.dose=35.0", "geometry.views=60"]
    assert main(["check", "dose", *(word for change in changes for word in ("--set", change))]) == 0
    said = shown(capsys.readouterr().out)
    for dose in ("ideal 0 ", "standard 25 ", "low 50 ", "ultra-low 100 ", "35.0 35 "):
        assert dose in said


def test_an_output_folder_of_something_else_is_left_alone(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny), "--out", str(tiny.parent)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.yaml"]


# --- what goes wrong underneath -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("field x"), 2, "tomosec: field x"),
        (TomosecError("disk full"), 1, "tomosec: disk full"),
        (NotApplicable("needs y"), 1, "tomosec: needs y"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (BrokenPipeError(), 141, ""),
        (RuntimeError("[red]odd[/red]"), 1, "RuntimeError: [red]odd[/red]"),
        (MemoryError(), 1, "MemoryError"),
        (RecursionError("deep"), 1, "RecursionError: deep"),
        (OSError(5, "Input/output error"), 1, "Input/output error"),
    ],
)
def test_no_exception_becomes_a_traceback(
    error: BaseException,
    code: int,
    message: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(self: object) -> int:
        raise error

    monkeypatch.setattr("tomosec.cli.browsing.Status.run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["status", str(runs)]) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err + said.out
    kept = list(tmp_path.glob("tomosec-error-*.txt"))
    unexpected = not isinstance(error, TomosecError | KeyboardInterrupt | BrokenPipeError)
    assert len(kept) == unexpected
    if unexpected:
        assert str(kept[0]) in said.err.replace("\n", "")
        assert "Traceback" in kept[0].read_text()


def test_ctrl_c_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(self: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tomosec.cli.running.Run.run", interrupt)
    assert main(["run", "demo"]) == 130
    assert "What is complete is kept in the output folder; the same command continues from there." in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_real_ctrl_c_and_then_the_same_command(tiny: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tomosec",
        "run",
        str(tiny),
        "--out",
        str(tiny.parent / "runs"),
        "--set",
        "training.epochs=3000",
    ]
    # A shell starts background jobs with SIGINT ignored, and children inherit that: tests may run in such a job.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "Training the clean model" in line:
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, said + rest
    assert "continues from there" in rest
    assert "Traceback" not in said + rest
    assert main(["status", str(tiny.parent / "runs")]) == 0


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
def test_a_reader_that_leaves_is_no_error(runs: Path) -> None:
    command = f"{sys.executable} -m tomosec list attacks | head -c 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.returncode in (0, 141)


# --- no torch, any terminal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["list", "recipes"], ["status", "RUNS"], ["report", "RUNS", "-o", "OUT"]]
)
def test_looking_loads_no_torch(args: list[str], runs: Path, tmp_path: Path) -> None:
    args = [{"RUNS": str(runs), "OUT": str(tmp_path / "r.html")}.get(arg, arg) for arg in args]
    code = f"import sys; from tomosec.cli import main; code = main({args!r}); sys.exit(code or 10 * ('torch' in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, "torch was imported" if ended.returncode == 10 else ended.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"COLUMNS": "20"},
        {"COLUMNS": "1"},
        {"NO_COLOR": "1", "TERM": "dumb"},
        {"TERM": "xterm-256color", "FORCE_COLOR": "1"},
    ],
    ids=lambda value: ",".join(f"{key}={item}" for key, item in value.items()),
)
def test_any_terminal_will_do(environment: dict[str, str], runs: Path) -> None:
    Store(runs).write(record("b" * 16, title="Ünïcode → 患者", status="error", error="µ × 3"))
    for args, code in ((["--help"], 0), (["status", str(runs)], 0), (["list", "recipes"], 0), (["run", "→"], 2)):
        ended = in_terminal(*args, **environment)
        assert ended.returncode == code, (args, ended.stderr)
        assert "Traceback" not in ended.stderr


def test_no_color_in_a_pipe(runs: Path) -> None:
    assert "\x1b" not in in_terminal("status", str(runs)).stdout


def test_a_narrow_terminal_gets_a_list(runs: Path) -> None:
    lines = in_terminal("status", str(runs), COLUMNS="30").stdout.splitlines()
    assert "a" * 16 in lines
    assert "  ASR: 0.97" in [line.rstrip() for line in lines]


# --- status, report, list -----------------------------------------------------------------------------------------------


def test_status_shows_state_age_and_headline(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(runs)
    store.write(record("b" * 16, status="started", heartbeat=now(), finished=None, seeds=()))
    store.write(record("c" * 16, status="started", heartbeat=now() - timedelta(hours=2), finished=None, seeds=()))
    store.write(record("d" * 16, status="error", error="out of memory\nmore", seeds=()))
    store.write(record("e" * 16, status="error", error="interrupted; run it again", seeds=()))
    assert main(["status", str(runs)]) == 0
    lines = {line.split()[0]: shown(line) for line in capsys.readouterr().out.splitlines() if re.match(r"[a-e]{16}", line)}
    assert "success 3 h 0.88 0.97" in lines["a" * 16]
    assert "[bold]title[/bold]" in lines["a" * 16]
    assert "running" in lines["b" * 16]
    assert "stale" in lines["c" * 16]
    assert "error 3 h out of memory" in lines["d" * 16]
    assert "interrupted 3 h" in lines["e" * 16]


def test_status_shows_what_it_can_and_names_what_is_damaged(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "torn").mkdir()
    (runs / "torn/record.json").write_text("{")
    assert main(["status", str(runs)]) == 1
    said = capsys.readouterr()
    assert "a" * 16 in said.out
    assert "torn/record.json: not a readable record" in said.err


def test_status_of_an_empty_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path / "runs", create=True)
    assert main(["status", str(tmp_path / "runs")]) == 0
    assert "no runs yet" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "runs")]) == 2
    assert main(["rescore", str(tmp_path / "runs")]) == 2


def test_state_of_a_long_silence() -> None:
    assert state(record(status="started", heartbeat=now())) == "running"
    assert state(record(status="not-applicable")) == "not-applicable"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_age(seconds: int, text: str) -> None:
    assert ago(timedelta(seconds=seconds)) == text


def test_report_writes_the_file_it_is_told(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs), "-o", str(tmp_path / "new/r.html"), "--id", "aaa"]) == 0
    assert "<html" in (tmp_path / "new/r.html").read_text(encoding="utf-8")
    assert "example slices" in capsys.readouterr().out
    assert main(["report", str(runs), "-o", str(tmp_path)]) == 2
    assert main(["report", str(runs), "--id", "zzz"]) == 2


def test_ids_may_be_abbreviated() -> None:
    known = ["abc1", "abd2"]
    assert resolve_ids(known, (), Path("runs")) == known
    assert resolve_ids(known, ("abd", "abc1"), Path("runs")) == ["abd2", "abc1"]
    with pytest.raises(InputError, match="2 runs of runs begin with it"):
        resolve_ids(known, ("ab",), Path("runs"))
    with pytest.raises(InputError, match="no run of runs begin"):
        resolve_ids(known, ("x",), Path("runs"))


def test_list_covers_every_family() -> None:
    assert set(KINDS.values()) - {""} == set(FAMILIES)


@pytest.mark.parametrize("kind", KINDS)
def test_list_shows_every_kind(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    assert capsys.readouterr().out.strip()


def test_list_says_what_an_attack_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")
    assert main(["list", "attack"]) == 0  # the singular is understood
    out = shown(capsys.readouterr().out)
    assert "Yang et al., MICCAI 2024" in out
    assert "differentiable-reconstruction, geometry, raw-sinogram, training-data, weights" in out


def test_list_shows_source_and_domain_of_every_attack(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "600")  # one line an attack
    main(["list", "attacks"])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["attack", "domain", "what", "source", "needs"]
    attacks = components("attack")
    assert [line.split()[0] for line in lines] == list(attacks)
    assert len(lines) >= 30
    for line, cls in zip(lines, attacks.values(), strict=True):
        assert line.split()[1] == cls.domain in ("image", "measurement")
        assert cls.source
        assert line[header.index("source") :].startswith(cls.source)


def test_list_has_no_column_that_is_empty(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")
    main(["list", "splits"])
    assert "domain" not in capsys.readouterr().out.splitlines()[0]


def test_list_recipes_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "recipes"])
    out = capsys.readouterr().out
    assert all(path.stem in out for path in recipe_folder().glob("*.yaml"))


# --- check --------------------------------------------------------------------------------------------------------------


def test_check_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "env"]) == 0
    out = capsys.readouterr().out
    assert "JPEG lossless" in out
    assert "torch" in out


def test_check_env_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tomosec.cli.checking.REQUIRED", ("torch", "surely-not-installed"))
    assert main(["check", "env"]) == 1
    assert "Missing, and needed by everything: surely-not-installed" in capsys.readouterr().out


def test_check_data_groups_findings_and_fails_on_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    rows = ["file,patient,target,spacing_mm"]
    for number in range(4):
        image = np.full((64, 64), -1000, dtype=np.float32)
        if number:  # the first image is empty
            image[16:48, 16:48] = 40 + number
        np.save(tmp_path / f"{number}.npy", image)
        rows.append(f"{number}.npy,P{number},{'a' if number % 2 else 'b'},4.0")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    assert main(["check", "data", str(tmp_path)]) == 2
    out = shown(capsys.readouterr().out)
    assert "errors: 1" in out
    assert "warnings:" in out
    assert "empty" in out
    np.save(tmp_path / "0.npy", np.where(np.hypot(*np.mgrid[-32:32, -32:32]) < 20, 33.0, -1000.0).astype(np.float32))
    assert main(["check", "data", str(tmp_path), "--all-slices"]) == 0


def test_check_data_as_a_recipe_reads_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path) -> None:
    assert main(["check", "data", str(tmp_path), "--recipe", str(tiny)]) == 0  # the phantom needs no folder
    out = shown(capsys.readouterr().out)
    assert "train slices" in out
    assert "Split by patient" in out


# --- results ------------------------------------------------------------------------------------------------------------


def test_results_say_on_which_data_split_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    from tomosec.cli.results import show_records

    show_records([record()])
    out = shown(capsys.readouterr().out)
    assert "Attack success, attacked model 0.970 [0.870, 1.000] 40 slices of 20 patients" in out
    assert "floor: clean model, same trigger 0.150" in out
    assert "Data: chest-phantom, test slices: 20 normal of 10 patients, 20 disease of 10 patients. Split by patient." in out
    assert "Seeds: 0. Only one" in out
    assert "Severity: high. Because." in out


def test_several_seeds_are_a_mean_and_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    from tomosec.cli.results import show_records

    one = record()
    both = (one.seeds[0], one.seeds[0].model_copy(update={"seed": 1}))
    summary = {"attacked/triggered/asr": SeedSummary(values={0: 0.9, 1: 1.0}, mean=0.95, low=0.9, high=1.0)}
    show_records([record(seeds=both, summary=summary)])
    out = shown(capsys.readouterr().out)
    assert "0.950 (0.900 to 1.000) 40 slices of 20 patients, 2 seeds" in out
    assert "Seeds: 0, 1." in out
    assert "Only one" not in out


def test_a_sweep_is_one_table_of_what_varies(capsys: pytest.CaptureFixture[str]) -> None:
    from tomosec.cli.results import show_records

    experiments = [{"title": f"t{i}", "threat": {"budget": {"value": i}}, "seeds": [0]} for i in (2, 5, 10, 20)]
    records = [record(f"{i:016x}", experiment=experiment) for i, experiment in enumerate(experiments)]
    show_records(records)
    out = shown(capsys.readouterr().out)
    assert "id threat.budget.value CA ASR floor" in out
    assert f"{3:016x} 20 0.88 0.97 0.15" in out


def test_a_run_without_result_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    from tomosec.cli.results import show_records

    show_records([record(status="not-applicable", error="ltgm: needs weights", seeds=())])
    out = capsys.readouterr().out
    assert "not-applicable" in out
    assert "ltgm: needs weights" in out


# --- running ------------------------------------------------------------------------------------------------------------


def test_run_report_rescore_and_run_again(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "tiny.yaml"]) == 0
    out = capsys.readouterr().out
    assert "Attack success, attacked model" in out
    assert "complete before" not in out
    [identity] = Store("runs").ids()
    before = json.loads((tmp_path / "runs" / identity / "record.json").read_text())
    assert main(["run", "tiny.yaml", "--set", "title=Other"]) == 0  # a title is no part of the identity
    assert "complete before; nothing was run" in capsys.readouterr().out or before["finished"] >= before["started"]
    assert json.loads((tmp_path / "runs" / identity / "record.json").read_text()) == before
    results = Store("runs").read(identity).results()
    assert main(["rescore", "runs", "--id", identity[:4]]) == 0
    assert Store("runs").read(identity).results() == results
    assert main(["run", "tiny.yaml", "--preset", "clean"]) == 0
    assert len(Store("runs").ids()) == 2
    assert main(["report", "runs", "-o", "r.html"]) == 0


def test_a_failed_experiment_is_1(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tomosec.run.executors.execute",
        lambda *args, **kwargs: [record(), record("b" * 16, status="error", error="boom", seeds=()), with_failed_defense()],
    )
    assert main(["sweep", str(tiny), "--out", str(tmp_path / "runs"), "--set", "seeds=1"]) in (0, 1)
    content = {**TINY, "sweep": {"axes": {"threat.budget.value": [5, 10]}}}
    tiny.write_text(yaml.safe_dump(content))
    capsys.readouterr()
    assert main(["sweep", str(tiny), "--out", str(tmp_path / "runs")]) == 1
    out = capsys.readouterr().out
    assert "is a sweep of 2 experiments" in out
    assert "boom" in out
    assert "1 of 3 experiments have no result" in out
    assert state(with_failed_defense()) == "a defense failed, run it again"
    assert "1 of 3 experiments have a defense that failed, which the same command tries again" in out


def test_demo_writes_its_report_beside_the_runs(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tomosec.experiment.recipe_folder", lambda: tiny.parent)
    tiny.rename(tiny.with_name("demo.yaml"))
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"Report: {out / 'report.html'}" in said
    assert "Next:" in said
    assert (out / "report.html").is_file()
    assert main(["status", str(out)]) == 0


def test_check_operators_measures_a_scan_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    from tomosec.operators.check import usual_scans

    assert main(["check", "operators"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"CPU kernels: .*(compiled|loaded).* in \d+\.\d s", said)
    assert all(name in said for name in usual_scans())
    assert "The operators work here." in said


def test_check_operators_names_what_fails(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tomosec.operators import cpu

    right = cpu.project
    monkeypatch.setattr(cpu, "project", lambda image, geometry: right(image, geometry) * 1.01)
    assert main(["check", "operators", str(tiny)]) == 1
    said = capsys.readouterr().out
    assert f"FAILED: {tiny}, cpu: P, fast path against reference, float32 is 0.01, and 1e-05 is the limit" in said
    assert "The operators do not work here" in said


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    from tomosec.cli.browsing import List
    from tomosec.errors import TruncationWarning

    def warn(self: List) -> int:
        warnings.warn("too wide", TruncationWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(List, "run", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["list", "attacks"]) == 0
    assert capsys.readouterr().err == "tomosec: warning: too wide\n"
