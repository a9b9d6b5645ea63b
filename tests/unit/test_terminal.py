"""What doors show: the user's own texts and names come out as they are, whatever they contain."""

import time
from pathlib import Path

import pytest

from pipelines import terminal
from pipelines.corpus.raw_text import TextInfo
from pipelines.corpus.shards import AugmentationInfo, ShardsInfo, SplitInfo
from pipelines.pretraining_report import collect_facts, print_text
from pipelines.terminal import (
    MOST_EXAMPLES,
    LabellingView,
    describe_epoch,
    format_duration,
    print_examples,
    print_scores,
    print_shards,
    watch_training,
)
from pipelines.training.job import TrainingResult

TRICKY = ["[bold]", "[/]", "[/bold]", "[red]X[/red]", "a\\[b]", "[link=x]y", ":smile:", "[[0]]", "[@click=f()]z[/]"]


def make_row(text=None, words=None, predicted=()):
    spans = [dict(zip(("start", "end", "label"), one, strict=True)) for one in predicted]
    return {"text": text, "words": words, "predicted": spans}


def capture_examples(capsys, *rows):
    print_examples(rows)
    return capsys.readouterr().out


def make_scores(labels):
    one = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 1234}
    scores = {"labels": dict.fromkeys(labels, one), "micro": one | {"f1": 0.87654}}
    return {"strict": scores, "lenient": scores, "intervals": {"strict": {"micro": {"f1": [0.811, 0.922]}}}}


def make_info(**changes):
    settings = {
        "encoder": "scratch",
        "tokenizer_fingerprint": "0",
        "scheme": "BIO",
        "tags": ["O", "B-PER", "I-PER"],
        "corpus_scheme": "BIOES",
        "splitter": "unicode",
        "window": 256,
        "stride": 64,
        "splits": {"train": SplitInfo(1200, 100, 34567, 1300, {"PER": 4321}), "dev": SplitInfo(5, 5, 60, 5, {})},
        "split_off": {"dev": 0.1},
        "ledger": {"kept": 1205, "repaired": 3, "rejected": 2, "reasons": {"bad_offset": 2}},
        "duplicates": {"train & dev": 4},
    }
    return ShardsInfo(**(settings | changes))


def test_a_dev_split_without_entities_is_told():
    [told] = make_info().describe_lack_of_gold()
    assert "the dev split has no entity" in told
    assert make_info(splits={"dev": SplitInfo(5, 5, 60, 5, {"PER": 1})}).describe_lack_of_gold() == []


def test_ledger_of_raw_text_is_told_and_stored(capsys, tmp_path):
    ledger = {"kept": 1200, "rejected": 3, "reasons": {"invalid_utf8": 2, "empty": 1}}
    counts = {"train": 1200}
    info = TextInfo("scratch", 256, counts, counts, counts, 0.9, {}, ledger)
    print_text(info, tmp_path)
    printed = capsys.readouterr().out.replace("\n", "")
    assert "ledger: 1,200 kept, 3 rejected (invalid_utf8 2, empty 1)" in printed
    assert "ledger.parquet" in printed
    usage = dict.fromkeys(("num_workers", "tokens_per_s", "worker_peak_memory_mib"), 1)
    usage |= {"strategy": "ddp", "precision": "fp32", "device": "cpu", "shares": {}}
    facts = collect_facts("scratch", "masks", "joined", 1, info, TrainingResult({}, 1, 1, 1, 0.5), usage)
    assert facts["Text"]["records"] == "1,200 kept, 3 rejected (invalid_utf8 2, empty 1)"


def test_print_examples_marks_entities_in_text(capsys):
    printed = capture_examples(capsys, make_row("Angela saw Utrecht.", predicted=[(0, 6, "PER"), (11, 18, "LOC")]))
    assert " Angela PER saw  Utrecht LOC." in printed


def test_print_examples_marks_entities_in_words(capsys):
    row = make_row(words=["In", "New", "York", "."], predicted=[(1, 3, "LOC")])
    assert "In  New York LOC ." in capture_examples(capsys, row)


@pytest.mark.parametrize("tricky", TRICKY)
def test_print_examples_shows_markup_in_texts_and_labels_literally(capsys, tricky):
    text = f"See {tricky} and {tricky} today"
    start = text.index("and") + 4
    row = make_row(text, predicted=[(start, start + len(tricky), f"X{tricky}")])
    assert f"See {tricky} and  {tricky} X{tricky} today" in capture_examples(capsys, row)


def test_print_examples_lets_no_control_character_of_a_text_reach_the_terminal(capsys):
    text = "Esc \x1b[31mAngela\x1b[0m \x07\x08 here"
    start = text.index("Angela")
    printed = capture_examples(capsys, make_row(text, predicted=[(start, start + 6, "PER\x1b[2J")]))
    assert " Angela PER" in printed
    assert not set(printed) & set("\x1b\x07\x08")


def test_print_examples_takes_only_the_sentences_with_entities(capsys):
    text = "Nothing here. Angela came. She left."
    printed = capture_examples(capsys, make_row(text, predicted=[(14, 20, "PER")]))
    assert "Angela PER came." in printed
    assert "Nothing" not in printed
    assert "left" not in printed


def test_print_examples_shows_a_few_and_the_richest_first(capsys):
    plain = [make_row(f"Angela {index}", predicted=[(0, 6, "PER")]) for index in range(MOST_EXAMPLES)]
    rich = make_row("Angela saw Utrecht", predicted=[(0, 6, "PER"), (11, 18, "LOC")])
    printed = capture_examples(capsys, *plain, rich)
    lines = [line for line in printed.splitlines() if "PER" in line]
    assert len(lines) == MOST_EXAMPLES
    assert "Utrecht" in lines[0]


def test_print_examples_prints_nothing_where_nothing_was_found(capsys):
    assert capture_examples(capsys, make_row("Nothing here.")) == ""


def test_print_scores_shows_labels_totals_and_interval(capsys):
    print_scores(make_scores(["PER", "LOC"]), "scores on the test split")
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["PER", "0.500", "0.250", "0.333", "0.333", "1,234"] in lines
    assert ["all", "(micro)", "0.500", "0.250", "0.877", "0.877", "1,234"] in lines
    assert printed.index("LOC") < printed.index("PER") < printed.index("all (micro)")
    assert "scores on the test split" in printed
    assert "test strict F1 0.8765, 95 % interval 0.811 to 0.922 over documents" in printed


@pytest.mark.parametrize("tricky", TRICKY)
def test_print_scores_shows_labels_with_brackets_literally(capsys, tricky):
    print_scores(make_scores([tricky]), "scores")
    assert any(line.split()[0] == tricky for line in capsys.readouterr().out.splitlines() if line.strip())


def test_print_scores_names_labels_that_are_predicted_and_in_no_gold(capsys):
    result = make_scores(["PER", "[b]MISC"])
    print_scores(result, "scores")
    assert "no gold" not in capsys.readouterr().out
    unknown = result["lenient"]["labels"]["PER"] | {"support": 0}
    result["lenient"] = result["lenient"] | {"labels": result["lenient"]["labels"] | {"[b]MISC": unknown}}
    print_scores(result | {"confusion": {"O": {"[b]MISC": 7}, "PER": {"PER": 9, "[b]MISC": 5}}}, "scores")
    assert "in no gold mention: [b]MISC (12). All of them count as" in " ".join(capsys.readouterr().out.split())


def test_print_scores_counts_a_label_that_was_never_strictly_read_as_zero(capsys):
    result = make_scores(["PER"])
    result["strict"] = result["strict"] | {"labels": {}}
    print_scores(result, "scores")
    assert ["PER", "0.000", "0.000", "0.000", "0.333", "1,234"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_print_shards_tells_what_a_corpus_holds(capsys):
    print_shards(make_info(), Path("/data/shards"))
    printed = capsys.readouterr().out
    assert "corpus /data/shards\n" in printed
    assert "train 1,200 records, 34,567 sub-tokens; PER 4,321\n" in printed
    assert "dev   5 records, 60 sub-tokens, 10% of the training documents; no entity\n" in printed
    assert "1,205 kept, 3 of them repaired, 2 rejected (bad_offset 2)" in printed
    assert "written as /data/shards/ledger.parquet\n" in printed
    assert "4 distinct records stand in both train & dev" in printed


def test_print_shards_tells_siblings_and_what_made_none(capsys):
    siblings = {"masking": 1200, "typo_noise": 34, "script_forms": 0}
    made = AugmentationInfo({}, siblings, SplitInfo(1234, 100, 5678, 1300), ["nothing for [script_forms]"])
    print_shards(make_info(augmentation=made), Path("/data/shards"))
    printed = capsys.readouterr().out
    assert "train 1,200 records, 34,567 sub-tokens; PER 4,321\n" in printed
    assert "train + 1,234 siblings by augmentation, 5,678 sub-tokens; masking 1,200, typo_noise 34\n" in printed
    assert "! nothing for [script_forms]\n" in printed


@pytest.mark.parametrize("tricky", TRICKY)
def test_print_shards_shows_paths_and_labels_with_brackets_literally(capsys, tricky):
    folder = Path("/data") / tricky / "shards"
    splits = {"train": SplitInfo(1, 1, 1, 1, {tricky: 7, "PER": 1})}
    print_shards(make_info(splits=splits), folder)
    printed = capsys.readouterr().out
    assert f"corpus {folder}\n" in printed
    assert f"{folder}/ledger.parquet" in printed
    assert f"{tricky} 7, PER 1" in printed


def make_metrics(num_epochs):
    rows = [{"kind": "start", "time": 100.0, "step": 0, "num_steps": 4, "num_epochs": 2}]
    for epoch in range(num_epochs):
        for step in (1, 2):
            row = {"kind": "step", "epoch": epoch, "step": 2 * epoch + step}
            rows.append(row | {"time": 100.0 + row["step"], "num_tokens": 100, "seconds": 0.1, "loss": 0.5})
        f1 = (0.25, 0.125)[epoch]
        row = {"kind": "epoch", "epoch": epoch + 1, "step": 2 * epoch + 2, "dev_f1": f1, "best_dev_f1": 0.25}
        rows.append(row | {"time": 103.0})
    return rows


def test_watch_training_without_a_terminal_prints_a_line_an_epoch_and_nothing_else_in_a_short_time(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "POLL_S", 0.01)
    num_epochs = 0
    with watch_training(lambda: make_metrics(num_epochs)):
        for num_epochs in (1, 2):  # noqa: B007
            time.sleep(0.05)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["  epoch 1: dev F1 0.2500 (best so far)", "  epoch 2: dev F1 0.1250"]
    assert printed.out == ""
    assert all(character.isprintable() or character == "\n" for character in printed.err)


def test_watch_training_without_a_terminal_tells_now_and_then_loss_rate_and_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "POLL_S", 0.01)
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0)
    with watch_training(lambda: make_metrics(1)):
        time.sleep(0.1)
    told, epoch = capsys.readouterr().err.splitlines()  # once, though it was asked for all the time
    assert told == "  epoch 1 of 2, step 2 of 4: loss 0.500, 1,000 sub-tokens/s, 0 s left"
    assert epoch.startswith("  epoch 1: dev F1")


def test_what_is_left_of_training_is_told_by_the_time_that_passed_with_scoring_and_checkpoints():
    start = {"step": 100, "time": 0.0, "num_steps": 400}
    steps = [{"step": 200 - at, "time": 200.0 - 2 * at, "loss": 1, "seconds": 1, "num_tokens": 9} for at in range(20)]
    assert terminal.describe_training(start, steps) == "loss 1.000, 9 sub-tokens/s, 7 min left"


def test_watch_training_tells_new_notices_once_and_that_the_run_folder_is_away(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "POLL_S", 0.01)
    old, new = ({"kind": "notice", "step": 3, "text": text} for text in ("old [bold]", "new [/]"))
    rows = [old]
    with watch_training(lambda: rows):
        for rows in ([old, new], [], [], [old, new]):  # noqa: B007
            time.sleep(0.05)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "  ! new [/]"
    assert " ".join(" ".join(told[1:]).split()) == (
        "! the run folder cannot be read: training goes on for a while, and tries again to write to it"
    )


def test_watch_training_tells_the_last_epoch_also_when_the_run_fails(capsys):
    with pytest.raises(RuntimeError, match="worker"), watch_training(lambda: make_metrics(1)):
        raise RuntimeError("a worker died")
    assert "epoch 1: dev F1 0.2500" in capsys.readouterr().err


def test_labelling_is_told_with_its_rate_and_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0)
    view = LabellingView(num_documents=5000, num_characters=100_000, done=1000, done_characters=20_000)
    with view.bar:
        view.update(num_documents=1000, num_characters=20_000, num_tokens=8000, seconds=10)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2,000 of 5,000 documents, " in printed.err
    assert printed.err.count("\n") == 1
    assert view.describe(10) == "2,000 of 5,000 documents, 800 sub-tokens/s, 30 s left"


def test_labelling_is_told_now_and_then_only(capsys):
    view = LabellingView(5000, 100_000, 0, 0)
    for _ in range(100):
        view.update(10, 200, 80, 0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (11_100, "3 h 05 min"), (4e6, "1,111 h 07 min")],
)
def test_durations_are_told_in_the_unit_that_suits(seconds, expected):
    assert format_duration(seconds) == expected


def test_epochs_are_told_by_f1_or_by_perplexity():
    rows = [
        {"epoch": 2, "dev_f1": 0.5, "best_dev_f1": 0.5},
        {"epoch": 0, "held_out_perplexity": 1234.5, "best_held_out_perplexity": 1234.5},
        {"epoch": 1, "held_out_perplexity": 20.0, "best_held_out_perplexity": 20.0},
        {"epoch": 2, "held_out_perplexity": 21.0, "best_held_out_perplexity": 20.0},
    ]
    assert [describe_epoch(row) for row in rows] == [
        "epoch 2: dev F1 0.5000 (best so far)",
        "before training: held-out perplexity 1,234.50",
        "epoch 1: held-out perplexity 20.00 (best so far)",
        "epoch 2: held-out perplexity 21.00",
    ]
