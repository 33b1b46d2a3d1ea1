"""Names, credentials, and being let in: by password, by token, over TLS; and what is never told to whom."""

import base64
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from images import Image, compressed
from layer_model import Entry, write_tar
from registries import (
    PASSWORD,
    USER,
    Fault,
    Proxy,
    Registry,
    TokenServer,
    ask,
    certificate,
    free_port,
    hurry,
    manifest_of,
    put_blob,
    put_image,
)

from layerstore import Store
from layerstore.cli.command import told
from layerstore.errors import AccessDenied, CorruptError, InvalidInput, LimitExceeded, NotFound, RegistryError
from layerstore.registry.authorization import Authorization
from layerstore.registry.challenges import Challenge, parse_challenges
from layerstore.registry.credentials import Credentials, find_credentials
from layerstore.registry.login import login, logout
from layerstore.registry.references import Reference, host_of, is_loopback, parse_reference, parse_registry
from layerstore.registry.transport import Patience, Transport, origin_of
from layerstore.types import Digest

IMAGE = Image([write_tar([Entry("file", "a", data=b"a" * 1000)])])
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
DIGEST = Digest("sha256:" + "ab" * 32)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No credentials but the test's; docker's config.json is to be here."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    (tmp_path / "docker").mkdir()
    return tmp_path


def keep(home: Path, document: Any, name: str = "docker/config.json") -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def auth(user: str = USER, password: str = PASSWORD) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


# Names


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("debian", "docker.io", "library/debian", "latest", None),
        ("debian:12", "docker.io", "library/debian", "12", None),
        ("docker.io/library/debian", "docker.io", "library/debian", "latest", None),
        ("index.docker.io/a/b:c", "docker.io", "a/b", "c", None),
        ("a/b/c", "docker.io", "a/b/c", "latest", None),
        ("quay.io/a:b", "quay.io", "a", "b", None),
        ("localhost/a", "localhost", "a", "latest", None),
        ("localhost:5000/a", "localhost:5000", "a", "latest", None),
        ("[::1]:5000/a:1", "[::1]:5000", "a", "1", None),
        (f"debian@{DIGEST}", "docker.io", "library/debian", None, DIGEST),
        (f"h:1/debian:x@{DIGEST}", "h:1", "debian", "x", DIGEST),
    ],
)
def test_a_name_is_read(text: str, registry: str, repository: str, tag: str | None, digest: Digest | None) -> None:
    assert parse_reference(text) == Reference(registry, repository, tag, digest)


@pytest.mark.parametrize(
    "text",
    ["", "UPPER", "a b", "http://a/b", "a@b", "a@sha256:12", f"a@{DIGEST}@{DIGEST}", "a/../b", "a:", "a?b", "x" * 500],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_reference(text)


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(InvalidInput, match=f"names port {port}"):
        parse_reference(f"127.0.0.1:{port}/a")


def test_a_registry_is_read() -> None:
    for text in ("docker.io", "quay.io", "localhost", "localhost:5000", "[::1]:5000", "registry:443"):
        assert parse_registry(text) == text
    assert parse_registry("index.docker.io") == "docker.io"


@pytest.mark.parametrize(
    "text", ["myregistry", "ghcr/ann", "ghcr.io/ann", "", "UP", "a@b", "h:99999", "http://h", "a b"]
)
def test_a_password_is_shown_to_the_host_that_is_named_or_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word alone would be a namespace of Docker Hub, which would be shown the password."""
    monkeypatch.setattr(Transport, "send", lambda *_: pytest.fail("something was sent"))
    for act in (lambda: login(text, USER, PASSWORD), lambda: logout(text)):
        with pytest.raises(InvalidInput, match="is no registry"):
            act()


def test_names_here_and_there() -> None:
    assert parse_reference("docker.io/library/debian:12").local_name == "debian:12"
    assert parse_reference("localhost:5000/a").local_name == "localhost:5000/a:latest"
    assert parse_reference(f"debian@{DIGEST}").local_name is None
    assert host_of("docker.io") == "registry-1.docker.io"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.8.7", "::1"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "128.0.0.1", "127.0.0.1.example.com", "::2", "", None])
def test_other_machines_are_not_this_one(host: str | None) -> None:
    assert not is_loopback(host)


# What servers ask for


@pytest.mark.parametrize(
    ("field", "challenges"),
    [
        ('Basic realm="a b"', [("basic", {"realm": "a b"})]),
        ('Bearer realm="https://a/t",service="s",scope="x:y:pull,push"',
         [("bearer", {"realm": "https://a/t", "service": "s", "scope": "x:y:pull,push"})]),
        ('BEARER Realm = "a" , service=s, Basic realm="q\\"uo\\\\te"',
         [("bearer", {"realm": "a", "service": "s"}), ("basic", {"realm": 'q"uo\\te'})]),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YWJj==, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        (",, Basic realm=x ,", [("basic", {"realm": "x"})]),
        ("", []),
        ("=", []),
    ],
)  # fmt: skip
def test_a_challenge_is_read(field: str, challenges: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(field) == [Challenge(*each) for each in challenges]


# Where credentials are


@pytest.mark.parametrize("key", ["h:5000", "https://h:5000", "http://h:5000/v1/", "https://h:5000/v2/"])
def test_dockers_file_is_read(home: Path, key: str) -> None:
    keep(home, {"auths": {key: auth("u", "p:q"), "h": auth("other", "x")}})
    assert find_credentials("h:5000") == Credentials("u", "p:q")
    assert find_credentials("elsewhere") is None


def test_a_key_as_it_is_spelled_comes_first(home: Path) -> None:
    for keys in (["h", "http://h/v1/"], ["http://h/v1/", "h"]):
        keep(home, {"auths": {key: auth(key, "p") for key in keys}})
        assert find_credentials("h") == Credentials("h", "p")


def test_docker_hub_has_a_key_of_its_own(home: Path) -> None:
    keep(home, {"auths": {"https://index.docker.io/v1/": auth("u", "p")}})
    assert find_credentials("docker.io", "library/debian") == Credentials("u", "p")


def test_podmans_file_comes_first_and_knows_repositories(home: Path) -> None:
    keep(home, {"auths": {"h": auth("docker", "p")}})
    keep(home, {"auths": {"h/team": auth("team", "p"), "h": auth("podman", "p")}}, "run/containers/auth.json")
    assert find_credentials("h", "team/app") == Credentials("team", "p")
    assert find_credentials("h", "teams/app") == Credentials("podman", "p")


def test_the_file_that_is_named_is_the_only_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(home, {"auths": {"h": auth("docker", "p")}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "named.json"))
    assert find_credentials("h") is None
    keep(home, {"auths": {"h": {"identitytoken": "t"}}}, "named.json")
    assert find_credentials("h") == Credentials("", "", "t")


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"h": {"auth": "%%"}}}', '{"auths": {"h": {"auth": "YQ=="}}}'])
def test_a_damaged_file_is_told(home: Path, text: str) -> None:
    keep(home, text)
    with pytest.raises(CorruptError, match=r"config\.json"):
        find_credentials("h")


@pytest.fixture
def helper(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docker-credential-test, which keeps credentials in a directory."""
    script = f"""#!{sys.executable}
import json, os, pathlib, sys
given = sys.stdin.read()
place = pathlib.Path({str(home / "kept")!r}); place.mkdir(exist_ok=True)
if sys.argv[1] == "store":
    document = json.loads(given)
    (place / document["ServerURL"].replace("/", "_")).write_text(given)
    sys.exit()
path = place / given.strip().replace("/", "_")
if not path.exists():
    print("credentials not found in native keychain"); sys.exit(1)
if sys.argv[1] == "erase":
    path.unlink()
else:
    text = path.read_text()
    print(text); sys.exit(text == "broken")
"""
    program = home / "bin/docker-credential-test"
    program.parent.mkdir()
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (home / "kept").mkdir()
    return home / "kept"


def test_helpers_are_asked(home: Path, helper: Path) -> None:
    keep(home, {"credsStore": "test", "auths": {"h": {}}})
    assert find_credentials("h") is None
    (helper / "h").write_text(json.dumps({"ServerURL": "h", "Username": "u", "Secret": "p"}))
    assert find_credentials("h") == Credentials("u", "p")
    (helper / "h").write_text(json.dumps({"ServerURL": "h", "Username": "<token>", "Secret": "t"}))
    assert find_credentials("h") == Credentials("", "", "t")
    keep(home, {"credHelpers": {"h": "test", "g": "missing", "f": "../../bin/sh"}})
    assert find_credentials("h") == Credentials("", "", "t")
    assert find_credentials("other") is None
    with pytest.raises(NotFound, match="docker-credential-missing"):
        find_credentials("g")
    with pytest.raises(CorruptError, match="cannot be the name"):
        find_credentials("f")
    (helper / "h").write_text("broken")
    with pytest.raises(RegistryError, match="broken"):
        find_credentials("h")


# Being let in

needs_registry = pytest.mark.needs_tool("docker-registry")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that wants a password."""
    with Registry(tmp_path_factory.mktemp("basic"), "basic") as registry:
        yield registry


@pytest.fixture
def loaded(store: Store) -> Store:
    store.import_rootfs(io.BytesIO(IMAGE.layers[0]), "app:1")
    return store


@needs_registry
def test_a_password_lets_in(home: Path, loaded: Store, guarded: Registry) -> None:
    with pytest.raises(AccessDenied, match=f"wants credentials.*layerstore login {guarded.host}"):
        loaded.push("app:1", f"{guarded.host}/app:1")
    keep(home, {"auths": {guarded.host: auth(password="wrong")}})
    with pytest.raises(AccessDenied, match="does not let the user 'ann'"):
        loaded.push("app:1", f"{guarded.host}/app:1")
    keep(home, {"auths": {guarded.host: auth()}})
    loaded.push("app:1", f"{guarded.host}/app:1")
    assert loaded.pull(f"{guarded.host}/app:1").id == loaded.image("app:1").id


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    (tmp_path / "tokens").mkdir()
    with TokenServer(tmp_path / "tokens") as server:
        yield server


@pytest.fixture
def by_token(tmp_path: Path, tokens: TokenServer) -> Iterator[Registry]:
    (tmp_path / "by-token").mkdir()
    with Registry(tmp_path / "by-token", "token", tokens=tokens) as registry:
        yield registry


@needs_registry
def test_a_token_lets_in(home: Path, loaded: Store, tokens: TokenServer, by_token: Registry) -> None:
    keep(home, {"auths": {by_token.host: auth()}})
    loaded.push("app:1", f"{by_token.host}/public/app:1")
    assert tokens.asked == [("GET", ["repository:public/app:pull,push"], BASIC)]
    (home / "docker/config.json").unlink()
    assert loaded.pull(f"{by_token.host}/public/app:1").id == loaded.image("app:1").id
    assert tokens.asked[1:] == [("GET", ["repository:public/app:pull"], "")]
    with pytest.raises(AccessDenied, match="wants credentials for repository:private/app:pull"):
        loaded.pull(f"{by_token.host}/private/app:1")


@needs_registry
def test_who_may_not_is_told_so(home: Path, loaded: Store, tokens: TokenServer, by_token: Registry) -> None:
    keep(home, {"auths": {by_token.host: auth()}})
    with pytest.raises(AccessDenied, match=r"does not let the user 'ann' .* have repository:secret/app:pull,push"):
        loaded.push("app:1", f"{by_token.host}/secret/app:1")
    keep(home, {"auths": {by_token.host: auth(password="wrong")}})
    with pytest.raises(AccessDenied, match="does not let the user 'ann'"):
        loaded.push("app:1", f"{by_token.host}/public/app:1")


@needs_registry
def test_an_identity_token_gets_tokens(home: Path, loaded: Store, tokens: TokenServer, by_token: Registry) -> None:
    keep(home, {"auths": {by_token.host: {"identitytoken": tokens.identity_token}}})
    loaded.push("app:1", f"{by_token.host}/app:1")
    assert tokens.asked == [("POST", ["repository:app:pull,push"], tokens.identity_token)]


@needs_registry
def test_a_mount_asks_for_both_repositories(home: Path, loaded: Store, tokens: TokenServer, by_token: Registry) -> None:
    keep(home, {"auths": {by_token.host: auth()}})
    loaded.push("app:1", f"{by_token.host}/one:1")
    told: list[str] = []
    loaded.push("app:1", f"{by_token.host}/two:1", progress=lambda progress: told.append(progress.stage))
    assert "mounted" in told
    assert tokens.asked[-1][1] == ["repository:one:pull", "repository:two:pull,push"]


@needs_registry
def test_a_token_that_is_no_more_good_is_replaced(
    home: Path, loaded: Store, tokens: TokenServer, by_token: Registry
) -> None:
    keep(home, {"auths": {by_token.host: auth()}})
    with Proxy(by_token.port) as proxy:
        keep(home, {"auths": {proxy.host: auth()}})
        field = {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="registry of the tests"'}
        proxy.faults.append(Fault("PUT", "/manifests/", status=401, fields=field))
        loaded.push("app:1", f"{proxy.host}/app:1")
    assert len(tokens.asked) == 2


@pytest.mark.parametrize("kind", ["password", "identity token"])
def test_scopes_that_a_registry_adds_are_asked_for(tokens: TokenServer, kind: str) -> None:
    who = Credentials(USER, PASSWORD, tokens.identity_token if kind == "identity token" else "")
    origin = ("http", "127.0.0.1", 80)
    authorization = Authorization("127.0.0.1:80", origin, lambda: who, Transport(), Patience())
    said = "repository:app:pull repository:below/app:pull,push registry:catalog:*"
    ours = ["repository:app:push,pull"]
    authorization.challenged([Challenge("bearer", {"realm": tokens.realm, "scope": said})], ours, None)
    authorization.header(ours)
    assert tokens.asked[-1][1] == [*ours, *said.split()[1:]]
    authorization.header(("repository:other:pull",))
    assert tokens.asked[-1][1] == ["repository:other:pull"]
    authorization.challenged([Challenge("bearer", {"realm": tokens.realm, "scope": said})], (), None)
    authorization.header(())
    assert tokens.asked[-1][1] == []


@pytest.mark.parametrize("life", [10**400, float("nan"), "x", [], -1])
def test_a_token_that_lasts_for_no_time_there_is(tokens: TokenServer, life: Any) -> None:
    tokens.life_seconds = life
    authorization = Authorization("h:80", ("http", "127.0.0.1", 80), lambda: None, Transport(), Patience())
    authorization.challenged([Challenge("bearer", {"realm": tokens.realm})], ("repository:public/a:pull",), None)
    try:
        assert authorization.header(("repository:public/a:pull",))
    except RegistryError as error:
        assert "gave no token that can be used" in str(error)


# What is not told


@needs_registry
def test_a_redirect_takes_no_credentials_along(home: Path, store: Store, guarded: Registry) -> None:
    put = {"authorization": BASIC}
    digest = put_blob(guarded.port, "app", compressed(IMAGE.layers[0], "gzip"), **put)
    with Proxy(guarded.port) as proxy, Proxy(guarded.port) as other:
        keep(home, {"auths": {proxy.host: auth(), other.host: auth()}})
        elsewhere = Fault("GET", digest, status=307, fields={"Location": f"http://{other.host}/x"})
        proxy.faults.append(elsewhere)
        other.faults.append(Fault("GET", "/x", status=200, body=compressed(IMAGE.layers[0], "gzip")))
        put_blob(guarded.port, "app", IMAGE.config, **put)
        document = manifest_of(IMAGE)
        fields = {"Content-Type": document["mediaType"], "Authorization": BASIC}
        assert ask(guarded.port, "PUT", "/v2/app/manifests/1", json.dumps(document).encode(), fields)[0] == 201
        store.pull(f"{proxy.host}/app:1")
        (followed,) = other.requests
        assert "Authorization" not in followed.fields
        assert proxy.requests[-1].fields["Authorization"] == BASIC


@needs_registry
def test_who_is_asked_along_a_redirect_gets_no_credentials(
    home: Path, loaded: Store, guarded: Registry, tokens: TokenServer
) -> None:
    """Elsewhere one is sent on to a token server: that would be shown the registry's password."""
    keep(home, {"auths": {guarded.host: auth()}})
    loaded.push("app:1", f"{guarded.host}/asked:1")
    loaded.remove_image("app:1")
    loaded.collect_garbage()
    with Proxy(guarded.port) as proxy, Proxy(guarded.port) as other:
        keep(home, {"auths": {proxy.host: auth()}})
        field = {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="s"'}
        other.faults.append(Fault("GET", "/x", times=9, status=401, fields=field))
        proxy.faults.append(Fault("GET", "/blobs/", status=307, fields={"Location": f"http://{other.host}/x"}))
        proxy.faults[0].times = 9
        with pytest.raises(RegistryError, match="answers 401"):
            loaded.pull(f"{proxy.host}/asked:1")
        assert other.count("GET", "/x") == 1
    assert tokens.asked == []


def authorization_of(registry: str, who: Credentials | None) -> Authorization:
    origin = origin_of(f"https://{host_of(registry)}")
    return Authorization(registry, origin, lambda: who, Transport(), Patience())


@pytest.mark.parametrize("registry", ["docker.io", "h.example.com", "h.example.com:443", "h.example.com:80"])
@pytest.mark.parametrize("who", [None, Credentials(USER, PASSWORD)])
def test_what_is_denied_names_the_registry_to_log_in_to(registry: str, who: Credentials | None) -> None:
    authorization = authorization_of(registry, who)
    with pytest.raises(AccessDenied, match=f"^{registry} .*`layerstore login {registry}`"):
        authorization.challenged([], ("repository:app:pull",), None if who is None else who.basic)


@needs_registry
def test_no_password_goes_to_a_realm_elsewhere_without_tls(home: Path, store: Store, tokens: TokenServer) -> None:
    """The registry is reached by a name that is not loopback's; its realm is plain HTTP."""
    who = Credentials(USER, PASSWORD)
    authorization = authorization_of("registry.example.com", who)
    authorization.challenged([Challenge("bearer", {"realm": tokens.realm})], ("x",), None)
    with pytest.raises(AccessDenied, match="a password would not be secret"):
        authorization.header(("x",))
    assert tokens.asked == []


def test_credentials_do_not_show() -> None:
    assert PASSWORD not in repr(Credentials(USER, PASSWORD))


# TLS


@needs_registry
@pytest.mark.needs_tool("openssl")
def test_tls_with_an_authority_of_ones_own(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry(tmp_path) as registry, Proxy(registry.port, certificate(tmp_path)) as secure:
        put_image(registry.port, "app", "1", IMAGE)
        with pytest.raises(RegistryError, match=r"certificate verify failed.*--ca-file"):
            store.pull(f"{secure.host}/app:1")
        assert secure.requests == []
        assert store.pull(f"{secure.host}/app:1", ca_file=tmp_path / "certificate.pem").id == IMAGE.id
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert store.pull(f"localhost:{secure.port}/app:1").id == IMAGE.id
        with pytest.raises(InvalidInput, match="no file of certificates"):
            store.pull(f"{secure.host}/app:1", ca_file=tmp_path / "key.pem")
        with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
            store.pull(f"{secure.host}/app:1", ca_file=tmp_path / "missing.pem")


@needs_registry
@pytest.mark.needs_tool("openssl")
def test_plain_http_to_a_registry_with_tls_is_told(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, first_seconds=0)
    with Registry(tmp_path, tls=True) as registry, Proxy(registry.port, certificate(tmp_path)) as other:
        for host in (registry.host, other.host):  # one says so, one hangs up
            with pytest.raises(RegistryError, match="if it speaks TLS, leave out --plain-http"):
                store.pull(f"{host}/app:1", plain_http=True)


# What is on the way


def test_that_nothing_answers_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, first_seconds=0)
    place = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryError, match=f"nothing answers at {place} .Connection refused.; is the registry runn"):
        store.pull(f"{place}/app:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("https_proxy", place)
    with pytest.raises(RegistryError, match=r"the proxy for h\.example\.com gives no connection: Connection refused"):
        store.pull("h.example.com/app:1")
    for proxy in ("socks5://ann:secret@h:1", "ann:secret@h:99999"):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(RegistryError, match=r"no way to h\.example\.com") as caught:
            store.pull("h.example.com/app:1")
        assert "secret" not in str(caught.value)


@needs_registry
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_proxy_is_shown_its_password(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with Registry(tmp_path) as registry, Proxy(registry.port) as proxy:
        put_image(registry.port, "app", "1", IMAGE)
        monkeypatch.setenv("http_proxy", f"{scheme}ann:%C3%B6p%40n@{proxy.host}")
        assert store.pull("h.example.com/app:1", plain_http=True).id == IMAGE.id
        shown = {request.fields["proxy-authorization"] for request in proxy.requests}
        assert shown == {Credentials("ann", "öp@n").basic}


# By command


def layerstore(home: Path, *arguments: str | bytes, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "layerstore", "--root", str(home / "store"), *arguments]
    # Without a terminal of its own: else a password is asked for there.
    options: dict[str, Any] = {"errors": "surrogateescape", "start_new_session": True}
    return subprocess.run(command, input=given, capture_output=True, text=True, **options)


@needs_registry
@pytest.mark.parametrize("kept_by", ["file", "helper"])
def test_login_and_logout(home: Path, loaded: Store, guarded: Registry, helper: Path, kept_by: str) -> None:
    loaded.close()
    keep(home, {"credsStore": "test"} if kept_by == "helper" else {"other": "stays"})
    target = f"{guarded.host}/cli:1"
    refused = layerstore(home, "login", "-u", USER, "--password-stdin", guarded.host, given="wrong\n")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"layerstore login: {guarded.host} does not let the user 'ann' in with this password; is it mistyped?\n"
    )
    done = layerstore(home, "login", "-u", USER, "--password-stdin", guarded.host, given=PASSWORD + "\n")
    assert done.returncode == 0, done.stderr
    config = home / "docker/config.json"
    if kept_by == "file":
        assert json.loads(config.read_text()) == {"other": "stays", "auths": {guarded.host: auth()}}
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
    else:
        assert json.loads(config.read_text()) == {"credsStore": "test"}
    assert layerstore(home, "push", "app:1", target).returncode == 0
    assert layerstore(home, "logout", guarded.host).returncode == 0
    assert find_credentials(guarded.host) is None
    assert layerstore(home, "pull", target).returncode == 1
    assert "no credentials" in layerstore(home, "logout", guarded.host).stderr


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        (("h.example.com",), "", "Username: layerstore login: nobody answers"),
        (("-u", USER, "h.example.com"), "", "nobody answers here; give --username"),
        (("-u", USER, "--password-stdin", "h.example.com"), "a\udcff", "the password is not UTF-8"),
        (("-u", b"\xff", "--password-stdin", "h.example.com"), "a", "is not UTF-8"),
        (("-u", USER, "h.example.com"), "a\udcff\n", "is not UTF-8"),
        (("--password-stdin", "h.example.com"), "a", "the user is given by --username"),
    ],
)
def test_a_login_that_lacks_a_user_or_password(
    home: Path, arguments: tuple[str | bytes, ...], given: str, said: str
) -> None:
    done = layerstore(home, "login", *arguments, given=given)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_credentials_that_are_no_text_are_told(home: Path) -> None:
    keep(home, {"auths": {"h": {"username": "u", "password": "\ud800"}}})
    with pytest.raises(InvalidInput, match="not UTF-8"):
        find_credentials("h")


STALE = auth("old", "stale")


@needs_registry
@pytest.mark.parametrize(
    "before",
    [
        {"run/containers/auth.json": {"auths": {"HOST": STALE, "other": STALE}}},
        {"named.json": {}, "docker/config.json": {"auths": {"HOST": STALE}}},
        {"docker/config.json": {"credsStore": "test", "auths": {"HOST": STALE, "other": STALE}}},
        {"docker/config.json": {"credHelpers": {"HOST": "test"}, "auths": {"https://HOST": STALE}}},
        {"docker/config.json": {"auths": {"HOST": STALE, "http://HOST/v1/": STALE}}},
        {"docker/config.json": {"auths": {"http://HOST/v1/": STALE, "HOST/team": STALE}}},
        {"docker/config.json": {"auths": None}},
        {"run/containers/auth.json": {"credsStore": "test"}},
    ],
)
def test_what_login_keeps_is_found_and_logout_leaves_nothing(
    home: Path, guarded: Registry, helper: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any]
) -> None:
    for name, document in before.items():
        keep(home, json.dumps(document).replace("HOST", guarded.host), name)
    if "named.json" in before:
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "named.json"))
    login(guarded.host, USER, PASSWORD)
    assert find_credentials(guarded.host, "app") == Credentials(USER, PASSWORD)
    logout(guarded.host)
    assert find_credentials(guarded.host, "app") is None
    assert list(helper.iterdir()) == []
    for name, document in before.items():
        if name != "docker/config.json" or "named.json" not in before:
            left = json.loads((home / name).read_text()).get("auths") or {}
            others = {key for key in document.get("auths") or {} if key in ("other", "HOST/team")}
            assert left.keys() == {key.replace("HOST", guarded.host) for key in others}
    with pytest.raises(NotFound, match="no credentials"):
        logout(guarded.host)


def test_logout_is_of_every_file_that_is_read(home: Path) -> None:
    keep(home, {"auths": {"https://index.docker.io/v1/": STALE}})
    keep(home, {"auths": {"docker.io": STALE}}, "run/containers/auth.json")
    left = home / "docker" / ".config.json.layerstore-0123456789ab"
    left.write_text("what a login had written when it was killed")
    logout("docker.io")
    assert find_credentials("docker.io") is None
    assert not left.exists()


@needs_registry
def test_what_a_registry_says_is_no_order_to_the_terminal(home: Path, tmp_path: Path) -> None:
    orders = "\x1b]0;pwned\x07\x9b2J"
    with Registry(tmp_path) as registry, Proxy(registry.port) as proxy:
        put_image(registry.port, "app", "1", IMAGE)
        digest = {"Docker-Content-Digest": f"sha256:{orders}", "Content-Type": manifest_of(IMAGE)["mediaType"]}
        field = {"WWW-Authenticate": f'Bearer realm="http://example.com/{orders}"'}
        keep(home, {"auths": {proxy.host: auth()}})
        body = json.dumps(manifest_of(IMAGE)).encode()
        for fault in (Fault("GET", "/v2/", status=200, fields=digest, body=body), Fault("GET", "/v2/", 9, 401, field)):
            proxy.faults = [fault]
            said = layerstore(home, "pull", f"{proxy.host}/app:1").stderr
            assert r"\x1b]0;pwned\x07\x9b2J" in said
            assert said.removesuffix("\n").isprintable()


def test_a_message_keeps_its_lines_and_letters() -> None:
    error = OSError(2, "No such file", "\udcff\x1b/ä")
    error.add_note("line 1\n\tline 2")
    assert told(error) == "line 1\n\tline 2: \\udcff\\x1b/ä: No such file"


@needs_registry
def test_a_signature_is_not_shown(home: Path, store: Store, tmp_path: Path) -> None:
    with Registry(tmp_path) as registry, Proxy(registry.port) as proxy:
        proxy.faults = [
            Fault("GET", "/v2/", status=307, fields={"Location": "/x?signature=secret"}),
            Fault("GET", "/x", status=200, body=b" " * (5 << 20)),
        ]
        with pytest.raises(LimitExceeded, match="the manifest of 1 is too large") as caught:
            store.pull(f"{proxy.host}/app:1")
        assert "secret" not in str(caught.value)


@needs_registry
def test_what_pull_and_push_print(home: Path, tmp_path: Path) -> None:
    with Registry(tmp_path) as registry:
        digest = put_image(registry.port, "app", "1", IMAGE)
        name, layer = f"{registry.host}/app:1", IMAGE.diff_ids[0][7:19]
        assert layerstore(home, "pull", name).stdout.splitlines() == [
            f"{layer}: Pulling fs layer",
            f"{layer}: Pull complete",
            f"Digest: {digest}",
            f"Status: Downloaded newer image for {name}",
            IMAGE.id,
        ]
        assert layerstore(home, "pull", name).stdout.splitlines()[::2] == [
            f"{layer}: Already exists",
            f"Status: Image is up to date for {name}",
        ]
        assert layerstore(home, "pull", "-q", name).stdout == f"{IMAGE.id}\n"
        other = f"{registry.host}/other:1"
        assert layerstore(home, "push", name, other).stdout.splitlines()[1:3] == [
            f"{layer}: Preparing",
            f"{layer}: Mounted from app",
        ]
        assert layerstore(home, "push", name).stdout.splitlines() == [
            f"The push refers to {name}",
            f"{layer}: Preparing",
            f"{layer}: Layer already exists",
            f"{name}: digest: {digest} size: {len(json.dumps(manifest_of(IMAGE)))}",
        ]
        assert layerstore(home, "push", "-q", name).stdout == f"{digest}\n"
