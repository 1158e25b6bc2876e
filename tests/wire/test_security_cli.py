"""`trivec serve` with certificates on both sides, tokens and a port for management, and `trivec token`."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.command_line import trivec
from tests.rpc.credentials import AccessFile, Authority, authorization, token_of
from tests.serving_process import ServingProcess, serve
from tests.small_repository import make_repository

GRPCURL = Path(sys.executable).parent / "grpcurl"
TRITONCLIENT = Path(__file__).parents[2] / ".venv-tritonclient" / "bin" / "python"
SECRET = "Quetzalcoatlus"  # noqa: S105 - a word of a text that must not be logged
READER, OPERATOR, WRONG = (
    tuple(authorization(token)) for token in (token_of("reader"), token_of("operator"), "wrong-hunter2")
)


@dataclass
class Secured:
    """A server that asks for certificates and tokens, and the files of a client."""

    process: ServingProcess
    access: AccessFile
    ca: Path
    certificate: Path
    key: Path

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(*(path.read_bytes() for path in (self.ca, self.key, self.certificate)))

    def grpcurl(self, *arguments: str, port: int | None = None) -> "subprocess.CompletedProcess[str]":
        """Flags, and the symbol last."""
        *flags, symbol = arguments
        target = self.process.target if port is None else f"127.0.0.1:{port}"
        return subprocess.run(
            [str(GRPCURL), "-cacert", str(self.ca), *flags, target, *symbol.split()],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    @property
    def pair(self) -> tuple[str, ...]:
        return "-cert", str(self.certificate), "-key", str(self.key)


@pytest.fixture(scope="module")
def secured(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    authority = Authority(directory)
    tls = authority.server(client_ca=authority.file)
    pair = authority.pair("client.example.org", common_name="client")
    certificate, key = directory / "client.pem", directory / "client.key"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    access = AccessFile(directory / "access.toml").write(reader={}, operator={"scopes": ["admin"]})
    flags = [
        *("--tls-certificate", tls.certificate, "--tls-private-key", tls.private_key, "--tls-client-ca", tls.client_ca),
        *("--access-file", access.path, "--management-port", "0", "--log-level", "debug"),
    ]
    with serve(mini_repository, *map(str, flags), log_path=directory / "server.log") as process:
        yield Secured(process, access, authority.file, certificate, key)


def test_grpcurl_embeds_with_certificate_and_token(secured: Secured) -> None:
    header = ("-H", "authorization: Bearer reader-token")
    request = json.dumps({"texts": ["人工智能"]})
    done = secured.grpcurl(*secured.pair, *header, "-d", request, "trivec.v1.EmbeddingService/Embed")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["embeddings"]) == 1


def test_grpcurl_without_a_certificate_does_not_connect(secured: Secured) -> None:
    done = secured.grpcurl("-connect-timeout", "2", "list")
    assert done.returncode != 0
    assert "Failed to" in done.stderr


def test_grpcurl_without_a_token_is_told_of_no_service(secured: Secured) -> None:
    done = secured.grpcurl(*secured.pair, "list")
    assert done.returncode != 0
    assert "no token: send the metadata" in done.stderr


def test_tritons_client_infers_with_certificate_and_token(secured: Secured) -> None:
    program = """
import sys
import numpy, tritonclient.grpc
target, ca, key, certificate = sys.argv[1:]
client = tritonclient.grpc.InferenceServerClient(
    target, ssl=True, root_certificates=ca, private_key=key, certificate_chain=certificate
)
text = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
text.set_data_from_numpy(numpy.array([[b"hello"]], dtype=object))
for token in ("reader-token", "wrong"):
    try:
        answer = client.infer("m3-mini", [text], headers={"authorization": "Bearer " + token})
        print(answer.as_numpy("dense").shape)
    except tritonclient.utils.InferenceServerException as error:
        print(error.status())
"""
    arguments = (secured.process.target, *map(str, (secured.ca, secured.key, secured.certificate)))
    done = subprocess.run(
        [str(TRITONCLIENT), "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["(1, 384)", "StatusCode.UNAUTHENTICATED"], done.stderr


def test_the_port_for_management_is_named_in_the_greeting_and_manages(secured: Secured) -> None:
    found = re.search(r"management on port (\d+)", secured.process.greeting)
    assert found is not None
    request = json.dumps({"model_name": "m3-mini"})
    method = "inference.GRPCInferenceService/RepositoryModelUnload"
    # The mode of control is `none`: it refuses what the gate lets through.
    done = secured.grpcurl(*secured.pair, "-d", request, method, port=int(found[1]))
    assert "explicit model load / unload is not allowed" in done.stderr
    header = ("-H", "authorization: Bearer reader-token")
    refused = secured.grpcurl(*secured.pair, *header, "-d", request, method)
    assert "needs the server's management port" in refused.stderr


def test_the_snippet_of_the_greeting_runs_with_files_and_token_put_in(secured: Secured) -> None:
    lines = secured.process.greeting.splitlines()
    snippet = "\n".join(line[2:] for line in lines[lines.index("or in this server's Python environment:") + 1 :])
    for word, value in (
        ("CA.pem", secured.ca),
        ("CLIENT.pem", secured.certificate),
        ("CLIENT.key", secured.key),
        ("TOKEN", "reader-token"),
    ):
        assert word in snippet
        snippet = snippet.replace(word, str(value))
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_no_text_and_no_token_is_logged_even_at_debug_level(secured: Secured) -> None:
    with grpc.secure_channel(secured.process.target, secured.credentials) as channel:
        stub = EmbeddingServiceStub(channel)
        service = "/inference.GRPCInferenceService"
        model_infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{service}/ModelInfer")
        stream_infer: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"{service}/ModelStreamInfer"
        )
        too_long = f"{SECRET} " * 2000

        def stream(*texts: str) -> Iterator[pb.EmbedStreamRequest]:
            return (pb.EmbedStreamRequest(request=pb.EmbedRequest(texts=[text])) for text in texts)

        def infer(text: str) -> bytes:
            request = kserve.ModelInferRequest(model_name="m3-mini")
            request.inputs.add(name="text", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(
                text.encode()
            )
            return request.SerializeToString()

        stub.Embed(pb.EmbedRequest(texts=[SECRET]), metadata=READER)
        stub.Score(pb.ScoreRequest(query=SECRET, passages=[SECRET]), metadata=READER)
        stub.Tokenize(pb.TokenizeRequest(texts=[SECRET]), metadata=READER)
        assert [each.HasField("error") for each in stub.EmbedStream(stream(SECRET, too_long), metadata=READER)]
        model_infer(infer(SECRET), metadata=READER)
        list(stream_infer(iter([infer(SECRET), infer(too_long)]), metadata=READER))
        failing = (
            lambda: stub.Embed(pb.EmbedRequest(texts=[too_long]), metadata=READER),
            lambda: stub.Embed(pb.EmbedRequest(texts=[SECRET], model=SECRET[:5]), metadata=READER),
            lambda: stub.Tokenize(pb.TokenizeRequest(texts=[too_long]), metadata=READER),
            lambda: model_infer(infer(too_long), metadata=READER),
            lambda: stub.Embed(pb.EmbedRequest(texts=[SECRET]), metadata=WRONG),
            lambda: stub.Embed(pb.EmbedRequest(texts=[SECRET]), metadata=OPERATOR),
            lambda: list(stub.EmbedStream(stream(SECRET), metadata=WRONG)),
        )
        for call in failing:
            with pytest.raises(grpc.RpcError):
                call()
    log = secured.process.log
    assert "PERMISSION_DENIED" in log
    assert "identity=reader" in log
    for secret in (SECRET, "hunter2", "reader-token", "operator-token"):
        assert secret not in log
    assert secured.key.read_text().splitlines()[1] not in log


def test_log_texts_says_so_and_logs_texts_with_their_request(mini_repository: Path, tmp_path: Path) -> None:
    with (
        serve(mini_repository, "--log-texts", log_path=tmp_path / "server.log") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = EmbeddingServiceStub(channel)
        stub.Embed(pb.EmbedRequest(texts=[SECRET, "another"], request_id="this-one"))
        list(stub.EmbedStream(iter([pb.EmbedStreamRequest(request=pb.EmbedRequest(texts=["streamed"]))])))
        (warning,) = (line for line in server.log.splitlines() if "--log-texts" in line)
        assert "warning" in warning
        (line,) = (line for line in server.log.splitlines() if SECRET in line)
        assert "request_id=this-one" in line
        assert "another" in line
        assert "streamed" in server.log


def refusal(*flags: str | Path, repository: Path) -> str:
    finished = trivec("serve", "--model-repository", repository, "--grpc-port", "0", "--metrics-port", "-1", *flags)
    assert finished.code in {1, 2}, finished.err
    (line,) = (line for line in finished.err.splitlines() if line.startswith("error: "))
    assert "Traceback" not in finished.err
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])  # noqa: S104 - refused
def test_plain_text_beyond_this_machine_is_refused(tmp_path: Path, host: str) -> None:
    line = refusal("--host", host, repository=make_repository(tmp_path / "repository"))
    assert f"--host {host} is not loopback" in line
    assert "--tls-certificate" in line
    assert "--allow-insecure" in line


def test_what_is_wrong_with_the_files_is_one_line(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    authority = Authority(tmp_path)
    tls = authority.server()
    pair = ("--tls-certificate", tls.certificate, "--tls-private-key", tls.private_key)

    assert "--tls-private-key" in refusal("--tls-certificate", tls.certificate, repository=repository)
    assert "nowhere.toml: cannot be read" in refusal("--access-file", "nowhere.toml", repository=repository)
    assert "--management off" in refusal("--management", "off", "--management-port", "0", repository=repository)
    tls.private_key.write_bytes(authority.pair().key)
    assert "is not the private key of" in refusal(*pair, repository=repository)


def test_the_token_command_prints_a_token_and_the_entry_that_knows_it(secured: Secured) -> None:
    made = [trivec("token", "fresh", "--scope", "infer", "--scope", "admin") for _ in range(2)]
    assert made[0].out != made[1].out
    pattern = r"Token, shown this once: (\S+)\nEntry for the file of --access-file:\n\n(.*)"
    found = re.fullmatch(pattern, made[0].out, re.DOTALL)
    assert found is not None, made[0].out
    token, entry = found.groups()
    assert token not in entry
    secured.access.write_text(secured.access.path.read_text() + entry)
    with grpc.secure_channel(secured.process.target, secured.credentials) as channel:
        stub = EmbeddingServiceStub(channel)
        while True:
            # The server looks at the file every second.
            try:
                stub.Embed(pb.EmbedRequest(texts=["a"]), metadata=tuple(authorization(token)))
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017 - until it is taken up
            else:
                break


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, '"'])
def test_a_name_that_cannot_be_an_identitys_is_refused(name: str) -> None:
    finished = trivec("token", name)
    assert finished.code == 1
    assert finished.err.startswith("error: NAME must be")
    assert finished.out == ""
