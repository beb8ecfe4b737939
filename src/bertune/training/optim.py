"""Adam over fp32 master weights, with token embeddings updated by row (see rowadam.py)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bertune.config import TrainConfig
from bertune.errors import ConfigError
from bertune.model import kernels
from bertune.model.classifier import EncoderModel
from bertune.model.encoder import Encoder
from bertune.training.lora import PREFIX, Lora
from bertune.training.mixout import Mixout
from bertune.training.rates import layer_factors, learning_rates
from bertune.training.rowadam import RowAdam

WORDS = "encoder.embeddings.word.weight"
UNCORRECTED = 1e12  # steps of a moment that are said to have gone by where nothing is corrected: both corrections are 1


def freeze(model: EncoderModel, what: str, *, train_positions: bool) -> None:
    """Switch off gradients: none, encoder, embeddings, or a number of lowest layers (embeddings included).

    Layers above the last that the head reads are never trained.
    """
    encoder = model.encoder
    if what == "encoder":
        encoder.requires_grad_(False)
        return
    if not isinstance(encoder, Encoder):
        if what != "none" or not train_positions:
            raise ConfigError(
                f"--freeze {what}: an encoder outside the family is trained whole or not at all. Pass none or encoder."
            )
        return
    for layer in encoder.layers[model.depth :]:
        layer.requires_grad_(False)  # nobody reads what lies above
    if not train_positions and encoder.embeddings.position is not None:
        encoder.embeddings.position.requires_grad_(False)
    if what != "none":
        encoder.embeddings.requires_grad_(False)
        for layer in encoder.layers[: 0 if what == "embeddings" else int(what)]:
            layer.requires_grad_(False)


class Optimizer:
    """All trained weights of a model, their fp32 masters, moments and rates.

    A step is: `begin(step)`, `words(ids)` for the token embeddings it needs, backward passes each followed by
    `collect()`, `gather()`, `clip`, `apply(step)`. `finish(step)` completes postponed updates; needed before weights
    are read.
    """

    def __init__(
        self, model: EncoderModel, config: TrainConfig, *, lr: float, steps: int, full: dict[str, Tensor],
        head_lr: float | None = None, compiled: bool = False, by_row: bool = True, thaw: dict[str, int] | None = None,
        rates: np.ndarray | None = None, lora: Lora | None = None, head_parts: tuple[str, ...] = ("head",),
    ) -> None:
        """`full`: fp32 values, by name, of the parameters that the model holds in lower precision.

        lr, head_lr: peak learning rates of the encoder and of the head; None: one for both.
        head_parts: the names of what `head_lr` is for, where that is not the whole head.
        compiled: let kernels.c do the steps; else torch does. by_row: a step uses few rows of the word embeddings.
        thaw: how many steps pass before a weight is trained, by name (see `rates.thaw_steps`); rates: of each step, in
        place of the configured schedule.
        lora: matrices that are trained in place of those that they stand beside.
        """
        self.compiled, self.lora = compiled, lora
        self.rates = learning_rates(config, peak=lr, steps=steps) if rates is None else rates
        # BERT's own program corrects no moment for its start at zero; Zhang et al. 2021 (arXiv 2006.05987, section 4)
        # show what that does to small data.
        self.corrected = config.optimizer != "bert-adam"
        self.names, self.params, self.masters = [], [], []
        decay = config.weight_decay if config.optimizer != "adam" else 0.0
        self.scales = self._scales(model, config, head_parts, 1.0 if head_lr is None else head_lr / lr)
        groups: dict[tuple[float, bool], list[Tensor]] = {}
        embeddings = getattr(model.encoder, "embeddings", None)
        word = getattr(getattr(embeddings, "word", None), "weight", None)
        # A GPU goes through the whole table in less time than the row-wise bookkeeping takes to be launched.
        by_row = by_row and word is not None and word.requires_grad and word.device.type == "cpu"
        by_row = by_row and RowAdam.fits(config.betas)
        for name, param in model.named_parameters():
            if not param.requires_grad or (by_row and param is word):
                continue
            if lora is not None and name in lora.weights:
                continue
            # Kernels take weights by address, and files of torch.save may hold transposed ones.
            param.data = param.data.contiguous()
            master = param if param.dtype == torch.float32 else nn.Parameter(full[name].contiguous())
            self.names.append(name)
            self.params.append(param)
            self.masters.append(master)
            plain = name.endswith("bias") or "norm" in name.rsplit(".", 2)[-2].lower()
            groups.setdefault((self.scales[name], not plain), []).append(master)
        for key, matrix in (lora.matrices if lora is not None else {}).items():
            self.names.append(PREFIX + key)
            self.params.append(matrix)
            self.masters.append(matrix)
            groups.setdefault((self.scales[key.split("/")[0]], True), []).append(matrix)
        self.dense = torch.optim.AdamW(
            [
                {"params": params, "weight_decay": decay if decays else 0.0, "scale": scale}
                for (scale, decays), params in groups.items()
            ],
            lr=lr, betas=config.betas, eps=config.eps, fused=True,
        )  # with no decay this is plain Adam
        self.grads: list[Tensor | None] = [None] * len(self.masters)  # of the step so far
        self._scale = 1.0  # what clipping leaves of them
        waits = {name: steps for name, steps in (thaw or {}).items() if steps}
        self._waiting = [(param, waits[name]) for name, param in model.named_parameters() if name in waits]
        self.rows = None
        if by_row:
            self.rows = RowAdam(
                word, self.rates * self.scales[WORDS], betas=config.betas, eps=config.eps, decay=decay,  # type: ignore[arg-type]
                begin=(thaw or {}).get(WORDS, 0), corrected=self.corrected,
            )
        self.mixout: Mixout | None = None
        if config.mixout:
            places = {name: place for place, name in enumerate(self.names)}
            self.mixout = Mixout(self.masters, places, rate=config.mixout, seed=config.seed)
        self._index: Tensor | None = None
        self._leaf: Tensor | None = None

    @staticmethod
    def _scales(model: EncoderModel, config: TrainConfig, parts: tuple[str, ...], head: float) -> dict[str, float]:
        """What the rate of each trained weight is multiplied by, by name."""
        names = [name for name, param in model.named_parameters() if param.requires_grad]
        factors = dict.fromkeys(names, 1.0)
        if config.layer_decay != 1:
            factors = layer_factors(
                names, layers=model.depth, decay=config.layer_decay, on=config.layer_decay_on
            )
        among = tuple(f"{part}." for part in parts)
        return {name: head if name.startswith(among) else factor for name, factor in factors.items()}

    def begin(self, step: int) -> None:
        """Make the model ready for the forward passes of step `step` (from 1)."""
        for param, steps in self._waiting:
            param.requires_grad_(step > steps)
        if self.mixout is not None:
            self.mixout.mix(self.params, self.masters, step)

    def gather(self) -> None:
        """After the last backward pass of a step: the model has its own weights again, and gradients belong to them."""
        if self.mixout is not None:
            self.mixout.restore(self.params, self.grads)

    def words(self, ids: np.ndarray, step: int) -> Callable[[np.ndarray], Tensor] | None:
        """Prepare the embeddings of all tokens `ids` of step `step` (from 1); the function looks some of them up."""
        if self.rows is None or step <= self.rows.begin:
            return None
        order = np.unique(ids)
        self.rows.catch_up(order, step - 1)
        index = torch.from_numpy(order).to(self.rows.table.device)
        leaf = self.rows.table.detach()[index].requires_grad_()
        self._index, self._leaf = index, leaf

        def look_up(part: np.ndarray) -> Tensor:
            places = torch.from_numpy(np.searchsorted(order, part)).to(leaf.device)
            return leaf.index_select(0, places)

        return look_up

    def collect(self) -> None:
        """Take the gradients of one backward pass from the parameters and add them up."""
        if self.lora is not None:
            self.lora.collect()
        for place, param in enumerate(self.params):
            found, held = param.grad, self.grads[place]
            if found is not None:
                # A step that is one pass needs no sum, and kernels read bf16 as it is.
                alone = found if self.compiled else found.float()
                self.grads[place] = alone if held is None else held.float() + found
            param.grad = None

    def _every_grad(self) -> list[Tensor]:
        leaf = [] if self._leaf is None else [self._leaf.grad]
        return [grad for grad in (*self.grads, *leaf) if grad is not None]

    def gradient_norm(self) -> float:
        """Euclidean norm of all gradients."""
        grads = self._every_grad()
        if self.compiled:
            return self._scale * math.sqrt(kernels.square_sum([grad.contiguous() for grad in grads]))
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))) if grads else 0.0

    def clip(self, limit: float | None, norm: float) -> None:
        """Scale all gradients so that their norm is at most `limit`."""
        if limit is None or norm <= limit:
            return
        if self.compiled:
            self._scale *= limit / (norm + 1e-6)  # a factor of the update, instead of a pass over memory
        else:
            torch._foreach_mul_(self._every_grad(), limit / (norm + 1e-6))

    @torch.no_grad()
    def apply(self, step: int) -> None:
        """Optimizer step number `step`, from 1."""
        rate = float(self.rates[step - 1])
        for group in self.dense.param_groups:
            group["lr"] = rate * group["scale"]
        if self.compiled:
            self._apply_compiled()
        else:
            for master, grad in zip(self.masters, self.grads, strict=True):
                master.grad = grad
                if grad is not None and not self.corrected and not self.dense.state[master]:
                    zeros = {"exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}
                    start = torch.tensor(UNCORRECTED, device=master.device)
                    self.dense.state[master] = {"step": start, **zeros}
            self.dense.step()
            low = [(p, m) for p, m in zip(self.params, self.masters, strict=True) if p is not m]
            if low:
                torch._foreach_copy_([p for p, _ in low], [m for _, m in low])
        if self.rows is not None and self._leaf is not None and self._leaf.grad is not None:
            assert self._index is not None
            self.rows.update(self._index, self._leaf.detach(), self._leaf.grad * self._scale, step)
        if self.lora is not None:
            self.lora.merge()
        self.forget()

    def _apply_compiled(self) -> None:
        """The same step over the same state as torch's, with its count as a number."""
        place = {id(master): number for number, master in enumerate(self.masters)}
        for group in self.dense.param_groups:
            betas, rate = group["betas"], group["lr"]
            for master in group["params"]:
                number = place[id(master)]
                param, grad = self.params[number], self.grads[number]
                if grad is None:
                    continue
                slot = self.dense.state[master]
                if not slot:
                    start = 0.0 if self.corrected else UNCORRECTED
                    slot |= {"step": start, "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}
                count = slot["step"] = slot["step"] + 1
                kernels.adam(
                    master, slot["exp_avg"], slot["exp_avg_sq"], None if param is master else param, grad.contiguous(),
                    scale=self._scale, betas=betas, rate=rate / (1 - betas[0] ** count),
                    root=1 / math.sqrt(1 - betas[1] ** count), eps=group["eps"],
                    keep=1 - rate * group["weight_decay"],
                )

    def forget(self) -> None:
        """Drop all gradients."""
        for param, master in zip(self.params, self.masters, strict=True):
            param.grad = master.grad = None
        self.grads = [None] * len(self.masters)
        self._scale = 1.0
        self._leaf = self._index = None

    def finish(self, step: int) -> None:
        """Complete every postponed update, so that the weights are those after `step` steps."""
        if self.rows is not None:
            self.rows.catch_up(None, step)

    def trained(self) -> dict[str, Tensor]:
        """`weights`, and the token embeddings where they are updated by row; after `finish`."""
        by_row = {} if self.rows is None else {WORDS: self.rows.table.detach()}
        return self.weights() | by_row

    def weights(self) -> dict[str, Tensor]:
        """fp32 weights by parameter name: masters where there are any. Not copies, but for what LoRA merges; its own
        matrices are among them, under names that begin with `lora.PREFIX`."""
        merged = {} if self.lora is None else self.lora.merged()
        return merged | {name: master.detach() for name, master in zip(self.names, self.masters, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """Moments and progress, by name; with the weights, all that going on needs. Not copies."""
        tensors: dict[str, Tensor] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            slot = self.dense.state.get(master, {})
            for key in ("exp_avg", "exp_avg_sq", "step"):
                if key in slot:
                    tensors[f"{key}/{name}"] = torch.as_tensor(slot[key])
        if self.rows is not None:
            tensors["rows/mean"], tensors["rows/square"] = self.rows.mean, self.rows.square
            tensors["rows/done"] = torch.from_numpy(self.rows.done)
        return tensors

    def load_state(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Put back what `weights` and `state` gave."""
        with torch.no_grad():
            for name, param, master in zip(self.names, self.params, self.masters, strict=True):
                master.copy_(weights[name])
                if param is not master:
                    param.copy_(master)
                moments = [key for key in ("exp_avg", "exp_avg_sq") if f"{key}/{name}" in state]
                # Copies: what was loaded stays mapped to the checkpoint's file.
                slot: dict[str, Tensor | float] = {
                    key: state[f"{key}/{name}"].to(master.device, copy=True) for key in moments
                }
                if slot:
                    step = state[f"step/{name}"]
                    slot["step"] = float(step) if self.compiled else step.to(master.device)
                    self.dense.state[master] = slot
            if self.rows is not None:
                self.rows.mean.copy_(state["rows/mean"])
                self.rows.square.copy_(state["rows/square"])
                self.rows.done[:] = state["rows/done"].numpy()
        if self.lora is not None:
            self.lora.merge()
