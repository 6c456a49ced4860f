"""Secrets are hidden in every form that they come in; what only resembles one stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.redact import hide_cluster, is_secret, redact_text, redact_values, redact_words

HF, GITHUB, AWS = "hf_" + "a" * 34, "ghp_" + "b" * 36, "AKIA" + "C" * 16
SECRETS = [
    "--set trainer.init.loggers.0.WandbLogger.token=SECRET", "token: SECRET", "token='SECRET'", '{"token": "SECRET"}',
    '{"api_key": "SECRET"}', "WANDB_API_KEY=SECRET", "wandb-api-key=SECRET", "apikey=SECRET", "password = SECRET",
    "db.password=SECRET", "passwd:SECRET", "Authorization: Bearer SECRETSECRET", "Authorization: Basic SECRETSECRET",
    "curl -H Bearer SECRETSECRET", "https://user:SECRET@host/x", "https://SECRET@host", "s3://SECRET:x@bucket/key",
    "https://host/x?sig=1&access_token=SECRET&a=b", "client_secret=SECRET", "credentials=SECRET",
    "x={a: 1, token: SECRET}", "token={a: SECRET, b: SECRET}", "--token SECRET", "run.py --hf-token SECRET -o x",
    "http://u:SE@CRET@host", "postgres://u:SECRET#x@host/db", "https://host/x?sv=1&sig=SECRETSECRET&y=1",
    "-----BEGIN RSA PRIVATE KEY-----\nSECRET\n-----END RSA PRIVATE KEY-----", "'password' : 'SECRET and SECRET'",
    "private_key=SECRET", "AWS_SECRET_ACCESS_KEY=SECRET", "hf_token=SECRET", "auth=SECRET",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_by_name_or_place_is_hidden(text):
    found = redact_text(text)
    found = found.replace("AWS_SECRET_ACCESS", "")
    assert "SECRET" not in found and "CRET@" not in found and "***" in found


@pytest.mark.parametrize("secret", [HF, GITHUB, AWS, "sk-" + "d" * 40, "glpat-" + "e" * 20, "xoxb-1234567890-abc"])
def test_a_secret_by_form_is_hidden_wherever_it_is(secret):
    for text in (secret, f"see {secret}, please", f"x={secret}", f"['{secret}']", f"/a/{secret}/b"):
        assert secret not in redact_text(text)


@pytest.mark.parametrize("text", [
    "num_memory_tokens=3", "eos_token=<|endoftext|>", "--eos_token x", "tokenizer=gpt2", "max_tokens: 5", "tokens=1e9",
    "trainer.init.seed=3", "pad_token: '<pad>'", "author=me", "keys=3", "step 300: loss 2.1", "a://b", "token",
    "hf_token: null", "password=", "vocab_size=50257", "runs/s75/checkpoints/step_300", "monkey=1", "basic=1",
])  # fmt: skip
def test_what_only_resembles_one_stays(text):
    assert redact_text(text) == text


def test_a_word_after_a_flag_is_hidden():
    assert redact_words(["--token", "a", "-p", "b", "--password=c", "--hf_token"]) == [
        "--token", "***", "-p", "b", "--password=***", "--hf_token"
    ]  # fmt: skip
    assert redact_words(["--set", "a.token=x y z", "b={token: {c: d}}"]) == ["--set", "a.token=***", "b={token: ***}"]
    assert redact_words(["--token", "-p", "b"]) == ["--token", "-p", "b"]  # it has no value: the next is a flag


def test_nested_values():
    value = {"a": [{"token": "x", "eos_token": "y", "n": 3}], "password": "", "url": "http://u:p@h", "b": None}
    assert redact_values(value) == {
        "a": [{"token": "***", "eos_token": "y", "n": 3}], "password": "", "url": "http://***@h", "b": None
    }  # fmt: skip
    assert is_secret("trainer.token") and not is_secret("num_tokens")


@pytest.mark.parametrize("text", [
    "--set trainer.init.backend.mgmt_address=HERE:9000", "--set=trainer.init.backend={mgmt_address: HERE:1, x: [HERE]}",
    "--set trainer.init={backend: {job_labels: [a=HERE]}, seed: 1}", "--mgmt_address HERE:9000",
    "--job_labels a=HERE HERE",
    "--credentials_path=/HERE/x.pem", "--set runconfig.mount_dirs=[HERE]",
])  # fmt: skip
def test_what_a_command_says_of_a_cluster_is_not_published(text):
    found = hide_cluster(f"run.py CSX -p c.yaml {text} -m train --seed 3 --eos_token x --token SECRET")
    assert "HERE" not in found and "SECRET" not in found
    assert found.startswith("run.py CSX -p c.yaml --") and found.endswith("-m train --seed 3 --eos_token x --token ***")


@given(st.text())
def test_redacting_twice_is_redacting_once(text):
    assert redact_text(redact_text(text)) == redact_text(text)


@given(st.text(alphabet="abcdefghij /.-", max_size=200))
def test_plain_words_stay(text):
    assert redact_text(text) == text
