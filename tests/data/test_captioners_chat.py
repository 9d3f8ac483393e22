"""Captioners at chat endpoints, against a real server that misbehaves."""

import json
import logging
import pickle
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from PIL import Image

from clipmill.data.captioners import CaptionersConfig, open_captioner
from clipmill.data.captioners.base import CaptionInput, CaptionOutput
from clipmill.data.captioners.chat import RewriteCaptioner, VlmCaptioner, clean_caption
from clipmill.data.captioners.chat_client import Secret, check_url, read_key
from clipmill.data.captioners.config import ChatClientConfig, RewriteConfig, VlmConfig
from clipmill.errors import BudgetError, ConfigError, ServerError
from helpers.chat_server import ChatServer, image_of, text_of

QUICK = ChatClientConfig(
    backoff_seconds=0.001, max_attempts=3, timeout_seconds=5, concurrency=4, max_outage_seconds=0
)
ASK = RewriteConfig(model="m", prompt="{caption}")
KEY = "sk-Very_Secret-123"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def samples(count):
    return [CaptionInput(uid=f"u{i}", caption=f"real {i}") for i in range(count)]


def run(server, inputs, config=ASK, endpoint=QUICK):
    captioner = RewriteCaptioner(server.url, config, endpoint)
    try:
        found = dict(captioner.caption(inputs))
    finally:
        captioner.close()
    return [found[i] for i in range(len(inputs))]


def until(server, inputs, error, endpoint=QUICK, match=None):
    """What is yielded before the error."""
    captioner = RewriteCaptioner(server.url, ASK, endpoint)
    found = []
    with pytest.raises(error, match=match) as caught:
        found.extend(captioner.caption(inputs))
    captioner.close()
    return dict(found), caught.value


def test_a_request_says_all_and_an_answer_is_taken_whole():
    config = RewriteConfig(
        model="llm-7b",
        system="Be brief.",
        prompt="Rewrite: {caption}!",
        num_captions=3,
        max_tokens=50,
        temperature=0.5,
        top_p=0.8,
        max_caption_characters=6,
    )
    with ChatServer() as server:
        (output,) = run(server, samples(1), config)
        (body,) = server.bodies
    assert output == CaptionOutput(
        texts=tuple(f"about Rewrite: real 0!, take {k}" for k in range(3)),
        scores=(-0.5, -1.5, -2.5),
    )
    assert 0 <= body.pop("seed") < 2**31
    assert body == {
        "model": "llm-7b",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Rewrite: real 0!"},
        ],
        "n": 3,
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.8,
        "stream": False,
        "logprobs": True,
    }


def test_seeds_differ_by_sample_and_stay_the_same():
    with ChatServer() as server:
        run(server, samples(5))
        first = {text_of(body): body["seed"] for body in server.bodies}
        run(server, samples(5)[::-1])
        again = {text_of(body): body["seed"] for body in server.bodies[5:]}
    assert first == again
    assert len(set(first.values())) == 5


def test_an_image_goes_as_a_small_jpeg_with_the_real_caption():
    image = Image.new("RGB", (1000, 400), (255, 0, 0))
    sample = CaptionInput(uid="u", caption="my cube", image=image)
    config = VlmConfig(model="m", prompt="Alt-text: {caption}. Describe.", max_side=100)
    with ChatServer() as server:
        captioner = VlmCaptioner(server.url, config, QUICK)
        found = dict(captioner.caption([sample]))
        captioner.close()
        (body,) = server.bodies
    assert text_of(body) == "Alt-text: my cube. Describe."
    sent = image_of(body)
    assert (sent.format, sent.size) == ("JPEG", (100, 40))
    assert sent.getpixel((50, 20)) == pytest.approx((255, 0, 0), abs=3)
    assert image.size == (1000, 400)
    assert found[0].texts == ("about Alt-text: my cube. Describe., take 0",)


def test_endpoints_that_give_one_choice_at_a_time_are_asked_again():
    takes = iter(range(10))
    answer = lambda body, k: f"take {next(takes)}"  # noqa: E731
    with ChatServer(choices=1, answer=answer) as server:
        (output,) = run(server, samples(1), ASK.override(["num_captions=3"]))
        asked = [(body["n"], body["seed"]) for body in server.bodies]
    assert output.texts == ("take 0", "take 1", "take 2")
    assert [n for n, _ in asked] == [3, 2, 1]
    assert len({seed for _, seed in asked}) == 3


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {}),
        (429, {"retry-after": "0"}),
        (503, {"retry-after": "soon"}),
        (408, {}),
        (500, {}),
        (502, {}),
        "cut",
        "cut-chunks",
        "hang-up",
        "malformed",
        "foreign",
        "html",
        "no-choice",
        "parts",
        "bad-gzip",
        "flood",
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again_and_then_given_up(trouble):
    with ChatServer([trouble, trouble]) as server:
        (output,) = run(server, samples(1))
        assert output.texts == ("about real 0, take 0",)
        assert len(server.bodies) == 3
        assert server.bodies[0] == server.bodies[2]
    with ChatServer([trouble] * 3) as server:
        failed, other = run(server, samples(2), endpoint=QUICK.override(["concurrency=1"]))
        # Two samples, whichever came first.
        assert len(server.bodies) == 4
    malformed = {"malformed", "foreign", "html", "no-choice", "parts", "bad-gzip", "flood"}
    assert failed.reason == ("malformed" if str(trouble) in malformed else "unavailable")
    assert other.texts


@pytest.mark.parametrize("trouble", ["silence", "drip"])
def test_answers_that_take_too_long(trouble):
    endpoint = QUICK.override(["timeout_seconds=0.3", "max_attempts=2"])
    with ChatServer([trouble]) as server:
        started = time.monotonic()
        (output,) = run(server, samples(1), endpoint=endpoint)
        assert output.texts
        assert time.monotonic() - started > 0.3
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ((400, {}), "refused"),
        ((413, {}), "refused"),
        ((422, {}), "refused"),
        ("filtered", "refused"),
        ("null", "empty"),
    ],
    ids=str,
)
def test_what_a_sample_is_to_blame_for_is_asked_once(trouble, reason):
    with ChatServer([trouble]) as server:
        endpoint = QUICK.override(["concurrency=1"])
        bad, good = run(server, samples(2), endpoint=endpoint)
        assert len(server.bodies) == 2
    assert bad == CaptionOutput(reason=reason)
    assert good.texts == ("about real 1, take 0",)


@pytest.mark.parametrize("said", ["I'm sorry, but no.", '"I can\u2019t help with that"'])
def test_refusals_in_words_are_no_captions(said):
    with ChatServer(answer=lambda body, k: said) as server:
        (output,) = run(server, samples(1))
    assert output == CaptionOutput(reason="refused")


def test_half_a_character_becomes_one_that_can_be_stored():
    with ChatServer(["surrogate"]) as server:
        (output,) = run(server, samples(1))
    assert output == CaptionOutput(texts=("half ? pair",), scores=(None,))


def in_two_seconds():
    """A date has no fractions of a second, so this one is at least a second away."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


@pytest.mark.parametrize("value", ["1", in_two_seconds])
def test_retry_after_holds_every_request(value):
    with ChatServer([(429, {"Retry-After": value})]) as server:
        outputs = run(server, samples(3), endpoint=QUICK.override(["concurrency=1"]))
        gaps = [later - server.times[0] for later in server.times[1:]]
    assert all(output.texts for output in outputs)
    assert min(gaps) > 0.9


def test_an_endpoint_that_asks_to_come_back_tomorrow_ends_the_run():
    with ChatServer([(429, {"retry-after": "86400"})]) as server:
        found, error = until(
            server, samples(3), ServerError, QUICK.override(["concurrency=1"]), "86400 seconds"
        )
    assert not found
    assert server.url in str(error)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_no_sample_is_to_blame_for_ends_the_run(status):
    with ChatServer(["ok", (status, {})]) as server:
        endpoint = QUICK.override(["concurrency=1"])
        found, error = until(server, samples(9), ServerError, endpoint)
        assert len(server.bodies) == 2
    assert found.keys() == {0}
    assert f"status {status}" in error.what


def test_redirects_are_not_followed():
    with ChatServer(["redirect"]) as server:
        until(server, samples(1), ServerError, match="status 307")
        assert len(server.bodies) == 1


def test_a_streak_of_failures_ends_the_run_and_a_few_do_not():
    endpoint = QUICK.override(["max_consecutive_failures=3", "max_attempts=1", "concurrency=1"])
    failing = (500, {})
    with ChatServer([failing, failing, "ok", failing, failing, "ok"]) as server:
        outputs = run(server, samples(6), endpoint=endpoint)
        assert [out.reason for out in outputs] == ["unavailable"] * 2 + [""] + [
            "unavailable"
        ] * 2 + [""]
    with ChatServer(always=failing) as server:
        found, error = until(server, samples(20), ServerError, endpoint, "3 samples in a row")
        assert len(server.bodies) == 3
    assert all(output.reason for output in found.values())
    assert "status 500" in error.what


def test_nobody_listens():
    with ChatServer() as server:
        pass
    endpoint = QUICK.override(["max_consecutive_failures=2", "max_attempts=2"])
    until(server, samples(5), ServerError, endpoint, "ConnectError")


def test_so_many_at_once_and_no_more():
    with ChatServer() as server:
        server.pause = 0.05
        run(server, samples(12), endpoint=QUICK.override(["concurrency=3"]))
        assert server.most_under_way == 3


def test_requests_keep_their_pace():
    with ChatServer() as server:
        run(server, samples(6), endpoint=QUICK.override(["requests_per_minute=600"]))
        times = sorted(server.times)
    # 6 starts a tenth of a second apart, half of which the machine may be late with the first.
    assert times[-1] - times[0] > 0.25


def test_a_budget_of_requests_is_kept_and_what_was_answered_is_yielded():
    with ChatServer([(500, {})]) as server:
        endpoint = QUICK.override(["max_requests=5"])
        found, error = until(server, samples(20), BudgetError, endpoint, "5 requests")
        assert len(server.bodies) == 5
    assert len(found) == 4
    assert all(output.texts for output in found.values())
    assert "max_requests" in error.action


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_budget_of_tokens(concurrency):
    with ChatServer(tokens=100) as server:
        endpoint = QUICK.override(["max_total_tokens=1050", f"concurrency={concurrency}"])
        until(server, samples(40), BudgetError, endpoint, "tokens")
        # The first ones are begun before anyone knows what one costs.
        assert 10 - concurrency < len(server.bodies) <= 10
    with ChatServer(tokens=100) as server:
        run(server, samples(5), endpoint=QUICK.override(["max_total_tokens=1050"]))


def test_leaving_early_stops_the_rest():
    with ChatServer() as server:
        server.pause = 0.02
        captioner = RewriteCaptioner(server.url, ASK, QUICK.override(["concurrency=2"]))
        answers = captioner.caption(samples(50))
        next(answers)
        answers.close()
        captioner.close()
        assert len(server.bodies) < 10


# The key.


@pytest.fixture(params=["variable", "file"])
def keyed(request, monkeypatch, tmp_path):
    if request.param == "variable":
        monkeypatch.setenv("MODEL_KEY", KEY)
        return QUICK.override(["key_variable=MODEL_KEY"])
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    return QUICK.override([f"key_file={file}"])


def test_the_key_is_sent_and_kept_nowhere(keyed, caplog):
    caplog.set_level(logging.DEBUG)
    config = CaptionersConfig(rewrite=ASK, endpoint=keyed)
    leaky = lambda body, k: f"a key {KEY} leaks"  # noqa: E731
    with ChatServer([(500, {})], answer=leaky) as server:
        kind, captioner = open_captioner(f"rewrite:{server.url}", config)
        outputs = list(captioner.caption(samples(2)))
        shown = [kind, captioner.detail, captioner.identity, vars(captioner), outputs]
        shown += [vars(captioner._client)["_key"], config.to_json()]
        captioner.close()
        assert {h["Authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    with ChatServer(always=(401, {})) as server:
        _, error = until(server, samples(1), ServerError, keyed)
        shown += [str(error), repr(error), pickle.dumps(error)]
    with ChatServer(always=(400, {})) as server:
        endpoint = keyed.override(["max_consecutive_failures=1"])
        _, error = until(server, samples(1), ServerError, endpoint)
        shown += [str(error), repr(error.__cause__), repr(error.__context__)]
    assert "[key]" in str(error)
    assert outputs[0][1].texts == ("a key [key] leaks",)
    assert KEY not in repr(shown)
    assert KEY not in caplog.text


def test_without_a_key_none_is_sent():
    with ChatServer() as server:
        run(server, samples(1))
        assert "Authorization" not in server.headers[0]


def test_a_secret_shows_itself_to_nobody():
    secret = Secret(KEY)
    assert KEY not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_keys_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.delenv("MODEL_KEY", raising=False)
    for variable, file, match in (
        ("MODEL_KEY", "", "MODEL_KEY holds no key"),
        ("", str(tmp_path / "none"), "can't be read"),
    ):
        with pytest.raises(ConfigError, match=match):
            read_key(variable, file)
    (tmp_path / "two").write_text("a\nb")
    with pytest.raises(ConfigError, match="holds what can't be a key") as caught:
        read_key("", str(tmp_path / "two"))
    assert "a\nb" not in str(caught.value)


def test_a_key_given_in_place_of_its_name_is_refused_unshown():
    with pytest.raises(ConfigError, match="isn't the name") as caught:
        ChatClientConfig(key_variable=KEY)
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigError, match="both given"):
        ChatClientConfig(key_variable="A", key_file="b")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/v1",
        "http://",
        f"http://user:{KEY}@host/v1",
        f"http://host/v1?key={KEY}",
        f"http://host/v1#{KEY}",
        "http://host:port/v1",
        "http://[::1/v1",
    ],
)
def test_urls_that_may_not_be_kept(url):
    with pytest.raises(ConfigError, match="can't be stored") as caught:
        check_url(url)
    assert KEY not in str(caught.value)


def test_urls_that_may():
    assert check_url("https://host:8000/v1/") == "https://host:8000/v1"


# What it's called.


def test_who_it_is_depends_on_what_is_said_alone():
    def identity(config=ASK, endpoint=QUICK, url="http://a/v1"):
        return RewriteCaptioner(url, config, endpoint).identity

    assert identity(endpoint=ChatClientConfig(), url="https://b/v1") == identity()
    changes = ("model=n", "prompt=a {caption}", "seed=1", "temperature=0.1", "num_captions=2")
    assert len({identity(ASK.override([change])) for change in changes} | {identity()}) == 6
    vlm = VlmCaptioner("http://a/v1", VlmConfig(model="m"), QUICK)
    assert vlm.identity != VlmCaptioner("http://a/v1", VlmConfig(model="n"), QUICK).identity
    detail = RewriteCaptioner("http://a/v1", ASK, QUICK).detail
    assert json.loads(detail["prompt"]) == ["", "{caption}"]
    assert detail["model"] == "m"


def test_a_model_must_be_named():
    with pytest.raises(ConfigError, match="no model was named"):
        open_captioner("vlm:http://a/v1", CaptionersConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        (RewriteConfig, {"prompt": "no place"}),
        (RewriteConfig, {"num_captions": 0}),
        (VlmConfig, {"max_side": 1}),
        (VlmConfig, {"temperature": -1.0}),
        (ChatClientConfig, {"concurrency": 0}),
        (ChatClientConfig, {"timeout_seconds": 0.0}),
        (ChatClientConfig, {"max_requests": -1}),
    ],
)
def test_settings_that_mean_nothing(wrong):
    kind, values = wrong
    with pytest.raises(ConfigError, match="was"):
        kind(**values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('  "A red\n cube."  ', "A red cube."),
        ("\u201ca cube\u201d", "a cube"),
        ('"a" and "b"', '"a" and "b"'),
        ("'", "'"),
        ("it's a 'cube'", "it's a 'cube'"),
    ],
)
def test_tidy(text, expected):
    assert clean_caption(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>A cat?\nYes.</think>\n\nA cat asleep.", "A cat asleep."),
        ("<think>It never ends", ""),
        ("Sure! Here is a caption: **A cat asleep.**", "A cat asleep."),
        ('Here\'s a one-sentence description of the image:\n\n"A cat."', "A cat."),
        ("Caption: a cat", "a cat"),
        ("A sign: here is a caption", "A sign: here is a caption"),
        ("Here is a cat", "Here is a cat"),
        ("a\0cat", "acat"),
    ],
)
def test_what_models_add_to_a_caption_is_cut(text, expected):
    assert clean_caption(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Sorry, I cannot describe people.",
        "I apologize, but no.",
        "Unfortunately, I can't see it.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m unable to view images.",
    ],
)
def test_usual_refusals_are_no_captions(text):
    with ChatServer(answer=lambda *_: text) as server:
        (output,) = run(server, samples(1))
    assert output == CaptionOutput(reason="refused")


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf")])
def test_a_score_that_is_not_finite_is_unknown(logprob):
    with ChatServer(logprob=logprob) as server:
        (output,) = run(server, samples(1))
    assert output.texts
    assert output.scores == (None,)


def test_parameters_are_renamed_and_omitted():
    endpoint = QUICK.override(
        [
            'renamed_parameters={"max_tokens": "max_completion_tokens"}',
            'omitted_parameters=["n", "temperature", "seed"]',
        ]
    )
    with ChatServer() as server:
        run(server, samples(1), endpoint=endpoint)
        (body,) = server.bodies
    assert body["max_completion_tokens"] == ASK.max_tokens
    assert not {"max_tokens", "n", "temperature", "seed"} & body.keys()
    with pytest.raises(ConfigError, match="messages was renamed or omitted"):
        QUICK.override(['omitted_parameters=["messages"]'])


def test_an_endpoint_that_restarts_costs_nothing():
    endpoint = QUICK.override(["max_outage_seconds=60", "max_attempts=1", "concurrency=1"])
    with ChatServer(["ok", (503, {}), (502, {})]) as server:
        outputs = run(server, samples(3), endpoint=endpoint)
    assert all(output.texts for output in outputs)
    # One that never answered isn't waited for.
    with ChatServer(always=(503, {})) as server:
        (output,) = run(server, samples(1), endpoint=endpoint)
    assert output == CaptionOutput(reason="unavailable")
