"""What reaches the model is what serving sends, and lm-eval's figures are those of a plain forward pass."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.config import EvaluationConfig
from evaluation.golden import Choice, ClosedBook, GoldenSet, HeldOut, read_golden
from evaluation.harness import Tasks, harness_fingerprint, open_tasks, score_bundle
from evaluation.samples import Sample
from evaluation.suite import Suite, load_suite
from lineage.bundle import seal_bundle
from lineage.errors import BadInput

Asked = tuple[Suite, dict[str, GoldenSet], Tasks]


@pytest.fixture(scope="module")
def asked(golden_data: Path) -> Iterator[Asked]:
    suite = load_suite("fast")
    golden = read_golden(golden_data, [task.golden for task in suite.tasks])
    with open_tasks(suite, golden) as tasks:
        yield suite, golden, tasks


@pytest.fixture(scope="module")
def model(bundles: dict[str, Path]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(bundles["trained"])


@pytest.fixture(scope="module")
def tokenizer(bundles: dict[str, Path]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bundles["trained"])


def score(asked: Asked, bundle: Path, **config: Any) -> dict[tuple[str, str], Sample]:
    suite, golden, tasks = asked
    samples = score_bundle(bundle, suite, tasks, golden, EvaluationConfig(**config), "cpu", lambda task, found: None)
    return {(sample.task, sample.id): sample for sample in samples}


def serving_ids(tokenizer: Any, question: str) -> list[int]:
    turn = [{"role": "user", "content": question}]
    ids: list[int] = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    return ids


def test_prompts_are_those_of_serving(asked: Asked, bundles: dict[str, Path], tokenizer: Any) -> None:
    """The very token ids that enter the model's forward pass, padding apart, for generated and for chosen answers."""
    from evaluation.bundle_lm import BundleLM
    from evaluation.harness import _ask

    suite, golden, tasks = asked
    lm = BundleLM(bundles["trained"], "float32", 64, "cpu")
    seen: list[list[int]] = []

    def record(_module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        ids = options["input_ids"] if "input_ids" in options else arguments[0]
        seen.extend([token for token in row if token != tokenizer.pad_token_id] for row in ids.tolist())

    lm.model.register_forward_pre_hook(record, with_kwargs=True)
    by_name = {task.name: task for task in suite.tasks}
    _ask(lm, by_name["closed_book"], tasks["closed_book"], golden["closed_book"])
    expected = [
        serving_ids(tokenizer, item.question) for item in golden["closed_book"].items if isinstance(item, ClosedBook)
    ]
    prompts = [row for row in seen if len(row) > 1]  # the steps after the first feed one token a time
    assert sorted(prompts) == sorted(expected)

    for item in golden["choice"].items:
        assert isinstance(item, Choice)
        prompt, answer = lm._encode_pair(
            lm.apply_chat_template([{"role": "user", "content": item.question}]), item.expected
        )
        assert prompt == serving_ids(tokenizer, item.question)
        assert answer == [*tokenizer.encode(item.expected, add_special_tokens=False), tokenizer.eos_token_id]


def test_answers_are_those_of_plain_greedy_decoding(
    asked: Asked, bundles: dict[str, Path], model: Any, tokenizer: Any
) -> None:
    import torch

    samples = score(asked, bundles["halfway"])
    from transformers import AutoModelForCausalLM

    halfway = AutoModelForCausalLM.from_pretrained(bundles["halfway"])
    for item in asked[1]["closed_book"].items[:10]:
        assert isinstance(item, ClosedBook)
        prompt = torch.tensor([serving_ids(tokenizer, item.question)])
        said = halfway.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :]
        assert samples["closed_book", item.id].answer == tokenizer.decode(said, skip_special_tokens=True)


def test_choice_is_the_likeliest_complete_answer(asked: Asked, bundles: dict[str, Path], tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    halfway = AutoModelForCausalLM.from_pretrained(bundles["halfway"])
    samples = score(asked, bundles["halfway"])
    for item in asked[1]["choice"].items[:10]:
        assert isinstance(item, Choice)
        likelihoods = []
        for choice in item.choices:
            prompt = serving_ids(tokenizer, item.question)
            answer = [*tokenizer.encode(choice, add_special_tokens=False), tokenizer.eos_token_id]
            with torch.no_grad():
                logits = halfway(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            steps = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            likelihoods.append(sum(float(logits[step, token]) for step, token in zip(steps, answer, strict=True)))
        assert samples["choice", item.id].answer == item.choices[likelihoods.index(max(likelihoods))]


def test_bits_per_byte_of_a_plain_forward_pass(asked: Asked, bundles: dict[str, Path], model: Any, tokenizer: Any) -> None:
    import torch

    sample = score(asked, bundles["trained"])["heldout", "doc-3"]
    item = next(item for item in asked[1]["heldout"].items if item.id == "doc-3")
    assert isinstance(item, HeldOut)
    ids = tokenizer.encode(item.text, add_special_tokens=False)
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.eos_token_id, *ids[:-1]]])).logits[0].log_softmax(-1)
    nats = -sum(float(logits[step, token]) for step, token in enumerate(ids))
    assert sample.score == pytest.approx(nats / math.log(2) / len(item.text.encode()), rel=1e-4)
    assert sample.weight == len(item.text.encode())


def test_batch_size_and_precision_hardly_matter_but_are_recorded(asked: Asked, bundles: dict[str, Path]) -> None:
    alone, together = score(asked, bundles["trained"], batch_size=1), score(asked, bundles["trained"], batch_size=64)
    assert {key: sample.answer for key, sample in alone.items()} == {key: s.answer for key, s in together.items()}
    one, other = (harness_fingerprint(asked[0], EvaluationConfig(batch_size=size)) for size in (1, 64))
    assert [field for field in one if one[field] != other[field]] == ["batch_size"]
    bf16 = score(asked, bundles["trained"], dtype="bfloat16")
    exact = [sample.score for (task, _), sample in bf16.items() if task == "closed_book"]
    assert sum(score or 0 for score in exact) / len(exact) > 0.9


def test_bundle_that_cannot_be_asked(asked: Asked, bundles: dict[str, Path], tmp_path: Path) -> None:
    silent = shutil.copytree(bundles["trained"], tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    seal_bundle(silent)
    with pytest.raises(BadInput, match=r"chat_template\.jinja: is missing"):
        score(asked, silent)


def test_prompt_longer_than_the_window(asked: Asked, bundles: dict[str, Path], golden_data: Path) -> None:
    from evaluation.bundle_lm import BundleLM

    lm = BundleLM(bundles["trained"], "float32", 64, "cpu")
    prompt = lm.apply_chat_template([{"role": "user", "content": "where " * 200}])
    with pytest.raises(BadInput, match="there is room for 104"):
        lm.tok_batch_encode([prompt, "short"], left_truncate_len=128 - 24)
    with pytest.raises(BadInput, match="there is room for 128"):
        lm._encode_pair(prompt, "os")
