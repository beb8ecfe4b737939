"""Adam over fp32 master weights, with token embeddings updated by row.

A step touches a few hundred rows of a table of tens of thousands, yet dense Adam reads and writes all of it, twice
over for its moments: on a fast processor that costs as much as the encoder. `RowAdam` postpones what dense Adam would
do to untouched rows and does it at once, in closed form, when a row is next needed; the result is dense Adam's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bertune.config import TrainConfig
from bertune.errors import ConfigError
from bertune.model import kernels
from bertune.model.classifier import ClassifierModel, EncoderModel
from bertune.model.encoder import Encoder


def learning_rates(config: TrainConfig, *, peak: float, steps: int) -> np.ndarray:
    """float64 [steps]: the rate of each step. Warm-up rises linearly; linear and cosine then fall to 0."""
    warm = math.ceil(config.warmup * steps)
    step = np.arange(steps, dtype=np.float64)
    rest = (step - warm) / max(1, steps - warm)
    fall = {"linear": 1 - rest, "cosine": 0.5 * (1 + np.cos(np.pi * rest)), "constant": np.ones(steps)}
    return peak * np.where(step < warm, (step + 1) / (warm + 1), fall[config.schedule])


def freeze(model: ClassifierModel, what: str, *, train_positions: bool) -> None:
    """Switch off gradients: none, encoder, embeddings, or a number of lowest layers (embeddings included)."""
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
    if not train_positions and encoder.embeddings.position is not None:
        encoder.embeddings.position.requires_grad_(False)
    if what != "none":
        encoder.embeddings.requires_grad_(False)
        for layer in encoder.layers[: 0 if what == "embeddings" else int(what)]:
            layer.requires_grad_(False)


class RowAdam:
    """Adam for one table [rows, width] of which each step uses few rows; equals dense Adam step for step.

    With zero gradient, k steps of Adam shrink the moments by powers of beta, so their updates of a row are a sum of
    m / (sqrt(v) + eps_i) with weights that depend on the step span alone. Terms beyond `_SPAN` are below float
    precision. eps_i differs from step to step (see `_fractions`); what that leaves of an error lies below float
    precision too, unless the gradient of an entry is itself about as small as eps. The sum has an end only where beta1
    is well below sqrt(beta2): see `fits`.
    """

    _SPAN = 192  # (0.9 / sqrt(0.999)) ** 192 < 2e-9

    def __init__(
        self, table: nn.Parameter, rates: np.ndarray, *, betas: tuple[float, float], eps: float, decay: float
    ) -> None:
        self.table = table
        self.betas, self.eps = betas, eps
        self.mean = torch.zeros_like(table)
        self.square = torch.zeros_like(table)
        self.done = np.zeros(len(table), dtype=np.int64)  # step up to which a row is as dense Adam would have it
        steps = np.arange(1, len(rates) + 1, dtype=np.float64)
        # Entry t of these belongs to step t, counted from 1; entry 0 is before the first step.
        self.rates = np.concatenate(([0.0], rates))
        decayed = np.minimum(rates * decay, 0.999)  # more would turn weights around; such a run diverges anyhow
        self.shrink = np.concatenate(([0.0], np.cumsum(np.log1p(-decayed))))
        self.correct1 = np.concatenate(([1.0], 1 - betas[0] ** steps))
        self.correct2 = np.concatenate(([1.0], np.sqrt(1 - betas[1] ** steps)))
        self.ratio = betas[0] / math.sqrt(betas[1])
        self.span = self._SPAN if self.ratio <= 0.9005 else math.ceil(math.log(2e-9) / math.log(self.ratio))

    @staticmethod
    def fits(betas: tuple[float, float]) -> bool:
        """Whether postponed updates die away, and soon enough to be worth their sum."""
        return betas[0] < 0.99 * math.sqrt(betas[1])

    def catch_up(self, rows: np.ndarray | None, step: int) -> None:
        """Bring `rows` (None: all) to where dense Adam has them after `step` steps."""
        rows = np.arange(len(self.table)) if rows is None else rows
        rows = rows[self.done[rows] < step]
        for begin in range(0, len(rows), 8192):
            self._catch_up(rows[begin : begin + 8192], step)

    def _catch_up(self, rows: np.ndarray, step: int) -> None:
        starts, which = np.unique(self.done[rows], return_inverse=True)
        gaps = step - starts

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values[which].astype(np.float32))[:, None].to(self.table.device)

        index = torch.from_numpy(rows).to(self.table.device)
        with torch.no_grad():
            mean, square = self.mean[index], self.square[index]
            kept = self.table[index].mul_(column(np.exp(self.shrink[step] - self.shrink[starts])))
            root = square.sqrt()
            for weight, shift in self._fractions(starts, step):
                kept.addcmul_(mean, (root + column(shift)).reciprocal_().mul_(column(weight)), value=-1)
            self.table.index_copy_(0, index, kept)
            self.mean.index_copy_(0, index, mean.mul_(column(self.betas[0] ** gaps.astype(np.float64))))
            self.square.index_copy_(0, index, square.mul_(column(self.betas[1] ** gaps.astype(np.float64))))
        self.done[rows] = step

    def _fractions(self, starts: np.ndarray, step: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each start s, weights W and shifts E: steps s+1 .. step move a row by the sum of W m / (sqrt(v) + E).

        Step i alone moves it by w m / (sqrt(v) + e), with w = rate_i sqrt(c2_i) / c1_i ratio^(i-s), later decay
        included, and e = eps sqrt(c2_i) / sqrt(beta2)^(i-s). Two fractions stand for all of them: their weights and
        shifts have the same first four moments (Gauss quadrature), so the error is of order (e / sqrt(v))^4.
        """
        power = np.arange(1, min(self.span, int((step - starts).max())) + 1, dtype=np.float64)
        at = starts[:, None] + power[None, :].astype(np.int64)
        inside = at <= step
        at = np.minimum(at, step)
        weight = self.rates[at] * self.correct2[at] / self.correct1[at] * self.ratio ** power[None, :]
        weight *= np.exp(self.shrink[step] - self.shrink[at]) * inside
        shift = self.correct2[at] * self.betas[1] ** (-0.5 * power[None, :])  # in units of eps
        weight[:, 0] += 1e-300  # without momentum (beta1 = 0) all weights are 0, and their mean would not be defined
        total = weight.sum(axis=1)
        middle = (weight * shift).sum(axis=1) / total
        apart = shift - middle[:, None]
        spread = (weight * apart**2).sum(axis=1) / total
        alike = spread <= 1e-12 * middle**2  # a single step, or as good as one
        spread = np.where(alike, 1.0, spread)
        lean = (weight * apart**3).sum(axis=1) / total / spread
        root = np.sqrt(lean**2 + 4 * spread)
        low, high = (lean - root) / 2, (lean + root) / 2
        share = np.where(alike, 1.0, high / root)
        low, high = np.where(alike, 0.0, low), np.where(alike, 0.0, high)
        return [(total * share, self.eps * (middle + low)), (total * (1 - share), self.eps * (middle + high))]

    def update(self, rows: Tensor, values: Tensor, grad: Tensor, step: int) -> None:
        """Step number `step` (from 1) for `rows`, which hold `values` [rows, width] and were caught up to step - 1."""
        beta1, beta2 = self.betas
        mean = self.mean[rows].lerp_(grad, 1 - beta1)
        square = self.square[rows].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = square.sqrt().div_(float(self.correct2[step])).add_(self.eps)
        rate = float(self.rates[step])
        kept = values * math.exp(self.shrink[step] - self.shrink[step - 1])
        self.table[rows] = kept.addcdiv_(mean, root, value=-rate / float(self.correct1[step]))
        self.mean[rows], self.square[rows] = mean, square
        self.done[rows.cpu().numpy()] = step


class Optimizer:
    """All trained weights of a model, their fp32 masters, moments and rates.

    A step is: `words(ids)` for the token embeddings it needs, backward passes each followed by `collect()`, `clip`,
    `apply(step)`. `finish(step)` completes postponed updates; needed before weights are read.
    """

    def __init__(
        self, model: EncoderModel, config: TrainConfig, *, lr: float, steps: int, full: dict[str, Tensor],
        head_lr: float | None = None, compiled: bool = False, by_row: bool = True,
    ) -> None:
        """`full`: fp32 values, by name, of the parameters that the model holds in lower precision.

        lr, head_lr: peak learning rates of the encoder and of the head; None: one for both.
        compiled: let kernels.c do the steps; else torch does. by_row: a step uses few rows of the word embeddings.
        """
        self.compiled = compiled
        self.rates = learning_rates(config, peak=lr, steps=steps)
        self.head_scale = 1.0 if head_lr is None else head_lr / lr
        self.names, self.params, self.masters = [], [], []
        decay = config.weight_decay if config.optimizer == "adamw" else 0.0
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        embeddings = getattr(model.encoder, "embeddings", None)
        word = getattr(getattr(embeddings, "word", None), "weight", None)
        # A GPU goes through the whole table in less time than the row-wise bookkeeping takes to be launched.
        by_row = by_row and word is not None and word.requires_grad and word.device.type == "cpu"
        by_row = by_row and RowAdam.fits(config.betas)
        for name, param in model.named_parameters():
            if not param.requires_grad or (by_row and param is word):
                continue
            # Kernels take weights by address, and files of torch.save may hold transposed ones.
            param.data = param.data.contiguous()
            master = param if param.dtype == torch.float32 else nn.Parameter(full[name].contiguous())
            self.names.append(name)
            self.params.append(param)
            self.masters.append(master)
            plain = name.endswith("bias") or "norm" in name.rsplit(".", 2)[-2].lower()
            groups.setdefault((name.startswith("head."), not plain), []).append(master)
        self.dense = torch.optim.AdamW(
            [
                {"params": params, "weight_decay": decay if decays else 0.0, "head": head}
                for (head, decays), params in groups.items()
            ],
            lr=lr, betas=config.betas, eps=config.eps, fused=True,
        )  # with no decay this is plain Adam
        self.grads: list[Tensor | None] = [None] * len(self.masters)  # of the step so far
        self._scale = 1.0  # what clipping leaves of them
        self.rows = (
            RowAdam(word, self.rates, betas=config.betas, eps=config.eps, decay=decay) if by_row else None  # type: ignore[arg-type]
        )
        self._index: Tensor | None = None
        self._leaf: Tensor | None = None

    def words(self, ids: np.ndarray, step: int) -> Callable[[np.ndarray], Tensor] | None:
        """Prepare the embeddings of all tokens `ids` of step `step` (from 1); the function looks some of them up."""
        if self.rows is None:
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
            group["lr"] = rate * (self.head_scale if group["head"] else 1.0)
        if self.compiled:
            self._apply_compiled()
        else:
            for master, grad in zip(self.masters, self.grads, strict=True):
                master.grad = grad
            self.dense.step()
            low = [(p, m) for p, m in zip(self.params, self.masters, strict=True) if p is not m]
            if low:
                torch._foreach_copy_([p for p, _ in low], [m for _, m in low])
        if self.rows is not None and self._leaf is not None and self._leaf.grad is not None:
            assert self._index is not None
            self.rows.update(self._index, self._leaf.detach(), self._leaf.grad * self._scale, step)
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
                    slot |= {"step": 0.0, "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}
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

    def weights(self) -> dict[str, Tensor]:
        """fp32 weights by parameter name: masters where there are any. Not copies."""
        return {name: master.detach() for name, master in zip(self.names, self.masters, strict=True)}

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
