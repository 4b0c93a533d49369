"""What a record says in sentences: the headline's basis, the key numbers, what was done, and what the controls show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tomosec.metrics.statistics import SeedSummary
from tomosec.record import Record
from tomosec.report import wording

#: Two rates nearer than this are called equal in words; the tables have the numbers.
ALIKE = 0.05
#: A loss of clean accuracy that an acceptance test might see.
NOTICED = 0.03
#: A clean model below this part of the way from guessing to perfect is called weak.
WEAK = 0.5
#: A floor that takes a good part of the success away from the backdoor.
HIGH_FLOOR = 0.3


@dataclass(frozen=True, slots=True)
class Card:
    """A key number.

    Attributes:
        label: what it is.
        value: the number.
        lines: what must be read with it.
    """

    label: str
    value: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one comparison shows; ``concern`` marks what weakens the claim of a learned backdoor."""

    text: str
    concern: bool = False


def target_of(record: Record) -> str:
    """The class that triggered scans should be read as."""
    return str(wording.field(record.experiment, "threat.goal.target", "the target"))


def sources_of(record: Record) -> str:
    """The classes under attack."""
    named = wording.field(record.experiment, "threat.goal.sources", ())
    if not named and record.data is not None:
        named = [name for name in record.data.classes if name != target_of(record)]
    return wording.listing(str(name) for name in named) or "the other classes"


def tested_on(record: Record) -> tuple[int, int]:
    """Slices and patients of the test split. A patient with slices of two classes is counted in each of them."""
    if record.data is None:
        return 0, 0
    return sum(record.data.slices.get("test", {}).values()), sum(record.data.patients.get("test", {}).values())


def basis(record: Record) -> str:
    """On which data, split and seeds the headline was measured."""
    if record.data is None:
        return ""
    slices, patients = tested_on(record)
    seeds = wording.plural(len(record.seeds), "seed") + (
        f" ({', '.join(str(seed.seed) for seed in record.seeds)})" if record.seeds else ""
    )
    attacked = record.seeds[0].metric("attacked", "triggered", "asr") if record.seeds else None
    rate = (
        f"; the attack success rate is over the {wording.cases(attacked)} that are not “{target_of(record)}”" if attacked else ""
    )
    data = wording.DATASETS.get(record.data.dataset, record.data.dataset)
    tested = f"{wording.plural(slices, 'test slice')} of {wording.plural(patients, 'patient')}"
    return f"Measured on {tested} from {data}, with {seeds}{rate}. {wording.sentence(record.data.split)}"


def cards(record: Record) -> list[Card]:
    """The row of key numbers."""
    out = []
    get = record.summary.get
    asr = get("attacked/triggered/asr")
    if asr is not None:
        out.append(Card("Attack success rate", wording.share(asr.mean), tuple(_success_lines(record, asr))))
    clean, attacked = get("clean/clean/accuracy"), get("attacked/clean/accuracy")
    if clean is not None:
        value = wording.share((attacked or clean).mean)
        lines = [_per_seed("accuracy", attacked or clean)]
        if attacked is not None:
            lines.append(f"clean model: {wording.summary_text('accuracy', clean)}")
        out.append(
            Card(
                "Accuracy on clean scans" + (", attacked model" if attacked is not None else ""),
                value,
                tuple(filter(None, lines)),
            )
        )
    rmse = get("stealth/rmse_hu")
    if rmse is not None:
        out.append(Card("Change of the image", wording.number(rmse.mean, "HU"), tuple(_change_lines(record, rmse))))
    slices, patients = tested_on(record)
    if record.data is not None:
        shared = (
            ("patients are shared between training and test",)
            if record.data.shares_patients
            else ("none of them used in training",)
        )
        by_class = ", ".join(f"{count} {name}" for name, count in record.data.slices.get("test", {}).items())
        out.append(
            Card(
                "Test data",
                wording.plural(slices, "slice").replace("\u00a0", " "),
                (wording.plural(patients, "patient"), by_class, *shared),
            )
        )
    if any(seed.strength is not None for seed in record.seeds):
        out.append(_strength_card(record))
    return out


def _success_lines(record: Record, asr: SeedSummary) -> list[str]:
    lines = [_per_seed("asr", asr)]
    first = record.seeds[0].metric("attacked", "triggered", "asr")
    if first is not None:
        has = first.low is not None
        lines.append(
            f"seed {record.seeds[0].seed}: 95% interval {wording.interval('asr', first)}"
            if has
            else wording.interval("asr", first)
        )
    for key, text in (
        ("clean/triggered/asr", "floor, clean model"),
        ("surrogate/triggered/asr", "surrogate, without a backdoor"),
        ("attacked/random/asr", "random trigger, attacked model"),
        ("control-white/triggered/asr", "control victim, white noise"),
        ("control-spectrum/triggered/asr", "control victim, same spectrum"),
    ):
        if (found := record.summary.get(key)) is not None:
            lines.append(f"{text}: {wording.share(found.mean)}")
    return [line for line in lines if line]


def _change_lines(record: Record, rmse: SeedSummary) -> list[str]:
    lines = ["RMSE inside the body, test slices", _per_seed("rmse_hu", rmse)]
    largest = record.summary.get("stealth/max_abs_hu")
    if largest is not None and largest.mean is not None:
        lines.append(f"largest change of a pixel: {wording.number(largest.mean, 'HU')}")
    if record.physics is not None and record.physics.dose_hu > 0:
        lines.append(f"noise of the scan: {wording.number(record.physics.dose_hu, 'HU')} (water disc, ram-lak)")
    return [line for line in lines if line]


def _strength_card(record: Record) -> Card:
    chosen = [seed.strength for seed in record.seeds if seed.strength is not None]
    budgets = sorted({item.budget for item in chosen})
    unit = {"hu": "HU", "relative-rms": "relative RMS", "reference-mu": "raw μ"}.get(chosen[0].unit, chosen[0].unit)
    if any(len(item.tried) > 1 for item in chosen):
        tried = wording.plural(max(len(item.tried) for item in chosen), "budget")
        how = f"chosen on {wording.plural(chosen[0].validation_slices, 'validation slice')} among {tried}"
    else:
        how = "one budget, given in advance"
    strengths = " · ".join(wording.number(item.strength) for item in chosen)
    text = ", ".join(f"{budget:g}" for budget in budgets)
    return Card("Budget of the trigger", f"{text} {unit}", (how, f"RMS added to the data: {strengths}"))


def _per_seed(name: str, summary: SeedSummary) -> str:
    if len(summary.values) < 2:
        return ""
    return "per seed: " + " · ".join(wording.value(name, value) for _, value in sorted(summary.values.items()))


def story(record: Record) -> list[str]:
    """What was done, in the order in which data flow, for a reader who runs no code."""
    experiment, physics, data = record.experiment, record.physics, record.data
    out = []
    if data is not None and physics is not None:
        train = wording.plural(sum(data.slices.get("train", {}).values()), "training slice")
        noise = f"with image noise of {wording.number(physics.dose_hu, 'HU')}" if physics.dose_hu > 0 else "without noise"
        scanner = f"{physics.views} views of {physics.bins} detector bins"
        image = f"{physics.shape[0]} × {physics.shape[1]} pixels of {physics.pixel_mm:g} mm"
        out.append(
            f"CT images ({wording.DATASETS.get(data.dataset, data.dataset)}) were scanned by a simulated scanner with {scanner}, "
            f"{noise}, and reconstructed with {wording.component(experiment, 'reconstruction')} to {image}. "
            f"A network ({wording.component(experiment, 'network')}) learned from {train} to tell "
            f"{wording.listing(data.classes)} apart: the clean model."
        )
    if experiment.get("attack") is None:
        out.append("No attack was run; the numbers are those of the clean chain.")
        return out
    access, site = (str(wording.field(experiment, f"threat.{name}", "")) for name in ("access", "site"))
    out.append(
        f"The assumed attacker {wording.ACCESS.get(access, access)}; the attacker {wording.knowledge(experiment)}. "
        f"With the attack “{wording.component(experiment, 'attack')}” a trigger was made: a faint change of "
        f"{wording.SITES.get(site, site)}."
    )
    out.append(
        f"The goal: scans of class {sources_of(record)} that carry the trigger should be read as {target_of(record)}, "
        "while scans without it are read as before. The attack success rate (ASR) is the fraction of such test slices that were "
        "read so."
    )
    out.append(
        "Every rate was measured on test slices; training and strength were decided on other slices. Controls show what happens "
        "without a learned trigger."
    )
    return out


def verdicts(record: Record) -> list[Verdict]:
    """What the controls show, said plainly where they do as well as the learned trigger."""
    asr = record.summary.get("attacked/triggered/asr")
    if asr is None or asr.mean is None or asr.low is None:
        return []
    found = (_weak(record, "clean"), _weak(record, "surrogate"), _floor(record, asr), _surrogate(record))
    out = [verdict for verdict in found if verdict is not None]
    controls = (
        (
            "attacked/random/asr",
            "A random trigger of equal size, shown to the attacked model,",
            "the model reacts to noise of this size, not to the learned pattern",
        ),
        (
            "control-white/triggered/asr",
            "A model trained on white noise of equal size",
            "for success alone, learning the trigger was not needed",
        ),
        (
            "control-spectrum/triggered/asr",
            "A model trained on a random trigger of the same spectrum",
            "for success alone, its exact shape was not needed",
        ),
    )
    for key, subject, meaning in controls:
        other = record.summary.get(key)
        if other is None or other.mean is None:
            continue
        out.append(_compared(subject, meaning, asr, other, _apart(record, *key.split("/")[:2])))
    loss = _loss(record)
    if loss is not None:
        out.append(loss)
    return [verdict for verdict in out if verdict.text]


def _weak(record: Record, model: str) -> Verdict | None:
    """Whether a model is good enough for an attack on it, or one that is made on it, to mean anything."""
    found = record.summary.get(f"{model}/clean/balanced_accuracy") or record.summary.get(f"{model}/clean/accuracy")
    if found is None or found.mean is None or record.data is None:
        return None
    guessing = 1 / max(1, len(record.data.classes))
    if found.mean >= guessing + WEAK * (1 - guessing):
        return None
    meaning = (
        "With a network this weak, success rates say little about an attack on one in use."
        if model == "clean"
        else "A trigger that is made on a network this weak says little about what a surrogate is worth."
    )
    return Verdict(
        f"The {wording.model(model).lower()} reads only {wording.share(found.mean)} correctly, classes weighted alike (guessing: "
        f"{wording.share(guessing)}). {meaning}",
        concern=True,
    )


def _compared(subject: str, meaning: str, asr: SeedSummary, other: SeedSummary, apart: bool) -> Verdict:
    """One control against the learned trigger; both have values. ``apart``: the first seed's intervals do not overlap."""
    learned, control = asr.mean or 0.0, other.mean or 0.0
    numbers = f"{wording.share(other.mean)} against {wording.share(asr.mean)}"
    if control >= learned - ALIKE:
        return Verdict(f"{subject} does as well as the learned trigger ({numbers}): {meaning}.", concern=True)
    if len(asr.values) < 2:
        if apart:
            return Verdict(f"{subject} does worse than the learned trigger ({numbers}; intervals apart, but one seed alone).")
        why = "but the intervals overlap or are missing: no clear difference is shown"
        return Verdict(f"{subject} does worse than the learned trigger in this one seed ({numbers}), {why}.", concern=True)
    if (other.high or 0.0) >= (asr.low or 0.0):
        text = f"{subject} does worse on average ({numbers}), but the ranges over seeds overlap: no clear difference is shown."
        return Verdict(text, concern=True)
    ends = f"at most {wording.share(other.high)} against at least {wording.share(asr.low)}"
    return Verdict(f"{subject} does worse than the learned trigger in every seed ({numbers}; {ends}).")


def _apart(record: Record, model: str, shown: str) -> bool:
    """Whether a control's interval ends below that of the attack, in the first seed."""
    learned, control = record.seeds[0].metric("attacked", "triggered", "asr"), record.seeds[0].metric(model, shown, "asr")
    if learned is None or control is None or learned.low is None or control.high is None:
        return False
    return control.high < learned.low


def _floor(record: Record, asr: SeedSummary) -> Verdict:
    floor, found = record.summary.get("clean/triggered/asr"), record.summary.get("clean/clean/sensitivity")
    if floor is None or floor.mean is None or asr.mean is None:
        return Verdict(
            "The clean model was not shown triggered scans: the floor of the attack success rate is unknown.", concern=True
        )
    without = ""
    if found is not None and found.mean is not None and record.data is not None and len(record.data.classes) == 2:
        # With two classes, a finding that is missed is one that is read as the target.
        without = f" (without the trigger: {wording.share(1 - found.mean)})"
    start = f"The clean model reads {wording.share(floor.mean)} of the triggered scans as {target_of(record)}{without}"
    if floor.mean >= asr.mean - ALIKE:
        return Verdict(
            f"{start}, as many as the attacked model ({wording.share(asr.mean)}): the backdoor adds nothing to what the change "
            "does by itself.",
            concern=True,
        )
    if floor.mean > HIGH_FLOOR:
        return Verdict(
            f"{start}: a good part of the success is not the backdoor but the change itself, to which clean models are prone.",
            concern=True,
        )
    return Verdict(f"{start}; the attacked model {wording.share(asr.mean)}.")


def _surrogate(record: Record) -> Verdict | None:
    """What the trigger does on the surrogate that it was made on, beside what it does on the network."""
    own, floor = record.summary.get("surrogate/triggered/asr"), record.summary.get("clean/triggered/asr")
    if own is None or own.mean is None or floor is None or floor.mean is None:
        return None
    return Verdict(
        f"The trigger was made on a surrogate ({wording.surrogate(record.experiment)}). Neither it nor the clean model has a "
        f"backdoor: the surrogate reads {wording.share(own.mean)} of the triggered scans as {target_of(record)}, and the clean "
        f"model, which had no part in making it, {wording.share(floor.mean)}."
    )


def _loss(record: Record) -> Verdict | None:
    clean, attacked = record.summary.get("clean/clean/accuracy"), record.summary.get("attacked/clean/accuracy")
    if clean is None or attacked is None or clean.mean is None or attacked.mean is None:
        return None
    change = attacked.mean - clean.mean
    points = f"{abs(change) * 100:.1f} percentage points"
    text = "the same as" if abs(change) < 0.0005 else f"{points} {'below' if change < 0 else 'above'}"
    start = f"On clean scans the attacked model's accuracy is {text} the clean model's: an acceptance test on clean scans"
    return Verdict(f"{start} would hardly notice.") if change >= -NOTICED else Verdict(f"{start} could notice.", concern=True)


def mixed(records: Sequence[Record]) -> list[str]:
    """What a table of several records mixes that a reader should know."""
    kinds: dict[str, set[Any]] = {
        "versions of the code": {
            (record.provenance.tomosec, record.provenance.commit, record.provenance.uncommitted_changes) for record in records
        },
        "devices": {record.provenance.device for record in records},
        "thread counts": {record.provenance.threads for record in records},
        "machines": {record.provenance.host_hash for record in records},
        "data sets": {record.data.manifest for record in records if record.data is not None},
    }
    return [
        f"These records were made with different {name} ({len(found)}); compare them with care."
        for name, found in kinds.items()
        if len(found) > 1
    ]
