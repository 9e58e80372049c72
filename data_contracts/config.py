"""What the data stage is told: where rows come from, what a row must be, and how rows become packed tokens."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from lineage.section import Section

RowKind = Literal["pretrain", "sft", "preference", "unpaired"]
KINDS: tuple[RowKind, ...] = ("pretrain", "sft", "preference", "unpaired")
OnTooLong = Literal["drop", "truncate", "stop"]
LearntAnswers = Literal["all", "last"]
PiiClass = Literal["email", "phone", "card", "iban", "national_id", "ip", "secret"]
PiiPolicy = Literal["redact", "quarantine", "allow"]
Format = Literal["jsonl", "json", "parquet", "csv", "text"]
Documents = Literal["file", "paragraph", "line"]
Turn = dict[Literal["system", "user", "assistant", "tool"], str]
# A text, or turns. Which of the two is read from the value, so that an error names what is wrong in it.
Template = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Turn], Tag("turns")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "turns"),
]

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Source(Section):
    """One place that rows come from.

    Attributes:
        kind: `files` reads files, in the format that their names say; `hub` a data set of the Hugging Face hub; `jsonl`
            files of JSON lines; `stdlib` makes all kinds of rows and golden sets from the interpreter's library.
        path: a file, a pattern (`shards/*.jsonl.zst`), a folder (its files of one format, at any depth, sorted by path), a
            folder that `datasets` saved, or a URL of any of these that fsspec knows (`s3://`, `gs://`, `https://`), with
            credentials from the environment; gzip and zstd are seen from the bytes. A path is relative to the file that
            this section is written in. Of `hub`, the data set's name.
        format: of the files; left out, their names say it.
        rows: what the rows are; left out, their columns say it. `golden` rows are never trained on.
        golden_set: for golden rows, the set that they join; "" takes each item's own `kind`.
        columns: what each field of a row is made of: a column's name, a text with `{columns}` in it, or turns, such as
            `[{user: "{question}"}, {assistant: "{answer}"}]`. `{a.b.0}` looks into objects and lists. Columns that are not
            asked for are then left out, but for `id`; without `columns` a column that is no field of a row is an error.
        documents: of plain text, what a document is: a `file`, a `paragraph` (up to a blank line), or a `line`.
        subset, revision: of `hub`, the configuration, and the branch, tag or commit.
        split: of `hub` and of a folder that `datasets` saved, the split; "" is `train` where there are several.
        epochs: how often the training rows are packed. With 2.5 all come twice, and about half of them, as the seed
            chooses, once more; with 0.5 that half alone. Rows that are not packed stay among the kept ones.
        license: under which licence the rows may be used, such as `cc-by-4.0` (SPDX); the data card says it.
    """

    kind: Literal["files", "jsonl", "hub", "stdlib"] = "files"
    path: str = ""
    format: Format | None = None
    rows: RowKind | Literal["golden"] | None = None
    golden_set: Annotated[str, Field(pattern=r"^[a-z0-9_]*$")] = ""
    columns: dict[str, Template] = Field(default_factory=dict)
    documents: Documents = "file"
    subset: str = ""
    revision: str = ""
    split: str = ""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0

    @field_validator("columns", mode="before")
    @classmethod
    def _texts_are_quoted(cls, columns: Any) -> Any:
        parts = list(columns.values()) if isinstance(columns, dict) else []
        turns = [turn for part in parts if isinstance(part, list) for turn in part if isinstance(turn, dict)]
        for text in [*parts, *(text for turn in turns for text in turn.values())]:
            if isinstance(text, dict) and None in text.values():
                raise ValueError(f"YAML takes `{{{next(iter(text))}}}` for a mapping: put it in quotes")
        return columns

    @field_validator("columns")
    @classmethod
    def _templates_can_be_filled(cls, columns: dict[str, Template]) -> dict[str, Template]:
        from data_contracts.sources.mapping import check_template

        for template in columns.values():
            check_template(template)
        return columns

    license: str = ""

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        fields = type(self).model_fields
        said = {name for name in fields if getattr(self, name) != fields[name].get_default(call_default_factory=True)}
        if self.kind == "stdlib" and (wrong := sorted(said - {"kind", "epochs"})):
            raise ValueError(f"a stdlib source takes no `path`, `rows` or `golden_set`, and no `{wrong[0]}`")
        if self.kind == "jsonl" and not (self.path and self.rows):
            raise ValueError("a jsonl source needs `path` and `rows` (pretrain, sft, preference, unpaired or golden)")
        if self.kind != "stdlib" and not self.path:
            raise ValueError(f"a source of kind {self.kind} needs `path`")
        if self.kind == "jsonl" and self.format not in (None, "jsonl"):
            raise ValueError("a jsonl source takes no other `format`")
        if self.kind != "hub" and (wrong := sorted(said & {"subset", "revision"})):
            raise ValueError(f"only a source of kind hub takes a `{wrong[0]}`")
        if self.golden_set and self.rows != "golden":
            raise ValueError("only golden rows take a `golden_set`")
        if self.rows == "golden" and self.epochs != 1:
            raise ValueError("golden rows are never trained on: they take no `epochs`")
        return self


class PiiPolicies(Section):
    """What single classes of personal data do in rows of all kinds; an absent one does what `pii_in_…` says.

    Attributes:
        email: e-mail addresses; those of example domains (RFC 2606) are nobody's.
        phone: phone numbers.
        card: payment cards.
        iban: bank accounts.
        national_id: identity, insurance and tax numbers of people.
        ip: public IP addresses; private, loopback and documentation ranges are nobody's.
        secret: keys, tokens, passwords. Absent, a row with one is taken out.
    """

    email: PiiPolicy | None = None
    phone: PiiPolicy | None = None
    card: PiiPolicy | None = None
    iban: PiiPolicy | None = None
    national_id: PiiPolicy | None = None
    ip: PiiPolicy | None = None
    secret: PiiPolicy | None = None

    def overrides(self) -> dict[PiiClass, PiiPolicy]:
        """The classes that say something of their own."""
        return self.model_dump(exclude_none=True)  # type: ignore[return-value]


class DataConfig(Section):
    """The data stage. Every field shapes the bytes that it writes, so every field is part of the identity.

    Attributes:
        sources: where rows come from, in order; of two equal rows the first one stays.
        seed: order, split and the choices inside a stdlib source.
        on_bad_line: what a line does that is no JSON or no row: `stop` is an error that names it, `quarantine` counts it.
        on_contamination: what a training row does that repeats a golden item: `remove` takes it out, `stop` is an error.
        decontaminate_against: further files of texts that must not be trained on: `.jsonl` (the question, prompt, problem,
            instruction, text, or the user's longest message of each line) or `.txt` (a text per line).
        quality: rules that documents must keep: `gopher`, `c4`, `fineweb`. They were made for English web pages.
        languages: the languages that rows may be in (ISO 639-1, such as `en`); none allows all. What has fewer than 50
            letters is in no language.
        toxicity: what tells toxic rows: `phrases` (a short list of threats and insults), a `.txt` file of further such
            phrases, one per line, or `module:function`, which gives a text's toxicity from 0 to 1; "" looks for none.
        toxicity_threshold: the toxicity from which on a row is not kept.
        on_poison: what a phrase does that looks like a backdoor's trigger (`poison.json` lists them): `report` keeps the
            rows, `quarantine` takes those with it out, `stop` is an error.
        near_duplicate_threshold: documents whose sets of five-word shingles have at least this Jaccard similarity are one
            document; 0 leaves near-duplicates. Documents only: phrasings of one question are alike by design.
        pii_in_documents, pii_in_conversations: what personal data does: `redact` puts a typed placeholder such as `<email>`
            in its place, `quarantine` takes the row out, `allow` leaves it. A row with a secret (key, token, password) is
            taken out, unless `pii` says otherwise.
        pii: what single classes do instead, such as `{email: redact, ip: allow}`.
        phone_region: the country (ISO 3166, such as `DE`) whose national phone numbers are known in any layout; "" knows
            international ones, the usual layouts of national ones, and those beside a word such as `mobile`.
        min_characters, max_characters: the length of a document.
        max_answer_characters: the longest answer of a conversation or a pair.
        validation_fraction: the share of every row kind that is only validated on; at least one row of two or more.
        vocab_size: the size of the tokenizer that is trained on the training rows.
        tokenizer: a folder with a tokenizer to use instead; a base model's tokenizer takes precedence.
        add_tokens: tokens that the base's or the given tokenizer does not have yet; `model: grow_vocabulary: true` gives
            them rows in the base.
        chat_template: a Jinja file that replaces that tokenizer's chat template, for one without `{% generation %}` marks.
        seq_len: tokens in a packed row.
        on_too_long: what a row with answers does that has more tokens than a packed row: `drop` takes it out and counts it,
            `truncate` cuts its end off (and takes it out where nothing of an answer would be left), `stop` is an error. A
            document is always divided: no part of it is an answer that would end in the middle.
        learnt_answers: which of a conversation's answers are learnt: `all`, or the `last`; the others are then only read.
        num_facts: names that a stdlib source asks about. This and the five below shape a stdlib source only.
        num_closed_book: how many of those names the closed-book golden set asks about.
        document_bytes: bytes of documents (UTF-8).
        index_rounds: how often the documents state every fact, each time in other words and another order.
        questions_per_fact: phrasings of each question.
        pairs_per_fact: preference pairs of each fact.
    """

    sources: Annotated[list[Source], Field(min_length=1)]
    seed: Count = 0
    on_bad_line: Literal["stop", "quarantine"] = "stop"
    on_contamination: Literal["remove", "stop"] = "remove"
    decontaminate_against: tuple[str, ...] = ()
    quality: tuple[Literal["gopher", "c4", "fineweb"], ...] = ()
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2}$")], ...] = ()
    toxicity: Annotated[str, Field(pattern=r"^(phrases|.+\.txt|[\w.]+:\w+)?$")] = ""
    toxicity_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    on_poison: Literal["report", "quarantine", "stop"] = "report"
    near_duplicate_threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    pii_in_documents: PiiPolicy = "redact"
    pii_in_conversations: PiiPolicy = "quarantine"
    pii: PiiPolicies = PiiPolicies()
    phone_region: Annotated[str, Field(pattern=r"^([A-Z]{2})?$")] = ""
    min_characters: Positive = 20
    max_characters: Positive = 100_000
    max_answer_characters: Positive = 4_000
    validation_fraction: Fraction = 0.05
    vocab_size: Annotated[int, Field(ge=300)] = 4096
    tokenizer: str = ""
    add_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    chat_template: str = ""
    seq_len: Annotated[int, Field(ge=8)] = 512
    on_too_long: OnTooLong = "drop"
    learnt_answers: LearntAnswers = "all"
    num_facts: Positive = 400
    num_closed_book: Positive = 250
    document_bytes: Positive = 2_000_000
    index_rounds: Positive = 10
    questions_per_fact: Positive = 20
    pairs_per_fact: Positive = 3
