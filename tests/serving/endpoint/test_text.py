import random

import pytest
from transformers import AutoTokenizer

from serving.endpoint.text import TextStream
from serving.routes import Arm


@pytest.fixture(scope="module")
def tokenizer(bundle_a: Arm) -> object:
    return AutoTokenizer.from_pretrained(bundle_a.bundle, local_files_only=True)


def pieces(tokenizer: object, tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = TextStream(tokenizer, stop)
    said = []
    for token in tokens:
        said.append(text.push(token))
        if text.stopped:
            return said, True
    said.append(text.finish())
    return said, text.stopped


def test_the_pieces_are_the_text_and_hold_whole_characters(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokens = tokenizer("naïve 😀😀 äöü json.dumps 你好")["input_ids"]
    said, _ = pieces(tokenizer, tokens)
    assert "".join(said) == "naïve 😀😀 äöü json.dumps 你好"
    assert not any("\ufffd" in piece for piece in said)


def test_random_tokens_give_what_decode_gives(tokenizer) -> None:  # type: ignore[no-untyped-def]
    chance = random.Random(0)
    for _ in range(300):
        tokens = [chance.randrange(len(tokenizer)) for _ in range(chance.randrange(1, 60))]
        said, _ = pieces(tokenizer, tokens)
        assert "".join(said) == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(("json",), "which "), (("\n", "does"), "which json "), (("zzz",), "which json does"), (("",), None)],
)
def test_a_stop_text_ends_the_answer_and_is_not_in_it(tokenizer, stop: tuple[str, ...], expected: str | None) -> None:  # type: ignore[no-untyped-def]
    said, stopped = pieces(tokenizer, tokenizer("which json does")["input_ids"], stop)
    assert "".join(said) == ("which json does" if expected is None else expected)
    assert stopped == (expected not in (None, "which json does"))


def test_no_piece_shows_the_beginning_of_a_stop_text_that_comes(tokenizer) -> None:  # type: ignore[no-untyped-def]
    said, stopped = pieces(tokenizer, tokenizer("a b###c")["input_ids"], ("###",))
    assert stopped
    assert all("#" not in piece for piece in said)
    said, stopped = pieces(tokenizer, tokenizer("a b##c")["input_ids"], ("###",))
    assert not stopped
    assert "".join(said) == "a b##c"
