"""The access file: what its entries mean, and what is said of one that is wrong."""

from hashlib import sha256
from pathlib import Path

import pytest
from trivec_server.errors import SecurityFileError
from trivec_server.transport.access_file import AccessTable, Scope, read_access_file, token_digest

DIGEST = sha256(b"secret").hexdigest()
OTHER = sha256(b"other").hexdigest()
ENTRY = f'[[identity]]\nname = "a"\ntoken_sha256 = "{DIGEST}"\n'


def read(tmp_path: Path, text: str, *, has_client_ca: bool = False) -> AccessTable:
    path = tmp_path / "access.toml"
    path.write_text(text, encoding="utf-8")
    return read_access_file(path, has_client_ca=has_client_ca)


def test_an_entry_has_its_scopes_and_limits(tmp_path: Path) -> None:
    (identity,) = read(
        tmp_path, ENTRY + 'scopes = ["infer", "admin"]\nrequests_per_s = 2.5\nburst = 10\nmax_concurrent = 4\n'
    ).identities
    assert (identity.name, identity.scopes) == ("a", frozenset(Scope))
    assert (identity.requests_per_s, identity.burst, identity.max_concurrent) == (2.5, 10, 4)


@pytest.mark.parametrize(("rate", "burst"), [("0.1", 1), ("1", 1), ("2.5", 3), ("100", 100)])
def test_without_a_burst_a_second_of_the_rate_may_come_at_once(tmp_path: Path, rate: str, burst: int) -> None:
    (identity,) = read(tmp_path, f'{ENTRY}scopes = ["infer"]\nrequests_per_s = {rate}\n').identities
    assert identity.burst == burst


def test_a_token_is_found_by_its_digest(tmp_path: Path) -> None:
    table = read(tmp_path, ENTRY + 'scopes = ["infer"]\n')
    found = table.find(token_digest("secret"), frozenset())
    assert found is not None
    assert found.name == "a"
    assert table.find(token_digest("Secret"), frozenset()) is None
    assert table.find(None, frozenset({"a"})) is None


def test_an_entry_with_both_asks_for_both(tmp_path: Path) -> None:
    table = read(tmp_path, ENTRY + 'certificate = "cn"\nscopes = ["infer"]\n', has_client_ca=True)
    digest = token_digest("secret")
    assert table.find(digest, frozenset()) is None
    assert table.find(None, frozenset({"cn"})) is None
    assert table.find(digest, frozenset({"other"})) is None
    assert table.find(digest, frozenset({"cn", "other"})) is not None


def test_a_certificate_does_not_make_a_wrong_token_good(tmp_path: Path) -> None:
    table = read(tmp_path, '[[identity]]\nname = "a"\ncertificate = "cn"\nscopes = ["infer"]\n', has_client_ca=True)
    assert table.find(None, frozenset({"cn"})) is not None
    assert table.find(token_digest("wrong"), frozenset({"cn"})) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is not TOML: "),
        ("a = 1\n", "`a` is not known; entries begin with [[identity]]"),
        ('"a\\nb" = 1\n', r"`'a\nb'` is not known"),
        (ENTRY + '"a\\nb" = 1\n', r"'a\nb' is not known"),
        ("a = " + "9" * 5000, "is not TOML that can be read: a number is too long, or lists too deep"),
        ("a = " + "[" * 5000, "is not TOML that can be read: a number is too long, or lists too deep"),
        ("", "has no [[identity]]"),
        ("identity = []\n", "has no [[identity]]"),
        ("identity = [1]\n", "[[identity]] 1: is not a table"),
        ('[[identity]]\nname = "a b"\n', "[[identity]] 1: name must be 1 to 64 letters"),
        ("[[identity]]\nname = 3\n", "[[identity]] 1: name must be"),
        ('[[identity]]\nname = "a"\nscopes = ["infer"]\n', '[[identity]] 1 ("a"): token_sha256 is missing'),
        (ENTRY, '[[identity]] 1 ("a"): scopes must be a list of infer and admin'),
        (ENTRY + "scopes = []\n", "scopes must be a list"),
        (ENTRY + 'scopes = ["write"]\n', "scopes must be a list"),
        (ENTRY + 'scopes = "infer"\n', "scopes must be a list"),
        (ENTRY + 'scopes = ["infer"]\nlimit = 3\n', "limit is not known; there are burst, certificate,"),
        (ENTRY + 'scopes = ["infer"]\nrequests_per_s = 0\n', "requests_per_s must be a number above 0"),
        (ENTRY + 'scopes = ["infer"]\nrequests_per_s = nan\n', "requests_per_s must be a number above 0"),
        (ENTRY + 'scopes = ["infer"]\nrequests_per_s = true\n', "requests_per_s must be a number above 0"),
        (ENTRY + 'scopes = ["infer"]\nburst = 3\n', "burst is of no use without requests_per_s"),
        (ENTRY + 'scopes = ["infer"]\nrequests_per_s = 1\nburst = 1.5\n', "burst must be a whole number"),
        (ENTRY + 'scopes = ["infer"]\nmax_concurrent = 0\n', "max_concurrent must be a whole number from 1 to"),
        (ENTRY + 'certificate = "cn"\nscopes = ["infer"]\n', "certificate needs --tls-client-ca"),
        (ENTRY.replace(DIGEST, "secret"), "token_sha256 must be 64 hexadecimal digits"),
        (
            f'{ENTRY}scopes = ["infer"]\n' * 2,
            '[[identity]] 2 ("a"): the name is taken by an entry before it',
        ),
        (
            f'{ENTRY}scopes = ["infer"]\n' + ENTRY.replace('"a"', '"b"') + 'scopes = ["admin"]\n',
            '[[identity]] 2 ("b"): token_sha256 is that of "a"',
        ),
    ],
)
def test_what_is_wrong_is_named_with_file_and_entry(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SecurityFileError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'access.toml'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_was_written_in_place_of_its_digest_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SecurityFileError) as caught:
        read(tmp_path, ENTRY.replace(DIGEST, "trivec_hunter2"))
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SecurityFileError, match="is not UTF-8 at byte 0"):
        read_access_file(path, has_client_ca=False)
