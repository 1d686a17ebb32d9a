"""From observations to the features that hidden layers take: convolutions for images, and everything else as it is.

`make_features` chooses by the space and by --encoder. Images are seen by convolutions of their own, one for each key; a
class of the user's (module:Class) sees the whole observation instead.
"""

import importlib
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from rl.envs.observations import SMALLEST_FRAME, Keys, Obs, ObsKey, parts_of
from rl.errors import UserError, described, require

KINDS = ("auto", "mlp", "nature", "impala", "minatar")
OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)


def check_encoder(encoder: str, *, allow_import: bool) -> None:
    """Raises `UserError` for an encoder that does not exist, or may not be imported; imports nothing."""
    right = f"must be one of {', '.join(KINDS)}, or module:Class"
    require(encoder in KINDS or OWN.fullmatch(encoder) is not None, "--encoder", encoder, right)
    runs = f"imports, and so runs, the module {encoder.partition(':')[0]}; add --allow-import to permit it"
    require(allow_import or ":" not in encoder, "--encoder", encoder, runs)


def chosen(keys: Keys, names: tuple[str, ...], flag: str) -> Keys:
    """The keys that a flag names, or that lie under a name of its; all if it names none."""
    known = ", ".join(key.name for key in keys) or "one tensor without a name"
    for name in names:
        found = any(_is_under(key, name) for key in keys)
        require(found, flag, name, f"must be a key of the observation, which has {known}")
    return tuple(key for key in keys if not names or any(_is_under(key, name) for name in names))


def _is_under(key: ObsKey, name: str) -> bool:
    return bool(key.path) and f"{key.name}/".startswith(f"{name}/")


def check_images(keys: Keys, encoder: str) -> None:
    """Raises `UserError` if an encoder for images would see none."""
    has_images = encoder not in CONVOLUTIONS or any(key.is_image for key in keys)
    require(has_images, "--encoder", encoder, "is for images, and no observation is one; leave the flag out")


def make_features(keys: Keys, encoder: str) -> tuple[nn.Module | None, int]:
    """The module from an observation of floats (see `as_floats`) to features [..., F], and F.

    There is no module where the observation is the features: a vector.

    Raises:
        UserError: The encoder is for images, and there are none that it can see.
    """
    if ":" in encoder:
        features: nn.Module = OwnFeatures(keys, encoder)
    elif not keys[0].path and len(shape_of(keys[0])) == 1 and encoder in ("auto", "mlp"):
        return None, keys[0].num_features
    else:
        features = Features(keys, encoder)
    with torch.no_grad():
        zeros = {key.name: torch.zeros(1, *shape_of(key)) for key in keys}
        return features, features(zeros if keys[0].path else zeros[""]).shape[-1]


def shape_of(key: ObsKey) -> tuple[int, ...]:
    """The shape of an observation's tensor as encoders see it: an image [C, H, W], a one-hot vector, or as it is."""
    return key.planes if key.is_image else (key.num_features,) if key.num_values else key.shape


def as_floats(keys: Keys, obs: Obs, dtype: torch.dtype, numbers: Tensor | None = None) -> Obs:
    """Observations as encoders see them, of one floating-point dtype: [..., *shape_of(key)].

    Images are between 0 and 1 with their channels first, and discrete numbers one-hot vectors. `numbers`, if given,
    replace the float32 numbers [..., D] of the observation.
    """
    floats = [key for key in keys if key.dtype == "float32"]
    split = torch.split(numbers, [key.num_features for key in floats], dim=-1) if numbers is not None else ()
    given = dict(zip((key.name for key in floats), split, strict=False))
    parts = {}
    for key, part in zip(keys, parts_of(keys, obs), strict=True):
        rows = part.shape[: part.dim() - len(key.shape)]
        if key.name in given:
            part = given[key.name].reshape(rows + key.shape)
        parts[key.name] = _as_floats(key, part, rows).to(dtype)
    return parts if keys[0].path else parts[""]


def _as_floats(key: ObsKey, part: Tensor, rows: torch.Size) -> Tensor:
    if key.num_values:
        columns = part.reshape(*rows, len(key.num_values)).unbind(-1)
        counts = (torch.arange(number, device=part.device) for number in key.num_values)
        return torch.cat([column.unsqueeze(-1) == count for column, count in zip(columns, counts, strict=True)], dim=-1)
    if key.dtype == "uint8":
        part = part.float()
        if key.largest != 1:
            part.div_(key.largest)  # in place: frames are large, and these floats are nobody else's
    if key.is_image:
        part = part.unsqueeze(-3) if len(key.shape) == 2 else part if key.channels_first else part.movedim(-1, -3)
    return part


class Features(nn.Module):
    """Each key's features [..., F_k], one after the other."""

    def __init__(self, keys: Keys, encoder: str) -> None:
        super().__init__()
        self.keys = keys
        self.parts = nn.ModuleList(_part(key, encoder) for key in keys)

    def forward(self, obs: Obs) -> Tensor:
        """Features [..., F] of observations in floats."""
        features = [part(tensor) for part, tensor in zip(self.parts, parts_of(self.keys, obs), strict=True)]
        return features[0] if len(features) == 1 else torch.cat(features, dim=-1)


class OwnFeatures(nn.Module):
    """A class of the user's, which is given the shape of an observation, and then observations [B, ...]."""

    def __init__(self, keys: Keys, encoder: str) -> None:
        super().__init__()
        self.keys = keys
        shapes = {key.name: shape_of(key) for key in keys}
        module, _, name = encoder.partition(":")
        try:
            self.own = getattr(importlib.import_module(module), name)(shapes if keys[0].path else shapes[""])
        except Exception as error:
            raise UserError(f"--encoder {encoder}: {described(error)}") from error
        require(isinstance(self.own, nn.Module), "--encoder", encoder, "must be a class derived from torch.nn.Module")
        for layer in self.own.modules():
            right = (
                "acts otherwise in training than afterwards, so an action's probability would change while one learns"
            )
            steady = not isinstance(layer, _DropoutNd | _BatchNorm)
            require(steady, "--encoder", f"{encoder}: its {type(layer).__name__}", f"{right}; use LayerNorm, or none")

    def forward(self, obs: Obs) -> Tensor:
        key, first = self.keys[0], parts_of(self.keys, obs)[0]
        rows = first.shape[: first.dim() - len(shape_of(key))]
        parts = {
            key.name: part.reshape(-1, *shape_of(key))
            for key, part in zip(self.keys, parts_of(self.keys, obs), strict=True)
        }
        features: Tensor = self.own(parts if key.path else parts[""])
        return features.reshape(*rows, -1)


def _part(key: ObsKey, encoder: str) -> nn.Module:
    """What makes the features of one key."""
    if not key.is_image or encoder == "mlp":
        return Flat(len(shape_of(key)))
    channels, *sides = key.planes
    is_frame = min(sides) >= SMALLEST_FRAME
    kind = encoder if encoder != "auto" else "nature" if is_frame else "minatar"
    if kind == "nature" and not is_frame:
        what = f"{key.name} of {sides[0]} × {sides[1]}" if key.name else f"{sides[0]} × {sides[1]}"
        raise UserError(
            f"--encoder nature: an image ({what}) is smaller than {SMALLEST_FRAME} × {SMALLEST_FRAME}; use minatar"
        )
    # On the CPU convolutions of frames take two thirds of the time with channels last, those of small images more.
    return Convolutions(CONVOLUTIONS[kind](channels), torch.channels_last if is_frame else torch.contiguous_format)


class Flat(nn.Module):
    """An observation [..., *shape] of `num_dims` dimensions as a vector [..., F]."""

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        self.num_dims = num_dims

    def forward(self, part: Tensor) -> Tensor:
        return part.flatten(-self.num_dims) if self.num_dims else part.unsqueeze(-1)


class Convolutions(nn.Module):
    """Features [..., F] of images [..., C, H, W]."""

    def __init__(self, layers: nn.Sequential, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.layers = layers
        self.memory_format = memory_format

    def forward(self, images: Tensor) -> Tensor:
        rows = images.reshape(-1, *images.shape[-3:]).contiguous(memory_format=self.memory_format)
        features: Tensor = self.layers(rows).flatten(1)
        return features.reshape(*images.shape[:-3], -1)


def nature(channels: int) -> nn.Sequential:
    """The convolutions of Mnih et al. 2015; with --hidden-sizes 512 --activation-function relu, their network."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3), nn.ReLU()),
    )


def minatar(channels: int) -> nn.Sequential:
    """The convolution of Young & Tian 2019; with --hidden-sizes 128 --activation-function relu, their network."""
    return nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU())


def impala(channels: int) -> nn.Sequential:
    """The residual convolutions of Espeholt et al. 2018, figure 3; their hidden layer has 256 units."""
    layers: list[nn.Module] = []
    for number in (16, 32, 32):
        layers += [nn.Conv2d(channels, number, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [Residual(number), Residual(number)]
        channels = number
    return nn.Sequential(*layers, nn.ReLU())


class Residual(nn.Module):
    """Two convolutions, whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.second(self.first(images.relu()).relu())
        return images + hidden


CONVOLUTIONS: Mapping[str, Callable[[int], nn.Sequential]] = {"nature": nature, "impala": impala, "minatar": minatar}
