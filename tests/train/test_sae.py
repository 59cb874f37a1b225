"""Loading refuses broken SAE folders, and encoding refuses inputs of the wrong shape."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.store.reading.reader import ActivationCache
from saecache.train import SAE, Pairs, TrainConfig, load_sae, run


@pytest.fixture(scope="module")
def folder(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig.model_validate(
        {
            "variants": [{"kind": "batch_topk", "k": 3}],
            "num_latents": 48,
            "batch_rows": 128,
            "steps": 2,
            "log": {"progress": False},
        }
    )
    return run(config, cache, tmp_path_factory.mktemp("run") / "run").saes["batch_topk_k3"]


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        load_sae(folder).save(tmp_path / "copy")
        return tmp_path / "copy"

    return make


def test_no_sae_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no SAE in .*expected .*cfg.json and weights.safetensors"):
        load_sae(tmp_path)


def test_the_folder_above_an_sae(copy: Callable[[], Path], tmp_path: Path) -> None:
    copy().rename(tmp_path / "sae")
    assert load_sae(tmp_path).cfg.name == "batch_topk_k3"


def test_a_run_folder_with_one_sae_or_several(folder: Path, tmp_path: Path) -> None:
    sae = load_sae(folder)
    sae.save(tmp_path / "first" / "sae")
    assert torch.equal(load_sae(tmp_path).W_enc, sae.W_enc)
    sae.save(tmp_path / "second" / "sae")
    with pytest.raises(UsageError, match=r"holds 2 SAEs, name one of them: .*first.*second"):
        load_sae(tmp_path)
    (tmp_path / "first" / "sae" / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match=r"expected cfg.json and weights.safetensors there"):
        load_sae(tmp_path / "first")


def test_the_flag_that_was_gives_pairs_and_says_what_to_call(folder: Path) -> None:
    sae, x = load_sae(folder), torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    with pytest.warns(DeprecationWarning, match=r"call encode_sparse\(x\) for pairs"):
        pairs = sae.encode(x, sparse=True)
    assert isinstance(pairs, Pairs)
    assert torch.equal(pairs.to_dense(), sae.encode(x))
    with pytest.warns(DeprecationWarning, match="leave it out"):
        assert torch.equal(sae.encode(x, sparse=False), sae.encode(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "SAE format 99; this version of saecache reads 1"),
        ({"num_latents": 47}, r"tensor W_enc should be float32 \[47, 24\], got float32 \[48, 24\]"),
        ({"variant": {"kind": "quantum"}}, "quantum"),
        ({"kind": "quantum"}, r"SAE of kind 'quantum', which .* does not know; it knows .*batch_topk"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_config_that_contradicts_is_reported(
    copy: Callable[[], Path], changes: dict[str, object], message: str
) -> None:
    path = copy() / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UsageError, match=message):
        load_sae(path.parent)


@pytest.mark.parametrize("content", [b"", b"not tensors at all, whatever they say", b"\x80\x02."])
def test_torn_weights_are_reported(copy: Callable[[], Path], content: bytes) -> None:
    path = copy() / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="does not hold a readable SAE"):
        load_sae(path.parent)


def test_wrong_inputs_are_reported(folder: Path) -> None:
    sae = load_sae(folder)
    with pytest.raises(UsageError, match=r"got \(2, 5, 24\): x.flatten\(0, -2\) makes rows of sequences"):
        sae.encode(torch.zeros(2, 5, 24))
    with pytest.raises(UsageError, match=r"expects a tensor, got ndarray: torch.as_tensor\(x\) makes one"):
        sae.encode(np.zeros((5, 24), np.float32))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"expects \[rows, 24\], got \(5, 23\)"):
        sae.encode(torch.zeros(5, 23))
    for call in (sae, sae.encode, sae.encode_sparse):
        with pytest.raises(UsageError, match=r"expects \[rows, 24\], got \(48, 12\)"):
            call(torch.zeros(48, 12))  # as many numbers as 24 rows of the right width
        with pytest.raises(UsageError, match=r"floating-point numbers, got torch.int64"):
            call(torch.zeros(5, 24, dtype=torch.int64))
    with pytest.raises(UsageError, match="input must be 'normalized' or 'raw', got 'cooked'"):
        sae.encode(torch.zeros(5, 24), input="cooked")  # type: ignore[arg-type]


@pytest.mark.parametrize("num_latents", [47, 49])
def test_pairs_of_another_number_of_latents_are_not_decoded(folder: Path, num_latents: int) -> None:
    last = torch.tensor([num_latents - 1])
    pairs = Pairs.from_rows(torch.tensor([0]), last, torch.ones(1), 1, num_latents)
    with pytest.raises(UsageError, match=f"expected codes of 48 latents, got {num_latents}"):
        load_sae(folder).decode(pairs)


def test_forward_in_parts_and_in_half_precision(
    folder: Path, cache: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = load_sae(folder)
    x = next(cache.batches("resid", 100))
    whole = sae(x)
    monkeypatch.setattr("saecache.train.sae.ENCODE_ROWS", 7)
    torch.testing.assert_close(sae(x), whole)
    assert sae(x.half()).dtype == torch.float16
    assert sae(x.reshape(4, 25, 24)).shape == (4, 25, 24)


def test_an_sae_is_a_module_without_trainable_parameters(folder: Path) -> None:
    sae = load_sae(folder)
    assert isinstance(sae, SAE) and isinstance(sae, torch.nn.Module)
    assert set(sae.state_dict()) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    assert not list(sae.parameters())
    assert not sae(torch.zeros(2, 24, requires_grad=True)).requires_grad


@pytest.mark.parametrize("number_type", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_refused(folder: Path, number_type: torch.dtype) -> None:
    sae, x = load_sae(folder).to(number_type), torch.zeros(5, 24)
    for call in (lambda: sae(x), lambda: sae.encode(x), lambda: sae.decode(torch.zeros(5, 48))):
        with pytest.raises(UsageError, match=rf"its weights are {number_type}: load it again, or call"):
            call()


def test_dense_codes_of_any_type_are_decoded_in_float32(folder: Path) -> None:
    sae = load_sae(folder)
    codes = torch.rand(5, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = sae.decode(codes.float())
    assert torch.equal(sae.decode(codes), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sae.decode(codes.float()), expected)


def test_the_device_of_an_sae_is_named_as_that_of_a_run(folder: Path) -> None:
    assert load_sae(folder, "auto").W_enc.device.type in ("cpu", "cuda", "mps")
    assert load_sae(folder, torch.device("cpu")).W_enc.device.type == "cpu"
    with pytest.raises(UsageError, match=r"device='gpu' cannot be used here: .*available: .*cpu"):
        load_sae(folder, "gpu")


def test_an_sae_says_what_it_is(folder: Path) -> None:
    assert repr(load_sae(folder)).startswith("SAE('batch_topk_k3', batch_topk, 48 latents of rows of width ")
