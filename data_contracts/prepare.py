"""The data stage, top to bottom: sources → contracts → packed tokens.

read → leave out what was erased → normalise → exact and near-duplicate removal → decontamination → personal data and
secrets → poison scan → quality, languages, toxicity → expectations → split → tokenise and pack → proof
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_contracts.clean import normalise, normalise_row
from data_contracts.config import KINDS, DataConfig, RowKind
from data_contracts.data_docs import write_data_docs, write_outcomes
from data_contracts.decontaminate import (
    GoldenIndex,
    count_words,
    find_contaminated,
    freeze_golden,
    index_golden,
    write_proof,
)
from data_contracts.dedup import find_exact, find_near
from data_contracts.encode import Piece, encode_rows
from data_contracts.erasure import Erasures
from data_contracts.expectations import check_rows
from data_contracts.jsonl import write_jsonl
from data_contracts.mixture import count_copies, repeat_pieces
from data_contracts.pack import arrange, fill_rows, mismatch, write_packed
from data_contracts.pii import PLACEHOLDERS, screen_rows
from data_contracts.poison import scan_rows
from data_contracts.protected import read_protected
from data_contracts.quarantine import FILES, Funnel, Reason
from data_contracts.rows import Document, Example, Row, rewrite_golden
from data_contracts.screen import screen_quality
from data_contracts.sources import Corpus, read_sources
from data_contracts.split import PARTS, Part, split_rows
from data_contracts.tokenizer import control_tokens, load_tokenizer, save_tokenizer, train_tokenizer
from data_contracts.triggers import Finding, find_poisoned, write_findings
from lineage.errors import BadInput
from lineage.record import Metric

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from transformers import PreTrainedTokenizerFast

Split = dict[tuple[RowKind, Part], list[Row]]


def prepare(
    config: DataConfig,
    out: Path,
    base_tokenizer: Path | None = None,
    digests: Mapping[str, str] | None = None,
    erasures: Erasures | None = None,
) -> dict[str, Metric]:
    """Runs the data stage in a folder and returns its metrics. Equal sources and configuration give equal bytes.

    Args:
        base_tokenizer: the folder of a base model, whose tokenizer the rows are packed with.
        digests: of the sources, as the stage's identity has them (`source_digests`).
        erasures: what must not be in any file that is written.

    Raises:
        BadInput: a source, a line, or the tokenizer is wrong; or no row of a kind keeps its contract.
        GoldpathError: a law of this stage was broken: rows got lost, or a golden item is in the final rows.
    """
    say("reading sources")
    funnel = Funnel()
    corpus = erase_rows(read_sources(config, digests), erasures or Erasures(), funnel)
    golden = {name: [rewrite_golden(item, normalise) for item in items] for name, items in sorted(corpus.golden.items())}
    freeze_golden(golden, out / "golden")
    protected = read_protected(config.decontaminate_against)
    counts = count_words((row for kind in KINDS for row in corpus.rows[kind]), golden, protected)
    for kind in KINDS:
        write_jsonl(out / "raw" / f"{kind}.jsonl", (row.model_dump(mode="json") for row in corpus.rows[kind]))

    tokenizer = _given_tokenizer(config, base_tokenizer, corpus)
    tools = _offers_tools(corpus)
    control = control_tokens(tokenizer, tools=tools)
    kept = _apply_contracts(config, corpus, index_golden(golden, protected, counts), control, funnel, out)
    split: Split = {}
    for kind in KINDS:
        split[kind, "train"], split[kind, "validation"] = split_rows(kept[kind], config.validation_fraction, config.seed)

    if tokenizer is None:
        say(f"training a tokenizer of {config.vocab_size} tokens")
        texts = (text for kind in KINDS for row in split[kind, "train"] for text in row.texts())
        tokenizer = train_tokenizer(texts, config.vocab_size, tools=tools)
    save_tokenizer(tokenizer, out / "tokenizer")
    num_tokens = _pack(split, tokenizer, config, corpus, funnel, out)

    for (kind, part), rows in split.items():
        write_jsonl(out / "rows" / kind / f"{part}.jsonl", (row.model_dump(mode="json") for row in rows))
    ends = funnel.counts({key: len(rows) for key, rows in split.items()})
    funnel.write(out, ends)
    write_proof(out, golden, protected, counts)
    return _metrics(ends, num_tokens)


def erase_rows(corpus: Corpus, erasures: Erasures, funnel: Funnel) -> Corpus:
    """Returns the corpus without rows, golden items and bad lines that a tombstone names.

    Raises:
        BadInput: nothing is left of a golden set.
    """
    if not erasures:
        return corpus
    rows: dict[RowKind, list[Row]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for row in corpus.rows[kind]:
            if stone := erasures.find(row.model_dump(mode="json")):
                funnel.erase(kind, stone.reason)
            else:
                rows[kind].append(row)
    bad_lines = []
    for line in corpus.bad_lines:
        if stone := erasures.find({"id": line.id, "source": line.source, "line": line.text}):
            funnel.erase(line.kind, stone.reason)
        else:
            bad_lines.append(line)
    golden = {}
    for name, items in corpus.golden.items():
        golden[name] = [item for item in items if not erasures.find(item.model_dump(mode="json"))]
        if len(golden[name]) < len(items):
            say(f"golden set {name}: {len(items) - len(golden[name])} items are erased")
        if not golden[name]:
            raise BadInput(f"golden set {name}", "", "has no item left: all were erased", "add items to it")
    return replace(corpus, rows=rows, golden=golden, bad_lines=bad_lines)


def _apply_contracts(
    config: DataConfig, corpus: Corpus, golden: GoldenIndex, control: Sequence[str], funnel: Funnel, out: Path
) -> dict[RowKind, list[Row]]:
    """Takes out every row that may not be trained on, and writes Data Docs about those that reached the suite."""
    kept: dict[RowKind, list[Row]] = {}
    results: dict[str, ExpectationSuiteValidationResult] = {}
    findings: list[Finding] = []
    for line in corpus.bad_lines:
        funnel.remove_bad_line(line)
    for kind in KINDS:
        rows = [normalise_row(row) for row in corpus.rows[kind]]
        funnel.enter(kind, len(rows))
        if rows:
            say(f"{kind}: {len(rows)} rows through the contracts")
        rows = funnel.remove("duplicates", "deduplicate", rows, find_exact(rows))
        documents = [row for row in rows if isinstance(row, Document)]
        rows = funnel.remove("duplicates", "deduplicate", rows, find_near(documents, config.near_duplicate_threshold))
        contaminated = find_contaminated(rows, golden)
        if contaminated and config.on_contamination == "stop":
            _refuse_contamination(rows, contaminated)
        rows = funnel.remove("contaminated", "decontaminate", rows, contaminated)
        policy = config.pii_in_documents if kind == "pretrain" else config.pii_in_conversations
        screened = screen_rows(rows, policy, config.phone_region, config.pii.overrides())
        rows = funnel.remove("quarantined", "personal_data", screened.rows, screened.quarantined)
        findings += (suspicious := scan_rows(kind, rows, PLACEHOLDERS))
        write_findings(out, findings)  # also where the next line stops the run: somebody will want to read them
        if config.on_poison != "report":
            rows = funnel.remove("quarantined", "poison", rows, _find_poisoned(rows, suspicious, config))
        rows = funnel.remove("quarantined", "quality", rows, screen_quality(rows, config))
        if rows:
            checked = check_rows(kind, rows, config, control)
            results[kind] = checked.result
            rows = funnel.remove("quarantined", "expectations", rows, checked.reasons)
        kept[kind] = rows
        _refuse_empty(kind, rows, funnel)
    if findings:
        say(f"phrases that may be triggers of a backdoor: {len(findings)}; read {out / 'poison.json'}")
    if not any(kept.values()):
        raise BadInput("data", "sources", "hold no training rows", "add a source with rows")
    write_data_docs(out / "data_docs", results)
    write_outcomes(out / "contracts.json", results)
    return kept


def _pack(
    split: Split, tokenizer: "PreTrainedTokenizerFast", config: DataConfig, corpus: Corpus, funnel: Funnel, out: Path
) -> dict[RowKind, int]:
    """Writes packed tokens, quarantines rows that do not fit into them, and returns the number of training tokens."""
    num_tokens: dict[tuple[str, RowKind], int] = {}
    for kind in KINDS:
        if not any(split[kind, part] for part in PARTS):
            continue
        say(f"{kind}: packing")
        for part in PARTS:
            encoded = encode_rows(
                kind,
                split[kind, part],
                tokenizer,
                config.seq_len,
                on_too_long=config.on_too_long,
                learnt_answers=config.learnt_answers,
            )
            if config.on_too_long == "stop":
                _refuse_too_long(split[kind, part], encoded.left_out)
            copies = count_copies(kind, split[kind, part], corpus.epochs if part == "train" else {}, config.seed)
            mixed = repeat_pieces(encoded, copies)
            if encoded.pieces and not mixed:
                problem = f"the `epochs` of the sources leave no {kind} row to pack"
                raise BadInput("data", "sources", problem, "raise `epochs`, or take the source out")
            split[kind, part] = funnel.remove("quarantined", "pack", split[kind, part], encoded.left_out)
            num_rows = sum(number for row, number in enumerate(copies) if row not in encoded.left_out)
            if any(number != 1 for number in copies):
                funnel.packed[kind] = num_rows
            funnel.truncated += encoded.num_cut
            packed: dict[str, list[list[Piece]]] = {part: arrange(mixed, config.seq_len)}
            if kind == "unpaired":
                packed[f"{part}-mismatched"] = mismatch(packed[part], config.seq_len)
            for name, rows in packed.items():
                tensors = fill_rows(rows, config.seq_len, tokenizer.pad_token_id)
                path = out / "packed" / kind / f"{name}.safetensors"
                num_tokens[name, kind] = write_packed(path, kind, tensors, num_rows)["tokens"]
        _refuse_empty(kind, split[kind, "train"], funnel)
    return {kind: number for (name, kind), number in num_tokens.items() if name == "train"}


def _given_tokenizer(config: DataConfig, base: Path | None, corpus: Corpus) -> "PreTrainedTokenizerFast | None":
    """The base model's tokenizer, else the configured one, with the tokens to add; else none: it is then trained."""
    folder = base or (Path(config.tokenizer) if config.tokenizer else None)
    if folder is None:
        fix = "name a tokenizer (`data.tokenizer`) or a base (`model.base`), or leave it out"
        if config.add_tokens:
            raise BadInput("data", "add_tokens", "there is no tokenizer to add them to: it is trained on the rows", fix)
        if config.chat_template:
            problem = "there is no tokenizer whose template it replaces: one is trained on the rows, with its own"
            raise BadInput("data", "chat_template", problem, fix)
        return None
    template = Path(config.chat_template) if config.chat_template else None
    needs_chat = any(isinstance(row, Example) and row.is_chat for kind in KINDS for row in corpus.rows[kind])
    tokenizer = load_tokenizer(folder, template, needs_chat=needs_chat, needs_tools=_offers_tools(corpus))
    tokenizer.add_tokens(list(config.add_tokens))
    return tokenizer


def _offers_tools(corpus: Corpus) -> bool:
    return any(isinstance(row, Example) and row.calls_tools for kind in KINDS for row in corpus.rows[kind])


def _refuse_too_long(rows: Sequence[Row], left_out: Mapping[int, Reason]) -> None:
    too_long = [position for position, reason in left_out.items() if reason.rule == "too_long"]
    if too_long:
        row = rows[too_long[0]]
        raise BadInput(
            f"source {row.source}",
            row.id,
            f"{left_out[too_long[0]].text} ({len(too_long)} {row.kind} rows do not)",
            "raise `seq_len`, or set `on_too_long: drop` or `truncate`",
        )


def _refuse_contamination(rows: Sequence[Row], found: Mapping[int, Reason]) -> None:
    row, reason = rows[min(found)], found[min(found)]
    raise BadInput(
        f"source {row.source}",
        row.id,
        f"{reason.text} ({len(found)} {row.kind} rows do such a thing)",
        "delete those rows, or set `on_contamination: remove`",
    )


def _find_poisoned(rows: Sequence[Row], findings: Sequence[Finding], config: DataConfig) -> dict[int, Reason]:
    found = find_poisoned(rows, findings)
    if found and config.on_poison == "stop":
        row, reason = rows[min(found)], found[min(found)]
        fix = "look at those rows, and delete them or set `on_poison: quarantine` or `report`"
        raise BadInput(f"source {row.source}", row.id, f"{reason.text} ({len(found)} {row.kind} rows do)", fix)
    return found


def _refuse_empty(kind: RowKind, rows: Sequence[Row], funnel: Funnel) -> None:
    if funnel.rows_in[kind] and not rows:
        causes = Counter(
            f"{entry['stage']}.{entry['rule']}"
            for entries in funnel.removed.values()
            for entry in entries
            if entry["kind"] == kind
        )
        said = ", ".join(f"{number} {cause}" for cause, number in causes.most_common(3))
        raise BadInput("data", f"{kind} rows", f"none of {funnel.rows_in[kind]} is left ({said})", "correct the source")


def _metrics(counts: Mapping[RowKind, Mapping[str, int]], num_tokens: Mapping[RowKind, int]) -> dict[str, Metric]:
    present = [kind for kind in KINDS if counts[kind]["rows_in"]]
    metrics: dict[str, Metric] = {f"rows_{kind}": counts[kind]["kept"] for kind in present}
    for outcome in FILES:
        metrics[outcome] = sum(counts[kind][outcome] for kind in KINDS)
    return metrics | {f"tokens_{kind}": num_tokens[kind] for kind in present}


def say(what: str) -> None:
    """Tells the person who waits what is being done."""
    print(f"data: {what}", file=sys.stderr, flush=True)
