"""The features of pictures that a rotation head reads: of a method ``features``, or the output of a named module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_robust.harness.replacement import replaced
from lightning_robust.mixins.host_step import require_inputs_alone
from lightning_robust.suggest import nearest


class Features:
    """Reads features ``(N, F)`` of pictures; maps ``(N, F, H, W)`` and tokens ``(N, T, F)`` are averaged over places.

    Args:
        module: The host.
        path: Path of the module whose output is read; None calls the host's ``features``.
    """

    def __init__(self, module: pl.LightningModule, path: str | None) -> None:
        self._module, self._path = module, path

    def of(self, images: Tensor) -> Tensor:
        """The features of pictures, ``(N, F)``.

        Raises:
            MisconfigurationException: If there is no method ``features`` and no such module; the message lists names.
                For a module whose ``forward`` needs more than pictures, which only ``features`` can do without.
            ValueError: If the features have another number of dimensions.
        """
        if self._path is not None:
            return _pool(self._output_at(self._path, images))
        method = getattr(self._module, "features", None)
        if method is None:
            raise MisconfigurationException(
                f"Expected a method `features(inputs)` on {type(self._module).__name__}, or `rotation_features` with "
                f"the path of a module, but got neither. Modules are {self._near('')}."
            )
        return _pool(method(images))

    @contextmanager
    def kept(self, features: list[Tensor]) -> Iterator[None]:
        """Inside the block, what the host computes of its own inputs is appended to the list."""
        if self._path is not None:
            handle = self._submodule(self._path).register_forward_hook(
                lambda _, args, output: features.append(_pool(output))
            )
            try:
                yield
            finally:
                handle.remove()
            return
        compute = getattr(self._module, "features", None)

        def method(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            output = compute(inputs, *args, **kwargs) if compute is not None else None
            features.append(_pool(output))
            return output

        with replaced(self._module, features=method):
            yield

    def _output_at(self, path: str, images: Tensor) -> Any:
        """The output of a module in a forward pass that ends there."""

        def stop(_: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(output)

        require_inputs_alone(self._module, "forward", "features(inputs)")
        handle = self._submodule(path).register_forward_hook(stop)
        try:
            self._module(images)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise MisconfigurationException(
            f"Expected the forward pass to go through rotation_features={path!r}, but it does not."
        )

    def _submodule(self, path: str) -> nn.Module:
        try:
            return self._module.get_submodule(path)
        except AttributeError as error:
            raise MisconfigurationException(
                f"Expected a module at rotation_features={path!r}, but there is none. Near are {self._near(path)}."
            ) from error

    def _near(self, path: str) -> list[str]:
        names = [name for name, _ in self._module.named_modules() if name]
        return nearest(path, names, 5) or names[:10]


def _pool(features: Any) -> Tensor:
    places = {2: (), 3: (1,), 4: (2, 3)}
    if isinstance(features, Tensor) and features.ndim in places:
        return features if features.ndim == 2 else features.mean(places[features.ndim])
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    raise ValueError(
        f"Expected features (N, F), tokens (N, T, F) or maps (N, F, H, W) for rotation self-supervision, but got "
        f"{shape}. Name another module in `rotation_features`, or define `features(inputs)`."
    )


class _Reached(Exception):  # noqa: N818 - it tells of no error
    """The forward pass has come to the module whose output is read."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output
