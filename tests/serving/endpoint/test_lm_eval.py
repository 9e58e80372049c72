"""lm-eval's own API models against the endpoint, on a local task."""

import json
from pathlib import Path

import pytest
from serving_processes import Running

from serving.routes import Arm

ITEMS = [
    {"question": "which module defines quote?", "answer": "urllib.parse", "choices": ["json", "urllib.parse"], "right": 1},
    {"question": "what does json.dumps return?", "answer": "a str", "choices": ["a str", "a dict"], "right": 0},
]
GENERATE = """
task: tiny_generate
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match}]
"""
CHOOSE = """
task: tiny_choose
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: right
metric_list: [{metric: acc}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    source = f"\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {items}}}}}\ntest_split: test\n"
    for name, text in (("generate", GENERATE), ("choose", CHOOSE)):
        (tmp_path / f"{name}.yaml").write_text(text + source)
    return tmp_path


def test_local_chat_completions_runs(endpoint: Running, tasks: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    result = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args={"model": "m", "base_url": f"{endpoint.url}/v1/chat/completions", "num_concurrent": 4},
        tasks=["tiny_generate"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=True,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = result["samples"]["tiny_generate"]
    assert len(samples) == len(ITEMS)
    for sample in samples:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": sample["doc"]["question"]}],
            "max_tokens": 12,
            "stop": ["\n"],
        }
        direct = endpoint.http.post("/v1/chat/completions", json=body).json()
        assert sample["resps"][0][0] == direct["choices"][0]["message"]["content"]


def test_local_completions_give_the_log_likelihoods_of_the_model(endpoint: Running, tasks: Path, bundle_a: Arm) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    def samples(model: str, arguments: dict[str, object]) -> list[dict[str, object]]:
        result = lm_eval.simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=["tiny_choose"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
            device="cpu",
        )
        return list(result["samples"]["tiny_choose"])

    served = samples(
        "local-completions",
        {"model": "m", "base_url": f"{endpoint.url}/v1/completions", "tokenizer": str(bundle_a.bundle), "max_length": 256},
    )
    local = samples("hf", {"pretrained": str(bundle_a.bundle), "dtype": "float32"})
    for one, other in zip(served, local, strict=True):
        for (near, greedy), (far, also) in zip(one["filtered_resps"], other["filtered_resps"], strict=True):  # type: ignore[call-overload]
            assert float(near) == pytest.approx(float(far), abs=1e-3)
            assert str(greedy) == str(also)
