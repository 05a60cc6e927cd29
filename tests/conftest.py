"""What several tests share: places, a tiny model, a photo."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from facestyle.card import ModelCard
from facestyle.checkpoint import save_model
from facestyle.families.stargan_v2.networks import Generator, MappingNetwork, Sizes, StyleEncoder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The same sums on any machine, and no waiting for a second core that is busy."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or fills the user's cache, and none goes to the network."""
    monkeypatch.setenv("FACESTYLE_HOME", str(tmp_path / "facestyle-home"))
    monkeypatch.setenv("FACESTYLE_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """A shell has what it starts with ``&`` ignore it, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts and data beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not here")
    return folder


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photo with one face: the NASA portrait."""
    return ROOT / "examples" / "astronaut.jpg"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random StarGAN v2 of 32 px with a card, as ``facestyle train`` would write it."""
    torch.manual_seed(0)
    sizes = Sizes(image_size=32, first_width=8, max_width=16, mapping_width=32)
    parts = {
        "generator": Generator(sizes).state_dict(),
        "mapping_network": MappingNetwork(sizes).state_dict(),
        "style_encoder": StyleEncoder(sizes).state_dict(),
    }
    card = ModelCard(
        family="stargan-v2",
        image_size=32,
        domains=("female", "male"),
        styles=("latent", "reference"),
        latent_dim=16,
        alignment="celeba-square",
        name="tiny",
        licence="none: random weights",
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, parts, card)
    return path
