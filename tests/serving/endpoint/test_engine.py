import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lineage.bundle import seal_bundle
from lineage.errors import BadInput, Tampered
from serving.endpoint.engine import Delta, Engine, EngineFailed
from serving.endpoint.load import LoadedModel, load_bundle
from serving.endpoint.sampling import Sampling, choose, make_generator
from serving.routes import Arm

PROMPTS = [[(7 * i + 3 * n) % 250 + 5 for i in range(n)] for n in (3, 50, 7, 20, 1, 33, 12, 90, 5, 64, 2)]


@pytest.fixture(scope="module")
def loaded(bundle_a: Arm) -> LoadedModel:
    torch.set_num_threads(1)
    return load_bundle(bundle_a.bundle, bundle_a.digest)


@pytest.fixture
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    made = Engine(loaded, slots=4)
    yield made
    made.close()


class Collected:
    """One request's deltas."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.done = threading.Event()
        self.begun = threading.Event()

    def __call__(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.begun.set()
        if delta.finish_reason or delta.error:
            self.done.set()

    @property
    def tokens(self) -> list[int]:
        assert self.done.wait(30), "the request never ended"
        return [odd.token for delta in self.deltas for odd in delta.odds]

    @property
    def text(self) -> str:
        assert self.done.wait(30), "the request never ended"
        return "".join(delta.text for delta in self.deltas)


def generate(loaded: LoadedModel, prompt: list[int], tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return [int(token) for token in out[0, len(prompt) :]]


def test_concurrent_greedy_requests_equal_generate_token_for_token(engine: Engine, loaded: LoadedModel) -> None:
    answers = [Collected() for _ in PROMPTS]
    for n, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        engine.submit(prompt, Sampling(max_tokens=20 + 3 * n, logprobs=0), answer)
    reasons = set()
    for n, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        expected = generate(loaded, prompt, 20 + 3 * n)
        assert answer.tokens == expected
        assert answer.text == loaded.tokenizer.decode(expected, skip_special_tokens=True)
        assert answer.deltas[-1].tokens == len(expected)
        ended = expected[-1] in loaded.ends
        assert answer.deltas[-1].finish_reason == ("stop" if ended else "length")
        reasons.add(answer.deltas[-1].finish_reason)
    assert reasons == {"stop", "length"}, "the prompts no longer cover both ends"


def test_a_seed_repeats_a_draw_whoever_shares_the_batch(engine: Engine) -> None:
    sampling = Sampling(max_tokens=24, temperature=1.0, top_p=0.9, seed=5, logprobs=0)
    alone = Collected()
    engine.submit(PROMPTS[2], sampling, alone)
    first = alone.tokens
    crowd = [Collected() for _ in range(7)]
    for n, answer in enumerate(crowd):
        same = n == 3
        engine.submit(PROMPTS[2 if same else n], sampling if same else Sampling(40, temperature=1.3, logprobs=0), answer)
    assert crowd[3].tokens == first
    other = Collected()
    engine.submit(PROMPTS[2], Sampling(max_tokens=24, temperature=1.0, top_p=0.9, seed=6, logprobs=0), other)
    assert other.tokens != first


@pytest.mark.parametrize("temperature", [1e-6, 1e-39, 5e-324])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([1.0, 9.0, -2.0])
    assert choose(logits, Sampling(1, temperature), make_generator(0)) == 1
    assert choose(logits, Sampling(1, 1.1e-5), make_generator(0)) == 1  # the smallest that is drawn


def test_drawn_shares_are_those_of_the_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = make_generator(0)
    drawn = [choose(logits, Sampling(1, temperature=1.0, top_p=0.8), generator) for _ in range(4000)]
    counts = [drawn.count(token) / 4000 for token in range(4)]
    assert counts[2:] == [0, 0]
    assert abs(counts[0] - 0.625) < 0.04  # 5 standard errors
    cold = [choose(logits, Sampling(1, temperature=0.1), generator) for _ in range(200)]
    assert cold.count(0) > 190


def test_cancelling_frees_the_slot_for_those_that_wait(engine: Engine) -> None:
    hogs = [Collected() for _ in range(4)]
    requests = [engine.submit(PROMPTS[0], Sampling(240, temperature=2.0, seed=n), hog) for n, hog in enumerate(hogs)]
    waiting = Collected()
    engine.submit(PROMPTS[2], Sampling(2, logprobs=0), waiting)
    assert all(hog.begun.wait(30) for hog in hogs)
    for request in requests:
        engine.cancel(request)
    assert waiting.tokens
    last = Collected()
    engine.submit(PROMPTS[2], Sampling(2, logprobs=0), last)
    assert last.tokens == waiting.tokens
    assert engine.num_running == 0


def test_echo_gives_the_log_probabilities_of_the_prompt(engine: Engine, loaded: LoadedModel) -> None:
    prompt = PROMPTS[3]
    answer = Collected()
    engine.submit(PROMPTS[1], Sampling(30), Collected())
    engine.submit(prompt, Sampling(1, logprobs=1, echo=True), answer)
    assert answer.done.wait(30)
    said = answer.deltas[0].odds
    with torch.inference_mode():
        expected = loaded.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert [odd.token for odd in said[:-1]] == prompt
    assert said[0].logprob is None
    for at, odd in enumerate(said[1:-1], start=1):
        assert odd.logprob == pytest.approx(float(expected[at - 1, prompt[at]]), abs=1e-4)
        assert max(odd.top.values()) == pytest.approx(float(expected[at - 1].max()), abs=1e-4)


def test_a_failing_step_reaches_every_request_and_the_owner(loaded: LoadedModel) -> None:
    told: list[BaseException] = []
    engine = Engine(loaded, slots=1, on_failure=told.append)
    answers = [Collected(), Collected()]
    for answer in answers:
        engine.submit([loaded.vocabulary + 1], Sampling(2), answer)  # the HTTP layer refuses such ids
    assert all(answer.done.wait(30) for answer in answers)
    assert all("IndexError" in answer.deltas[-1].error for answer in answers)
    engine.close()
    assert len(told) == 1
    with pytest.raises(EngineFailed):
        engine.submit([5], Sampling(2), Collected())


def test_a_prompt_that_does_not_fit_is_refused(engine: Engine, loaded: LoadedModel) -> None:
    for prompt, tokens in (([], 1), ([5] * loaded.context, 1), ([5], loaded.context)):
        with pytest.raises(ValueError, match="context"):
            engine.submit(prompt, Sampling(tokens), Collected())
    brim = Collected()
    engine.submit([5] * (loaded.context - 1), Sampling(1, logprobs=0), brim)
    assert brim.tokens


def test_only_the_promised_digest_is_loaded(bundle_a: Arm, bundle_b: Arm) -> None:
    with pytest.raises(Tampered, match="digest"):
        load_bundle(bundle_a.bundle, bundle_b.digest)


def test_a_setting_that_the_engine_would_ignore_is_refused(tmp_path, bundle_a: Arm) -> None:  # type: ignore[no-untyped-def]
    import json
    import shutil

    from lineage.bundle import seal_bundle

    folder = tmp_path / "bundle"
    shutil.copytree(bundle_a.bundle, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.2}))
    seal_bundle(folder)
    with pytest.raises(BadInput) as caught:
        load_bundle(folder)
    assert caught.value.field == "repetition_penalty"


def other_bundle(bundle: Path, folder: Path, **config: object) -> Path:
    """Seals a tiny model of another architecture, with the tokenizer of a bundle."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(3)
    values = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.4, **config}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[str(values.pop("model_type"))](**values)).save_pretrained(folder)
    for path in bundle.glob("*token*"):
        shutil.copy(path, folder)
    seal_bundle(folder)
    return folder


def test_a_model_with_plain_attention_only_says_what_generate_says(bundle_a: Arm, tmp_path: Path) -> None:
    gemma = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
             "query_pre_attn_scalar": 8, "max_position_embeddings": 256, "sliding_window": 200}  # fmt: skip
    loaded = load_bundle(other_bundle(bundle_a.bundle, tmp_path / "gemma", model_type="gemma2", **gemma))
    assert loaded.model.config._attn_implementation == "eager"
    made = Engine(loaded, slots=4)
    answers = [Collected() for _ in PROMPTS]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        made.submit(prompt, Sampling(max_tokens=12, logprobs=0), answer)
    assert [answer.tokens for answer in answers] == [generate(loaded, prompt, 12) for prompt in PROMPTS]
    made.close()


def test_models_that_the_engine_would_not_serve_faithfully(bundle_a: Arm, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="MambaForCausalLM keeps a running state"):
        load_bundle(other_bundle(bundle_a.bundle, tmp_path / "mamba", model_type="mamba"))
    with pytest.raises(BadInput, match="max_position_embeddings: is missing"):
        load_bundle(other_bundle(bundle_a.bundle, tmp_path / "bloom", model_type="bloom", n_head=4))
